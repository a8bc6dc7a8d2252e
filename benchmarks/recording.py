"""What counting for /metrics costs a request, in microseconds: `python benchmarks/recording.py`.

The best of several runs: what the code takes, not what else the machine does.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from timeit import repeat

from handlergen.runtime.telemetry.recording import Metrics
from handlergen.runtime.telemetry.stages import STAGE_NAMES

REQUESTS = 1_000  # of one second
ID = "0f8a2c1e-7d4b-4a53-9a07-1f0f5b6f3c11"


def main() -> None:
    written: list[str] = []
    metrics = Metrics(model="digits", version="1.0", device="cpu", write=written.append)

    def clock() -> None:
        for _ in range(REQUESTS):
            for _ in STAGE_NAMES:
                time.monotonic_ns()
                time.monotonic_ns()

    def request() -> None:
        for number in range(REQUESTS):
            for stage in STAGE_NAMES:
                metrics.record(stage, ID, 0, number * 20_000)
            metrics.answered(200)

    def best(call: Callable[[], object], before: Callable[[], object] = lambda: None) -> float:
        return min(repeat(call, before, number=1, repeat=50)) / REQUESTS * 1e6

    print(f"reading the clock twice a stage   {best(clock):.2f} us a request")
    print(f"counting six stages, one answer   {best(request, metrics.emit):.2f} us a request")
    print(f"writing, beside the requests      {best(metrics.emit, request):.2f} us a request of {REQUESTS} a second")
    metrics.emit()
    request()
    metrics.emit()
    print(f"written in that second            {written[-1].count(chr(10))} lines, {len(written[-1])} bytes")


if __name__ == "__main__":
    main()
