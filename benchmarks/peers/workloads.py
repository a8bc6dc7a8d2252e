"""What is asked of every server: the modules of `models/`."""

from __future__ import annotations

import itertools
import json
import os
import subprocess
import tempfile
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from handlergen.performance.bench.load import Exchange

HERE = Path(__file__).parent
MODELS = HERE / "models"
_TOLERANCE = 2e-3
"""Of floating-point answers: rounding differs between batch sizes."""


@dataclass(frozen=True)
class Workload:
    """A module of `models/` and what it is asked.

    Attributes:
        name: For the command line.
        title: What a request does.
        module: Workloads with the same module share the servers.
        batch_size: Most rows of one predict, for the servers that batch.
        first: The smallest number that is sent, where numbers are.
    """

    name: str
    title: str
    module: str
    batch_size: int = 1
    first: int = 1


WORKLOADS = (
    Workload("nothing", "Does nothing", "staged"),
    Workload("waits", "Wait 10 ms, predict 10 ms, wait 10 ms", "staged", first=1000),
    Workload("burns", "8 ms of CPU, predict 10 ms, 4 ms of CPU", "staged", first=2000),
    Workload("pictures", "JPEG to a small CNN on the CPU", "pictures"),
    Workload("embeddings", "MiniLM on the CPU", "embeddings"),
    Workload("batches", "MLP of 6 x 2048 x 2048 on the CPU, batches of up to 8", "batches", batch_size=8),
)

Pairs = Sequence[tuple[Mapping[str, Any], Any]]


def environ_of(workload: Workload, spans: Path) -> dict[str, str]:
    """The environment that every server of a workload gets.

    One thread for each model's arithmetic: several copies with a thread for each core would hinder each other.
    """
    return {
        "PEERS_MODEL": workload.module,
        "PEERS_BATCH_SIZE": str(workload.batch_size),
        "PEERS_SPANS": str(spans),
        "PYTHONPATH": str(MODELS),
        "PYTHONUNBUFFERED": "1",
        "OMP_NUM_THREADS": "1",
        "MKL_NUM_THREADS": "1",
    }


def expected(workload: Workload, python: Path) -> Pairs:
    """Requests and right answers, computed by the user's code alone in the environment of `python`."""
    with tempfile.TemporaryDirectory(prefix="peers-") as spans:
        ran = subprocess.run(
            [python, HERE / "expected.py", str(workload.first)],
            env=os.environ | environ_of(workload, Path(spans)),
            stdout=subprocess.PIPE,
            check=True,
            text=True,
        )
    pairs = json.loads(ran.stdout)
    if any(close(one[1], other[1]) for one, other in itertools.pairwise(pairs)):
        raise RuntimeError(f"{workload.name}: neighbouring answers are alike, a mix-up would not be seen")
    return [(request, answer) for request, answer in pairs]


def close(one: Any, other: Any) -> bool:
    """The same JSON value, floats within the tolerance."""
    if isinstance(one, dict) and isinstance(other, dict):
        return one.keys() == other.keys() and all(close(one[key], other[key]) for key in one)
    if isinstance(one, list) and isinstance(other, list):
        return len(one) == len(other) and all(map(close, one, other))
    if isinstance(one, float) and isinstance(other, int | float):
        return abs(one - other) <= _TOLERANCE
    return bool(one == other)


class Asked(Exchange):
    """A request in the peer's own wrapping, and the answer that must be found in the wrapping of its response."""

    def __init__(self, path: str, body: Any, answer: Any, unwrap: Callable[[Any], Any]) -> None:
        super().__init__(path, json.dumps(body).encode(), "application/json")
        self._wanted, self._unwrap, self._seen = answer, unwrap, b""

    def is_right(self, content: bytes) -> bool:
        """Is this the answer? The same bytes are only parsed once."""
        if content == self._seen:
            return True
        try:
            right = close(self._wanted, self._unwrap(json.loads(content)))
        except (ValueError, LookupError, TypeError):
            return False
        if right:
            self._seen = content
        return right
