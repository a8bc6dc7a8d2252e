"""Wait until a starting server is ready, or find in its logs why it failed.

TorchServe itself only says "worker died". The cause is in the worker's output, the model log: a worker of handlergen's
writes a report (`runtime/environment.py`: `REPORT`). Of any other handler `model_service_worker.py` logs the exception
of `initialize`, then dies with a second one that says nothing ("500 - Unknown exception").
"""

from __future__ import annotations

import re
import signal
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from handlergen.client import Client, ModelStatus
from handlergen.errors import HandlergenError, ModuleFailed, ServerError, TlsError
from handlergen.project.settings import shown
from handlergen.runtime.environment import REPORT
from handlergen.runtime.examples import EXAMPLE
from handlergen.server.launching import ServerState
from handlergen.server.model_store import ModelVersion
from handlergen.server.properties import ServerSettings

_POLL_S = 0.25
_LAST_LINES = 30
_DEATHS = 3
TRACEBACK = "Traceback (most recent call last):"
DIED = "Backend worker process died."
_STARTED = "Torch worker started."
_BORN = re.compile(r"s_name_part0=|Listening on (addr:)?port")
#: What TorchServe prints after a worker's report (model_service_worker.py, load_model).
AFTER_REPORT = re.compile(r"Failed to load model |Load model \S+ (cpu|cuda) OOM|" + re.escape(DIED))
#: The stack that Python's faulthandler prints when a signal ends the process.
_CRASH = "Fatal Python error: "
_LOADING = re.compile(r'model_service_worker\.py", line \d+ in load_model$')
#: How a worker dies that could not answer, because TorchServe had closed the connection in order to end it.
_HUNG_UP = re.compile(r'/ts/model_service_worker\.py", .*\n.*\n(BrokenPipeError|ConnectionResetError): .*\s*$')
_SIGNALS = {
    "Segmentation fault": signal.SIGSEGV,
    "Aborted": signal.SIGABRT,
    "Bus error": signal.SIGBUS,
    "Floating point exception": signal.SIGFPE,
    "Floating-point exception": signal.SIGFPE,
    "Illegal instruction": signal.SIGILL,
}
_COMPLETE_WITHIN_S = 3.0
#: A line of the model log: time, level, thread (which names worker and model), logger, text.
_LINE = re.compile(
    r"\[\w+ *\] (?P<worker>W-\d+)-(?P<model>\S+)-(?P<stream>stdout|stderr) (?:MODEL_LOG|org\.\S+) - (?P<text>.*)$"
)
#: The start of an event, which may have several lines: time, level, thread, logger.
_EVENT = re.compile(r"^\d{4}-\d\d-\d\dT[\d:,.]+ +\[\w+ *\] \S.*? - ", re.MULTILINE)
_FRAME = re.compile(r'^\s*File "(?P<file>[^"]+)", line \d+')
#: TorchServe unpacks an archive into TEMP/models/<32 hex digits>; the rest is the path inside the archive.
_MODEL_DIR = re.compile(r"(?:/[^/\"\n]+)*/models/[0-9a-f]{32}/")
#: Frames of TorchServe, the runtime, the generated handler and the import system: not the user's.
_OURS = re.compile(
    r"/site-packages/ts/|/ts/model_\w+\.py|handlergen_runtime/|handlergen_handler\.py"
    r"|<frozen |/importlib/__init__\.py"
)

Progress = Callable[[Sequence[ModelStatus]], None]


class ServerLogs:
    """The text that a server appends to its logs from now on.

    Args:
        directory: Directory of model_log.log and ts_log.log; the files need not exist yet.
    """

    def __init__(self, directory: Path) -> None:
        self.model_log = directory / "model_log.log"
        self.server_log = directory / "ts_log.log"
        self._start = {path: _mark(path) for path in (self.model_log, self.server_log)}

    def new_text(self, path: Path) -> str:
        """Return the text appended to one of the two logs since this object was created."""
        inode, size = self._start[path]
        try:
            with path.open("rb") as file:
                # A log that was rotated meanwhile is a new file: all of it is new.
                if _mark(path)[0] == inode:
                    file.seek(size)
                return file.read().decode("utf-8", "replace")
        except OSError:
            return ""


def wait_until_ready(
    state: ServerState,
    settings: ServerSettings,
    logs: ServerLogs,
    *,
    expected: Mapping[ModelVersion, str],
    timeout: float,
    progress: Progress | None,
) -> tuple[ModelStatus, ...]:
    """Wait until every archive of the store is registered and all its workers are READY; return the models.

    `/ping` is not enough: it returns Healthy while models are still loading.

    Args:
        expected: (Model name, version) -> archive file; see `expected_models`.

    Raises:
        ModuleFailed: A worker's load raised.
        TlsError: The server's certificate is refused.
        ServerError: The server exited, refused an archive, or was not ready in time.
    """
    directory = Path(state.config).parent
    deadline = time.monotonic() + timeout
    models: tuple[ModelStatus, ...] = ()
    with Client(settings, directory=directory, timeout=30) as client:
        while True:
            if not state.running():
                raise ServerError(f"TorchServe exited during startup\n{_last_output(state, logs)}".rstrip())
            try:
                models = tuple(client.status())
            except TlsError:
                raise
            except HandlergenError:  # the server is not listening yet
                pass
            else:
                _check_registered(expected, {(model.name, model.version) for model in models}, logs)
                if progress:
                    progress(models)
                if all(model.ready for model in models):
                    return models
            check_workers(logs)
            if time.monotonic() > deadline:
                states = (f"{m.name} {m.version}: {m.ready_workers} of {m.min_workers} workers READY" for m in models)
                raise ServerError(
                    f"not ready after {timeout:g} s: {', '.join(states) or 'the server is not listening yet'}",
                    hint=f"worker output: {shown(logs.model_log)}; --timeout sets how long to wait",
                )
            time.sleep(_POLL_S)


def _check_registered(expected: Mapping[ModelVersion, str], registered: set[ModelVersion], logs: ServerLogs) -> None:
    """Raise ServerError for the archives that TorchServe refused.

    TorchServe listens only after it has tried every archive, so a model that is missing now was refused. A model
    whose requirements could not be installed stays registered without workers: only the log shows the failure.
    """
    reasons = registration_failures(logs.new_text(logs.server_log))
    refused = {file for model, file in expected.items() if model not in registered or file in reasons}
    if not refused:
        return
    raise ServerError(
        "\n".join(f"TorchServe refused {file}: {reasons.get(file, 'no reason given')}" for file in sorted(refused)),
        hint=f"see {shown(logs.server_log)}",
    )


def check_workers(logs: ServerLogs, version: ModelVersion | None = None, *, scaling: bool = False) -> None:
    """Raise for a worker that failed to load its model, because TorchServe would retry for minutes.

    A worker that died without a traceback (killed, perhaps out of memory) may succeed on the next attempt, so only
    a model's third such death counts.

    Args:
        version: Only this version of this model counts; None: every model does.
        scaling: Surplus workers may just be ended: deaths without an exception do not count.

    Raises:
        ModuleFailed: A worker could not load its model; `traceback` is the user's.
        ServerError: Workers died three times without an exception.
    """
    failure = _failure(logs, version)
    if failure is None and not scaling:
        for model, reasons in silent_deaths(logs.new_text(logs.server_log)).items():
            if len(reasons) < _DEATHS or (version is not None and model != version[0]):
                continue
            time.sleep(_POLL_S)  # the last words of a worker may come after TorchServe has seen it die
            failure = _failure(logs, version)
            if failure is None:
                raise ServerError(
                    f"model {model}: its workers die without an exception while loading it ({reasons[-1]})\n"
                    "the process exited or was killed, perhaps because memory ran out",
                    hint=f"worker output: {shown(logs.model_log)}",
                )
    if failure is None:
        return
    deadline = time.monotonic() + _COMPLETE_WITHIN_S
    while not failure.complete and time.monotonic() < deadline:
        time.sleep(_POLL_S)
        failure = _failure(logs, version) or failure
    advice = ""
    if failure.traceback.startswith(EXAMPLE):
        advice = "`handlergen check SOURCE --examples` asks the examples without a server. "
    elif failure.traceback:
        advice = (
            "`handlergen predict SOURCE DATA` loads the model without a server; once that works, archive it again with "
            "--force. "
        )
    raise ModuleFailed(
        f"model {failure.model}: worker {failure.worker} could not load it: {failure.reason}",
        traceback=failure.traceback,
        hint=f"{advice}Worker output: {shown(logs.model_log)}",
    )


def _failure(logs: ServerLogs, version: ModelVersion | None) -> WorkerFailure | None:
    """Return the first failure of a worker, of this version of a model if there is one; one with a traceback if any."""
    found = load_failures(logs.new_text(logs.model_log))
    found = [each for each in found if version is None or each.model == "_".join(version)]
    return next((each for each in found if each.traceback), found[0] if found else None)


def _last_output(state: ServerState, logs: ServerLogs) -> str:
    console = Path(state.console).read_text("utf-8", "replace")
    lines = (console + logs.new_text(logs.server_log)).strip().splitlines()
    return "\n".join(lines[-_LAST_LINES:])


def _mark(path: Path) -> tuple[int, int]:
    try:
        found = path.stat()
    except OSError:
        return -1, 0
    return found.st_ino, found.st_size


@dataclass(frozen=True)
class WorkerFailure:
    """One death of a worker before it was ready.

    Attributes:
        model: `NAME_VERSION`, as TorchServe names it in the log.
        worker: `W-9000`.
        reason: One line: what the worker's environment or the archive lacks, the exception, or the signal.
        traceback: The user's traceback, cut to the user's frames; "" if the user's code has not failed.
        complete: False if more of the traceback may follow in the log.
    """

    model: str
    worker: str
    reason: str
    traceback: str
    complete: bool = True


@dataclass(frozen=True)
class _Life:
    """What one process of a worker has printed."""

    model: str
    worker: str
    stdout: list[str] = field(default_factory=list)
    stderr: list[str] = field(default_factory=list)

    def failure(self) -> WorkerFailure | None:
        return self._reported() or self._crashed() or self._died()

    def _reported(self) -> WorkerFailure | None:
        """Return the failure that a worker of handlergen's has reported."""
        for number, text in enumerate(self.stdout):
            if text.startswith(REPORT):
                report = self.stdout[number + 1 :]
                end = next((place for place, line in enumerate(report) if AFTER_REPORT.match(line)), None)
                reason = text.removeprefix(REPORT)
                return WorkerFailure(self.model, self.worker, reason, _shortened(report[:end]), end is not None)
        return None

    def _crashed(self) -> WorkerFailure | None:
        """Return the failure of a process that a signal has ended in `load_model`."""
        start = next((number for number, text in enumerate(self.stderr) if text.startswith(_CRASH)), None)
        if start is None or not any(map(_LOADING.search, self.stderr[start:])):
            return None
        what = self.stderr[start].removeprefix(_CRASH)
        found = _SIGNALS.get(what)
        reason = f"the worker was ended by signal {found.value} ({found.name})" if found else what
        return WorkerFailure(self.model, self.worker, reason, _shortened(self.stderr[start:]))

    def _died(self) -> WorkerFailure | None:
        """Return the failure that TorchServe's own code has logged."""
        end = next((number for number, text in enumerate(self.stdout) if text.startswith(DIED)), None)
        if end is not None:
            # A RuntimeError is logged before this line, and a second traceback after it only repeats the failure;
            # any other exception is logged after it.
            traceback = user_traceback(self.stdout[:end]) or user_traceback(self.stdout[end:])
            first, again, _rest = traceback.partition("\nFailed to load model ")
            if again and TRACEBACK in first:
                traceback = first.rstrip() + "\n"
            if _HUNG_UP.search(traceback):
                return None
        elif _STARTED not in self.stdout and TRACEBACK in self.stderr:
            return self._not_started()
        else:
            return None
        reason = next(reversed(traceback.splitlines()), "no exception")
        return WorkerFailure(self.model, self.worker, reason, traceback)

    def _not_started(self) -> WorkerFailure:
        """Return the failure of a worker that died before any code of the archive ran: TorchServe's imports failed."""
        lines = _first_traceback(self.stderr)
        reason, traceback = f"TorchServe's own imports fail: {lines[-1]}", "\n".join(lines)
        missing = re.match(r"ModuleNotFoundError: No module named '([^'.]+)", lines[-1])
        place = re.search(r'File "([^"]+)/ts/\w+\.py"', traceback)
        if missing and place:
            reason = f"TorchServe needs the package {missing[1]}, and the Python that runs {place[1]}/ts has none"
            traceback = ""
        return WorkerFailure(self.model, self.worker, reason, traceback)


def load_failures(log: str) -> list[WorkerFailure]:
    """Return the workers that could not load their model according to a model log, in the order of their starts."""
    lives: list[_Life] = []
    current: dict[tuple[str, str], _Life] = {}
    for line in log.splitlines():
        found = _LINE.search(line)
        if found is None:
            continue
        key, text = (found["model"], found["worker"]), found["text"]
        life = current.get(key)
        begins = found["stream"] == "stdout" and _BORN.match(text)
        if life is None or (begins and life.stdout and not _BORN.match(life.stdout[-1])):
            life = current[key] = _Life(*key)
            lives.append(life)
        getattr(life, found["stream"]).append(text)
    return [failure for life in lives if (failure := life.failure()) is not None]


def silent_deaths(log: str) -> dict[str, list[str]]:
    """Return model name -> the reason in ts_log.log for each worker that ended while loading the model."""
    deaths: dict[str, list[str]] = {}
    for found in re.finditer(r"BatchAggregator - Load model failed: (\S+), error: (.*)", log):
        deaths.setdefault(found[1], []).append(found[2].strip())
    return deaths


def user_traceback(lines: list[str]) -> str:
    """Return the first traceback in these lines, with chained causes: the user's frames, and paths in the archive."""
    return _shortened(_first_traceback(lines))


def _first_traceback(lines: list[str]) -> list[str]:
    """Return the lines from the first traceback on, up to the next that is not one of its chained causes."""
    starts = [number for number, text in enumerate(lines) if text == TRACEBACK]
    if not starts:
        return []
    end = next((number for number in starts[1:] if lines[number - 1]), None)
    return lines[starts[0] : end]


def _shortened(lines: list[str]) -> str:
    """Return a traceback, or a faulthandler's stack, with the user's frames only; with all if none is the user's."""
    found = [_MODEL_DIR.sub("", line) for line in lines if not line.startswith("Extension modules: ")]
    kept = _cut(found)
    return "\n".join(kept if any(map(_FRAME.match, kept)) else found).strip("\n")


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
