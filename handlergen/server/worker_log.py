"""Find in TorchServe's logs why a worker did not start.

TorchServe itself only says "worker died". The cause is in the worker's output: `model_service_worker.py`
logs the exception of `initialize`, then dies with a second one that says nothing ("500 - Unknown exception").
"""

from __future__ import annotations

import re
from dataclasses import dataclass

_TRACEBACK = "Traceback (most recent call last):"
_DIED = "Backend worker process died."
_BORN = re.compile(r"s_name_part0=|Listening on (addr:)?port")
#: A line of the model log: time, level, thread (which names worker and model), logger, text.
_LINE = re.compile(
    r"\[\w+ *\] (?P<worker>W-\d+)-(?P<model>\S+)-(?:stdout|stderr) (?:MODEL_LOG|org\.\S+) - (?P<text>.*)$"
)
#: The start of an event, which may have several lines: time, level, thread, logger.
_EVENT = re.compile(r"^\d{4}-\d\d-\d\dT[\d:,.]+ +\[\w+ *\] \S.*? - ", re.MULTILINE)
_FRAME = re.compile(r'^\s*File "(?P<file>[^"]+)", line \d+')
#: TorchServe unpacks an archive into TEMP/models/<32 hex digits>; the rest is the path inside the archive.
_MODEL_DIR = re.compile(r"(?:/[^/\"\n]+)*/models/[0-9a-f]{32}/")
#: Frames of TorchServe, the runtime, the generated handler and the import system: not the user's.
_OURS = re.compile(
    r"/site-packages/ts/|/ts/model_\w+\.py|handlergen_runtime/|handlergen_handler\.py"
    r"|<frozen importlib|/importlib/__init__\.py"
)


@dataclass(frozen=True)
class WorkerFailure:
    """One death of a worker before it was ready.

    Attributes:
        model: `NAME_VERSION`, as TorchServe names it in the log.
        worker: `W-9000`.
        traceback: The user's traceback, cut to the user's frames; "" when the worker printed none.
    """

    model: str
    worker: str
    traceback: str


def load_failures(log: str) -> list[WorkerFailure]:
    """Return the workers that died of an exception according to a model log, in the order of their starts."""
    lives: list[tuple[str, str, list[str]]] = []
    current: dict[tuple[str, str], list[str]] = {}
    for line in log.splitlines():
        found = _LINE.search(line)
        if found is None:
            continue
        key, text = (found["model"], found["worker"]), found["text"]
        if key not in current or (_BORN.match(text) and not _BORN.match((current[key] or [""])[-1])):
            current[key] = []
            lives.append((*key, current[key]))
        current[key].append(text)
    failures = []
    for model, worker, life in lives:
        end = next((number for number, text in enumerate(life) if text.startswith(_DIED)), None)
        if end is not None:
            # A RuntimeError is logged before this line, and a second traceback after it only repeats the failure;
            # any other exception is logged after it.
            traceback = user_traceback(life[:end]) or user_traceback(life[end:])
            first, again, _rest = traceback.partition("\nFailed to load model ")
            if again and _TRACEBACK in first:
                traceback = first.rstrip() + "\n"
            failures.append(WorkerFailure(model, worker, traceback))
        elif _TRACEBACK in life and "Torch worker started." not in life:
            # The worker died before TorchServe's code could report it: an import of TorchServe failed.
            failures.append(WorkerFailure(model, worker, user_traceback(life)))
    return failures


def silent_deaths(log: str) -> dict[str, list[str]]:
    """Return model name -> the reason in ts_log.log for each worker that ended while loading the model."""
    deaths: dict[str, list[str]] = {}
    for found in re.finditer(r"BatchAggregator - Load model failed: (\S+), error: (.*)", log):
        deaths.setdefault(found[1], []).append(found[2].strip())
    return deaths


def user_traceback(lines: list[str]) -> str:
    """Return the first traceback in these lines, with chained causes: the user's frames, and paths in the archive."""
    start = next((number for number, text in enumerate(lines) if text == _TRACEBACK), None)
    if start is None:
        return ""
    kept = [_MODEL_DIR.sub("", line) for line in _cut(lines[start:])]
    if not any(_FRAME.match(line) for line in kept):
        kept = [_MODEL_DIR.sub("", line) for line in lines[start:]]
    return "\n".join(kept).rstrip()


def _cut(lines: list[str]) -> list[str]:
    """Remove the frames that are not the user's: a `File` line and the deeper lines below it."""
    out = []
    dropping = False
    for line in lines:
        if _FRAME.match(line):
            dropping = bool(_OURS.search(line))
        elif not line.startswith("    "):
            dropping = False
        if not dropping:
            out.append(line)
    return out


def registration_failures(log: str) -> dict[str, str]:
    """Return the archives that TorchServe refused to load: file name -> what ts_log.log says about it.

    TorchServe continues without them. The text includes the last lines of pip's output if the requirements could not
    be installed.
    """
    refused: dict[str, str] = {}
    before = ""
    for event in _EVENT.split(log):
        text, *more = event.splitlines() or [""]
        if text.startswith("Failed to load model: "):
            name = text.removeprefix("Failed to load model: ").strip().rpartition("/")[2]
            causes = [line for line in more if line and not line.startswith(("\t", " "))]
            refused[name] = "\n".join([*causes, before]).strip()
        before = "\n".join([text, *more]) if "pip package installation failed" in text else ""
    return refused
