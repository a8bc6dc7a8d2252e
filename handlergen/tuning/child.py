"""The other side of `probe`: loads the model, answers the sample for a while, says what its hooks computed.

Stage times are in the spans that it records; CPU time, which they do not have, is counted here.
"""

from __future__ import annotations

import json
import os
import sys
import time
from collections.abc import Mapping
from pathlib import Path
from types import CoroutineType
from typing import Any, BinaryIO

import psutil

from handlergen.errors import HandlergenError, ModuleFailed
from handlergen.local import LocalModel, load
from handlergen.outgoing import body_of
from handlergen.runtime.device import share_the_cores
from handlergen.runtime.hooks import BoundHook, Item
from handlergen.runtime.malloc import keep_freed_memory
from handlergen.runtime.worker import Worker
from handlergen.user_place import working_directory

_LONGEST_BATCHES_S = 4.0
_WARM = 3


def main() -> None:
    """`python -m handlergen.tuning.child ARGUMENTS DESCRIPTOR`, started by `probe`."""
    given = json.loads(sys.argv[1])
    with os.fdopen(int(sys.argv[2]), "wb") as answers:
        try:
            _serve(given, answers)
        except HandlergenError as error:
            traceback = error.traceback if isinstance(error, ModuleFailed) else ""
            _tell(answers, {"error": error.message, "hint": error.hint, "traceback": traceback})


def _serve(given: Mapping[str, Any], answers: BinaryIO) -> None:
    keep_freed_memory()  # as a worker of TorchServe does
    share_the_cores()
    with load(given["source"], gpu=given["gpu"], **given["overrides"]) as model:
        body, content_type = body_of(Path(given["sample"]))
        with working_directory(model.root):
            for _ in range(_WARM):
                answer = model.request(body, content_type=content_type)
                if answer.status >= 400:
                    raise HandlergenError(
                        f"the sample is answered with {answer.status}: {answer.body[:2000].decode('utf-8', 'replace')}",
                        hint="give a sample that the model answers; `handlergen check SOURCE --sample FILE` shows more",
                    )
            _tell(answers, {"ready": True})
            sys.stdin.readline()
            _tell(answers, _measure(model, body, content_type, given))


def _measure(model: LocalModel, body: bytes, content_type: str, given: Mapping[str, Any]) -> dict[str, Any]:
    computed = Computed(model.worker)
    start_ns = time.monotonic_ns()
    stop_ns = start_ns + int(given["seconds"] * 1e9)
    requests = 0
    while time.monotonic_ns() < stop_ns:
        model.request(body, content_type=content_type)
        requests += 1
    end_ns = time.monotonic_ns()
    settings = model.worker.bundle.settings
    used = {role: list(values) for role, values in computed.by_role.items()}
    return {
        "start_ns": start_ns,
        "end_ns": end_ns,
        "requests": requests,
        "computed": used,
        "batches": _batches(model, body, content_type, given["batches"]),
        "memory": _own_memory(),
        "device": str(model.worker.local.model.device.torch),
        "devices": _devices(given["gpu"]),
        "cores": len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count(),
        "batch": settings.batch,
        "model": settings.name,
        "predictor": settings.predictor,
        "stages": settings.stages,
        "max_batch": settings.max_batch,
    }


def _batches(model: LocalModel, body: bytes, content_type: str, sizes: list[int]) -> list[list[int]]:
    """[size, start, end] of some batches of each size, in ns; larger ones are left out when it takes too long."""
    found = []
    began = time.monotonic()
    for size in sizes:
        if time.monotonic() - began > _LONGEST_BATCHES_S:
            break
        model.batch(
            [body] * size, content_type=content_type
        )  # what a new size costs once (allocations, kernels)
        start_ns = time.monotonic_ns()
        for _ in range(4):
            model.batch([body] * size, content_type=content_type)
            if time.monotonic_ns() - start_ns > 1_500_000_000:
                break
        found.append([size, start_ns, time.monotonic_ns()])
    return found


class Computed:
    """Sums each hook's CPU time: of the whole process, in which nothing else runs while one request is answered.

    Attributes:
        by_role: `preprocess`, `predict` or `postprocess` -> [calls, CPU seconds, seconds].
    """

    def __init__(self, worker: Worker) -> None:
        self.by_role: dict[str, list[float]] = {}
        worker.observe(self._observed)

    def _observed(self, _stage: int, role: str, hook: BoundHook) -> BoundHook:
        sums = self.by_role.setdefault(role, [0, 0.0, 0.0])

        def add(since: tuple[float, float]) -> None:
            sums[0] += 1
            sums[1] += time.process_time() - since[0]
            sums[2] += time.perf_counter() - since[1]

        def call(item: Item) -> Any:
            since = (time.process_time(), time.perf_counter())
            result = hook.call(item)
            if type(result) is CoroutineType:
                return awaited(result, since)
            add(since)
            return result

        async def awaited(coroutine: Any, since: tuple[float, float]) -> Any:
            value = await coroutine
            add(since)
            return value

        return BoundHook(hook.name, call, hook.function, hook.parameters)


def _own_memory() -> int:
    """Bytes that one more process like this takes: what it does not share with others."""
    process = psutil.Process()
    try:
        return int(process.memory_full_info().uss)
    except (psutil.Error, AttributeError):
        return int(process.memory_info().rss)


def _devices(gpu: int | None) -> int:
    if gpu is None:
        return 1
    import torch

    return max(1, torch.cuda.device_count())


def _tell(answers: BinaryIO, message: Mapping[str, Any]) -> None:
    answers.write(json.dumps(message).encode() + b"\n")
    answers.flush()


if __name__ == "__main__":
    main()
