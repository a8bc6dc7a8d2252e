"""The process of `run_sample`: loads the module, answers the sample, writes a JSON report to standard output.

Where a server would run preprocess and postprocess in workers, which have not loaded the model, a second process of it
answers the sample that way too: as a worker, beside a predictor process.
"""

from __future__ import annotations

import base64
import contextlib
import json
import logging
import os
import subprocess
import sys
import time
from collections.abc import Mapping
from logging.handlers import BufferingHandler
from pathlib import Path
from types import CoroutineType
from typing import Any

import torch
from torch.utils._python_dispatch import TorchDispatchMode

from handlergen.archives.staging import make_bundle
from handlergen.errors import HandlergenError, ModuleFailed
from handlergen.inspection.project import open_project
from handlergen.local.ending import end
from handlergen.local.model import LocalAnswer, LocalModel, directories_beside, load
from handlergen.local.surroundings import Surroundings
from handlergen.runtime.diagnostics import ROOT
from handlergen.runtime.pipeline.hooks import BoundHook, Item
from handlergen.runtime.predictor_process.transport import round_trip
from handlergen.runtime.torchserve.streaming import is_stream
from handlergen.runtime.worker import Worker, backend_of

_MAX_BODY = 4000
_MOST_SHOWN_OF_A_BODY = 200
_MAX_TRACEBACKS = 1000
_MAX_DEPTH = 4
_MAX_SHOWN = 6
_MAX_INSPECTED = 1000


def main() -> None:
    """Run `python -m handlergen.local.sample_child ARGUMENTS [as-served]`."""
    given = json.loads(sys.argv[1])
    answers = os.fdopen(os.dup(1), "wb")
    os.dup2(2, 1)  # hooks may print; standard output is for the report
    try:
        report = _answer_as_served(given) if "as-served" in sys.argv else _answer(given)
    except HandlergenError as error:
        report = {"error": error.message, "hint": error.hint}
        if isinstance(error, ModuleFailed):
            report["traceback"] = error.traceback
    with answers:
        answers.write(json.dumps(report).encode())


def _answer(given: Mapping[str, Any]) -> dict[str, Any]:
    began = time.monotonic()
    tracebacks = BufferingHandler(capacity=_MAX_TRACEBACKS)
    tracebacks.setLevel(logging.ERROR)
    ROOT.addHandler(tracebacks)
    with load(given["source"], gpu=given["gpu"], **given["overrides"]) as model:
        load_s = time.monotonic() - began
        seen = Observer(model.worker)
        answer = model.request(Path(given["sample"]))
        seen.findings += _differences(given, model, answer)
        try:
            body = answer.body.decode()
        except UnicodeDecodeError:
            body = base64.b64encode(answer.body).decode()
        return {
            "load_s": round(load_s, 3),
            "device": str(model.worker.local.model.device.torch),
            "stages": seen.stages,
            "findings": list(dict.fromkeys(seen.findings)),
            "status": answer.status,
            "content_type": answer.content_type,
            "body": body if len(body) <= _MAX_BODY else f"{body[:_MAX_BODY]}…",
            "traceback": "\n".join(record.getMessage() for record in tracebacks.buffer),
        }


def _differences(given: Mapping[str, Any], model: LocalModel, answer: LocalAnswer) -> list[str]:
    """Return what says that the answer would be another one on a server, with preprocess and postprocess in workers."""
    settings = model.worker.bundle.settings
    if (settings.predictor, settings.stages) != ("process", "worker") or answer.status >= 400:
        return []
    if not {"preprocess", "postprocess"} & model.worker.bundle.contract.hooks.keys():
        return []
    command = [sys.executable, "-m", "handlergen.local.sample_child", json.dumps(given), "as-served"]
    # What this process has not said, that one says again; and it prints metrics, as a worker.
    ran = subprocess.run(command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, check=False)
    found = json.loads(ran.stdout or "{}")
    served = base64.b64decode(found.get("body", ""))
    again = model.request(Path(given["sample"]))
    if "status" not in found or (found["status"], served) == (answer.status, answer.body) or again != answer:
        return []  # the module's answers are random, say
    return [
        "on a server, where preprocess and postprocess run in workers that have not called load, the answer is "
        f"{found['status']} {_shortened(served)} instead: set `stages: predictor`, or do in setup(context), which "
        "every worker runs, what load does for these hooks"
    ]


def _shortened(body: bytes) -> str:
    text = body.decode("utf-8", "replace")
    return text if len(text) <= _MOST_SHOWN_OF_A_BODY else f"{text[:_MOST_SHOWN_OF_A_BODY]}…"


def _answer_as_served(given: Mapping[str, Any]) -> dict[str, Any]:
    project = open_project(Path(given["source"]), overrides=given["overrides"])
    bundle, root = make_bundle(project), project.root.resolve()
    surroundings = Surroundings(bundle.contract.module, [root, *sorted(directories_beside(project) - {root})])
    with surroundings.entered():
        worker = Worker(bundle, root, gpu_id=given["gpu"], batch_size=1, backend=backend_of(bundle))
    with LocalModel(worker, root, surroundings, str, contextlib.ExitStack()) as model:
        answer = model.request(Path(given["sample"]))
    return {"status": answer.status, "body": base64.b64encode(answer.body).decode()}


class Observer:
    """Records each hook's input, output and duration: a `StageRun` as a dict per call, and findings for the user."""

    def __init__(self, worker: Worker) -> None:
        self.stages: list[dict[str, Any]] = []
        self.findings: list[str] = []
        self._device = worker.local.model.device
        with _DeviceUse(set()):  # the first use of the mode imports modules, which takes a second
            torch.ones(1).add(1)
        worker.observe(self._observed)

    def _observed(self, _stage: int, role: str, hook: BoundHook) -> BoundHook:
        def call(item: Item) -> Any:
            call = _Call(self, role, hook.name, item)
            with call:
                result = hook.call(item)
                if type(result) is not CoroutineType:
                    call.returned(result)
                    return result
            return self._awaited(call, result)

        return BoundHook(hook.name, call, hook.function, hook.parameters)

    async def _awaited(self, call: _Call, result: Any) -> Any:
        with call:
            value = await result
            call.returned(value)
            return value

    def look(self, role: str, name: str, value: Any, touched: set[str]) -> None:
        """Check what a hook returned."""
        own = str(self._device.torch)
        found = self.findings
        if value is None:
            found.append(f"{name} returns nothing (None): is a return statement missing?")
        if role == "preprocess" and touched:
            found.append(
                f"{name} works on {', '.join(sorted(touched))}: it runs during predictions of other requests, "
                "which have the device to themselves; leave this to predict, whose inputs are moved to the device"
            )
        elsewhere = _devices(value) - {"cpu"}
        if role == "predict":
            elsewhere -= {own}
            if not self._device.is_cpu and _devices(value) == {"cpu"}:
                found.append(f"{name} returns tensors on the CPU, not on {own}: was the model moved there?")
        if elsewhere:
            found.append(f"{name} leaves a tensor on {', '.join(sorted(elsewhere))}")
        if role == "predict" and not elsewhere:
            value = self._device.fetch(value)
        if role == "postprocess" or elsewhere or (role == "predict" and is_stream(value)):  # sent part by part
            return
        try:
            round_trip(value)  # as between a worker and the predictor process
        except Exception as error:  # the pickling of the user's own types raises anything
            found.append(
                f"the result of {name} cannot be sent to another process ({error}): set `stages: predictor`, and "
                "use --threads with `map`"
            )


class _Call:
    """One call of a hook; entered a second time to await an async hook."""

    def __init__(self, observer: Observer, role: str, name: str, item: Item) -> None:
        self._observer = observer
        self._role = role
        self._name = name
        self._received = describe({"preprocess": item.data, "predict": item.inputs}.get(role, item.outputs))
        self._began = 0
        self._touched: set[str] = set()
        self._ended = False
        self._modes = contextlib.ExitStack()

    def __enter__(self) -> None:
        self._began = self._began or time.monotonic_ns()
        if self._role == "preprocess":
            self._modes.enter_context(_DeviceUse(self._touched))

    def __exit__(self, _kind: Any, error: BaseException | None, _traceback: Any) -> None:
        self._modes.close()
        if error is not None and not self._ended:
            self._end(f"raised {type(error).__name__}", failed=True)

    def returned(self, value: Any) -> None:
        """Record the hook's result."""
        self._modes.close()
        if self._role == "predict":
            self._observer._device.wait()
        self._end(describe(value), failed=False)
        self._observer.look(self._role, self._name, value, self._touched)

    def _end(self, returned: str, *, failed: bool) -> None:
        self._ended = True
        self._observer.stages.append(
            {
                "name": self._name,
                "role": self._role,
                "received": self._received,
                "returned": returned,
                "milliseconds": round((time.monotonic_ns() - self._began) / 1e6, 3),
                "failed": failed,
            }
        )


class _DeviceUse(TorchDispatchMode):
    """Collects the devices, other than the CPU, that torch uses in this thread."""

    def __init__(self, touched: set[str]) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self._touched = touched

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        self._touched |= _devices(result) - {"cpu"}
        return result


def describe(value: Any, depth: int = 0) -> str:
    """Return the type and shape of a value and of the values in it, truncated if long.

    >>> describe({"ids": torch.zeros(2, 7), "names": ["a", "b"]})
    'dict {ids: tensor(2, 7) float32, names: list (2) of str}'
    """
    known = _leaf(value)
    if known is not None:
        return known
    kind = type(value).__name__
    if depth >= _MAX_DEPTH or not isinstance(value, Mapping | list | tuple):
        return kind
    if isinstance(value, Mapping):
        parts = [f"{key}: {describe(item, depth + 1)}" for key, item in list(value.items())[:_MAX_SHOWN]]
        return f"{kind} {{{', '.join(parts)}{', …' if len(value) > _MAX_SHOWN else ''}}}"
    if isinstance(value, tuple) and len(value) <= _MAX_SHOWN:
        return f"{kind} ({', '.join(describe(item, depth + 1) for item in value)})"
    items = value[:_MAX_INSPECTED]
    kinds = {type(item).__name__ if isinstance(item, str | bytes) else describe(item, depth + 1) for item in items}
    inner = f" of {kinds.pop()}" if len(kinds) == 1 else " of different things" if kinds else ""
    return f"{kind} ({len(value)}){inner}"


def _leaf(value: Any) -> str | None:
    """Describe a value that contains no others; return None for a container."""
    kind = type(value).__name__
    if isinstance(value, torch.Tensor):
        where = "" if value.device.type == "cpu" else f" on {value.device}"
        return f"tensor({', '.join(map(str, value.shape))}) {str(value.dtype).removeprefix('torch.')}{where}"
    if hasattr(value, "shape") and hasattr(value, "dtype"):
        return f"array({', '.join(map(str, value.shape))}) {value.dtype}"
    if is_stream(value):
        return f"{kind.removeprefix('async_')}: a streamed answer"
    if isinstance(value, bytes | bytearray | str):
        return f"{kind} ({len(value)})"
    return "nothing (None)" if value is None else None


def _devices(value: Any) -> set[str]:
    """Return the devices of the tensors in a value."""
    if isinstance(value, torch.Tensor):
        return {str(value.device)}
    parts = value.values() if isinstance(value, Mapping) else value if isinstance(value, list | tuple) else ()
    return set[str]().union(*map(_devices, parts))


if __name__ == "__main__":
    main()
    end(0, [])
