"""What the tests need of LitServe, which need not be installed for them: the base class as litserve/api.py has it."""

from __future__ import annotations

from typing import Any


class LitAPI:
    def __init__(self, max_batch_size: int = 1, stream: bool = False, **_others: Any) -> None:
        self.max_batch_size = max_batch_size
        self.stream = stream

    def setup(self, device: str) -> None: ...

    def batch(self, inputs: list[Any]) -> Any:
        if hasattr(inputs[0], "__torch_function__"):
            import torch

            return torch.stack(inputs)
        return inputs
