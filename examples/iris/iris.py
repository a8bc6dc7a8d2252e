"""Four measurements of an iris in, its species out: an nn.Module that carries its own preprocess and postprocess."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn

FEATURES = ("sepal length", "sepal width", "petal length", "petal width")
SPECIES = ("setosa", "versicolor", "virginica")


class Iris(nn.Module):
    """A small network that knows what its inputs and outputs mean.

    Args:
        hidden: Units of the hidden layer.
    """

    def __init__(self, hidden: int) -> None:
        super().__init__()
        # Learned with the weights, so that they travel in the state dict.
        self.register_buffer("mean", torch.zeros(len(FEATURES)))
        self.register_buffer("deviation", torch.ones(len(FEATURES)))
        self.layers = nn.Sequential(nn.Linear(len(FEATURES), hidden), nn.ReLU(), nn.Linear(hidden, len(SPECIES)))

    def preprocess(self, x: dict[str, float]) -> torch.Tensor:
        """A request's JSON object, in centimetres, to one (4,) sample. Runs beside predictions."""
        try:
            return torch.tensor([float(x[name]) for name in FEATURES])
        except (KeyError, TypeError) as error:
            raise ValueError(f"send an object with the numbers {', '.join(FEATURES)}") from error

    def forward(self, batch: torch.Tensor) -> torch.Tensor:
        """(N, 4) samples to (N, 3) probabilities. Only one batch at a time runs on the device."""
        return self.layers((batch - self.mean) / self.deviation).softmax(dim=1)

    def postprocess(self, output: torch.Tensor) -> dict[str, Any]:
        """(3,) probabilities to an answer. Runs beside predictions."""
        best = int(output.argmax())
        return {"species": SPECIES[best], "probability": round(float(output[best]), 4)}
