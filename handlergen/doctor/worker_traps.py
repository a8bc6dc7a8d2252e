"""What a model's settings for TorchServe can get wrong, wherever they stand."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from handlergen.doctor.finding import Finding, error, note, warning


def worker_traps(where: str, chosen: Mapping[str, Any], *, line: str) -> Iterator[Finding]:
    """Numbers of workers that do not fit together, a batch delay that is none.

    Args:
        where: Put before what is found.
        chosen: minWorkers, maxWorkers, batchSize, maxBatchDelay, ...
        line: How a setting is written there, with `{key}` and `{value}`.
    """
    low, high = chosen.get("minWorkers"), chosen.get("maxWorkers")
    if (low is None) != (high is None):
        given, other = ("minWorkers", "maxWorkers") if high is None else ("maxWorkers", "minWorkers")
        value = low if high is None else high
        yield warning(
            f"{where} has {given} {value} without {other}",
            "TorchServe then takes the number of GPUs, or else of cores, instead of what was meant.",
            line.format(key=other, value=value),
        )
    elif isinstance(low, int) and isinstance(high, int) and low > high:
        yield error(
            f"{where} has minWorkers {low} and maxWorkers {high}",
            "TorchServe does not take such a pair, and chooses a number itself.",
            line.format(key="maxWorkers", value=low),
        )
    batch, delay = chosen.get("batchSize", 1), chosen.get("maxBatchDelay")
    if delay is not None and isinstance(delay, int | float) and delay <= 0:
        yield (warning if isinstance(batch, int) and batch > 1 else note)(
            f"{where} has maxBatchDelay {delay}",
            "TorchServe reads it as its default, 100 ms: a request that is alone waits that long for others.",
            line.format(key="maxBatchDelay", value=1),
        )
