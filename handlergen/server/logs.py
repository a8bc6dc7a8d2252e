"""The model log of a server: where it is, its lines joined to events, and one request's events."""

from __future__ import annotations

import contextlib
import gzip
import os
import re
import time
from collections import deque
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import IO

import psutil

from handlergen.errors import HandlergenError, ServerError
from handlergen.project.settings import shown
from handlergen.runtime.environment import REPORT
from handlergen.server.configuration import handlergen_command
from handlergen.server.launching import read_state
from handlergen.server.lifecycle import log_directory
from handlergen.server.properties import read_properties
from handlergen.server.readiness import AFTER_REPORT, DIED, TRACEBACK

LEVELS = ("debug", "info", "warning", "error")
_POLL_S = 0.25
_LINES_BETWEEN = 1000
"""More lines of other workers do not come between two lines of a traceback."""

#: A line that log4j2.xml lets TorchServe write: time, level, thread (worker, model and stream), logger, text.
_LINE = re.compile(
    r"(?P<time>\d{4}-\d\d-\d\dT[\d:,.]+) +\[(?P<level>\w+) *\] "
    r"(?P<worker>W-\d+)-(?P<model>\S+)-(?P<stream>stdout|stderr) \S+ - (?P<text>.*)"
)
#: What TorchServe's worker prints about itself (ts/model_service_worker.py, ts/handler_utils, ts/metrics).
_NOISE = re.compile(
    r"s_name_part0=|Listening on (addr:)?port|Successfully loaded \S+metrics\S*\.yaml|Torch worker started\.$"
    r"|Python runtime: |Connection accepted: |model_name: \S+, batchSize: \d|(OpenVINO|ONNX) (is )?(not )?enabled"
    r"|Torch TensorRT (not )?enabled|\[METRICS\]|Backend received inference at: \d|Frontend disconnected\.$"
)
_PROCESS = re.compile(r"\[PID\](\d+)$")
_CHAINED = ("The above exception was the direct cause of", "During handling of the above exception")
#: Messages of handlergen's that end in a blank line, or before what TorchServe says of the same failure.
_FAILURE = re.compile(rf"request \S+ failed in .* with status (?P<status>\d{{3}})$|{re.escape(REPORT)}")
_FATAL = "Fatal Python error: "
_OF_FATAL = ("Stack (most recent call first)", "Current thread ", "Thread 0x", "  ", "Extension modules: ")
"""What `faulthandler` writes below it, and blank lines."""
_TOLD_LEVEL = re.compile(r"\W*(?:(?P<error>ERROR|CRITICAL|FATAL)|(?P<warning>WARN(?:ING)?)|(?P<debug>DEBUG))\b")
_LOG4J_LEVELS = {"TRACE": "debug", "DEBUG": "debug", "INFO": "info", "WARN": "warning"}


@dataclass(frozen=True)
class LogEvent:
    """What a worker or a predictor process printed: one line, or a traceback with the message before it.

    Attributes:
        time: As the log has it, in the server's time zone; "" for a predictor process, which prints without.
        level: One of `LEVELS`. TorchServe gives stdout INFO and stderr WARN; a traceback is an error, and a text that
            begins with a level has that.
        source: `W-9000`, or the file of a predictor process.
        model: `NAME_VERSION`; "" for a predictor process.
        text: Without a line break at its end.
    """

    time: str
    level: str
    source: str
    model: str
    text: str


@dataclass(frozen=True)
class LogFilter:
    """Which events are wanted: those of one request, of this level or above, of one model."""

    request_id: str | None = None
    level: str = LEVELS[0]
    model: str | None = None

    def wants(self, event: LogEvent) -> bool:
        if LEVELS.index(event.level) < LEVELS.index(self.level):
            return False
        if self.model is not None:
            name, _, version = self.model.rpartition("_")
            predictors = (f"predictor-{self.model}-", f"predictor-{name}-{version}-")
            if self.model not in (event.model, event.model.rpartition("_")[0]) and not (
                not event.model and event.source.startswith(predictors)
            ):
                return False
        if self.request_id is None:
            return True
        # The id alone: `a` is neither `a-b` nor `a.1`, but may begin `a: text`.
        alone = rf"(?<![\w-]){re.escape(self.request_id)}(?![\w-]|[.:~=+@]\w)"
        return re.search(alone, event.text) is not None


@dataclass(frozen=True)
class ModelLog:
    """The files that a server's workers and predictor processes print to.

    Attributes:
        path: The model log; it need not exist.
        config: The server's configuration.
    """

    path: Path
    config: Path

    @classmethod
    def of(cls, config: Path) -> ModelLog:
        """Find the log of the server on a configuration: the running one's, or that of the last one.

        Its directory is `logs` beside the configuration, or LOG_LOCATION of the server, or where the log configuration
        has the file `model_log.log`.

        Raises:
            HandlergenError: The configuration is missing or invalid.
        """
        settings = read_properties(config)
        directory, environ = config.resolve().parent, dict(os.environ)
        state = read_state(config)
        if state is not None and state.running():
            with contextlib.suppress(psutil.Error):  # another user's
                environ = psutil.Process(state.pid).environ()
        default = log_directory(directory, environ) / "model_log.log"
        try:
            text = (directory / settings.log_config).read_text("utf-8") if settings.log_config else ""
        except (OSError, ValueError):
            text = ""
        named = re.search(r"""\bfileName\s*=\s*["']([^"']*model_log\.log)["']""", text)
        return cls(directory / _resolved(named[1], text, environ) if named else default, config)

    def is_running(self) -> bool:
        """Return whether `handlergen serve` has a server running on the configuration."""
        state = read_state(self.config)
        return state is not None and state.running()

    def rotated(self) -> list[Path]:
        """Return the older files, the oldest first (`filePattern` in log4j2.xml).

        While log4j compresses one, it is there twice: whole, and as a .gz that is not complete.
        """
        found = []
        for path in self.path.parent.glob(f"{self.path.stem}.*.log*"):
            if path != self.path and not (path.suffix == ".gz" and path.with_suffix("").exists()):
                with contextlib.suppress(FileNotFoundError):  # removed meanwhile
                    found.append((path.stat().st_mtime, path))
        return [path for _, path in sorted(found)]

    def events(self, *, rotated: bool) -> Iterator[LogEvent]:
        """Yield the events of the model log, then those of the predictor processes' files, which have no times.

        Raises:
            HandlergenError: There is no log, or a file cannot be read.
        """
        self.check()
        joined = EventJoiner()
        for path in [*(self.rotated() if rotated else ()), self.path]:
            for line in _lines(path):
                yield from joined.add(line)
        yield from joined.rest()
        old = self.path.parent.glob("predictor-*.log.1") if rotated else ()
        for path in [*old, *self._growing()[1:]]:
            yield from (_printed(path, line) for line in _lines(path))

    def follow(self) -> Iterator[LogEvent]:
        """Return the events from this call on, for ever; files may be rotated, and begun later.

        Raises:
            HandlergenError: A file cannot be read.
        """
        tails = {path: _Tail(path, from_start=False) for path in self._growing() if path.exists()}
        return self._follow(tails)

    def _follow(self, tails: dict[Path, _Tail]) -> Iterator[LogEvent]:
        joined = EventJoiner()
        while True:
            for path in self._growing():
                if path not in tails:
                    tails[path] = _Tail(path, from_start=True)
                for line in tails[path].new_lines():
                    if path == self.path:
                        yield from joined.add(line)
                    else:
                        yield _printed(path, line)
            time.sleep(_POLL_S)
            yield from joined.rest(idle_s=2 * _POLL_S)

    def _growing(self) -> list[Path]:
        return [self.path, *sorted(self.path.parent.glob("predictor-*.log"))]

    def check(self) -> None:
        """Raise HandlergenError if there is no log."""
        if self.path.exists():
            return
        raise ServerError(
            f"there is no model log {shown(self.path)}: no server has run on {shown(self.config)}",
            hint=f"`{handlergen_command('serve', self.config)}` starts one; -c selects another server's configuration",
        )


class EventJoiner:
    """Joins the lines of a model log to events: a traceback is one event with the message above it.

    Workers' lines come mixed. TorchServe's own start-up lines become one, and what it repeats of a worker's report of a
    failed load is left out. Events are yielded in the order of their
    first lines.
    """

    def __init__(self) -> None:
        self._lines = 0
        self._events: deque[_Open] = deque()
        self._last: dict[str, _Open] = {}

    def add(self, line: str) -> Iterator[LogEvent]:
        """Yield the events that are complete now that this line is known."""
        found = _LINE.fullmatch(line)
        if found is None:  # of another log configuration
            key, text, event = "", line, _Open("", "INFO", "", "", line)
        else:
            key, text = " ".join(found.group("worker", "model", "stream")), found["text"]
            event = _Open(found["time"], found["level"], found["worker"], found["model"], text)
        self._lines += 1
        last = self._last.get(key)
        if last is not None and not last.complete and last.takes(text):
            last.lines.append(text)
            last.changed, last.line = time.monotonic(), self._lines
            return
        if last is not None:
            last.complete = True
            event.repeats = last.reports and AFTER_REPORT.match(text) is not None
        self._last.pop(key, None)
        if not _NOISE.match(text) and text:
            if process := _PROCESS.match(text):
                event.lines = [f"worker started, process {process[1]}"]
            event.line = self._lines
            self._events.append(event)
            self._last[key] = event
        yield from self._ready()

    def rest(self, *, idle_s: float = 0.0) -> Iterator[LogEvent]:
        """Yield the events to which nothing was added for so long, in seconds."""
        until = time.monotonic() - idle_s
        for event in self._events:
            event.complete = event.complete or event.changed <= until
        self._last = {key: event for key, event in self._last.items() if not event.complete}
        yield from self._ready()

    def _ready(self) -> Iterator[LogEvent]:
        # The last event of a worker that prints nothing more must not hold up all others.
        while self._events and (self._events[0].complete or self._lines - self._events[0].line > _LINES_BETWEEN):
            self._events[0].complete = True
            event = self._events.popleft()
            if not event.repeats:
                yield event.event()


class _Open:
    """An event whose lines are still being read."""

    def __init__(self, time_: str, level: str, source: str, model: str, text: str) -> None:
        self._head = (time_, level, source, model)
        self.lines = [text]
        self.changed = time.monotonic()
        self.line = 0
        self.complete = False
        self.repeats = False

    @property
    def reports(self) -> bool:
        """Whether it is a worker's report of a failed load, or TorchServe's repetition of one."""
        return self.repeats or self.lines[0].startswith(REPORT)

    def takes(self, text: str) -> bool:
        """Return whether a line belongs to this event: see `traceback.print_exception` for the form of a traceback."""
        last = self.lines[-1]
        if self.lines[0].startswith(_FATAL):
            return not text or text.startswith(_OF_FATAL)
        if _FAILURE.match(self.lines[0]):  # its end is a blank line that no chained traceback follows
            more = bool(last) or text.startswith(_CHAINED) or (text == TRACEBACK and self._chained())
            return more and not AFTER_REPORT.match(text)
        if text == TRACEBACK:
            return TRACEBACK not in self.lines or (not last and self._chained())
        if TRACEBACK not in self.lines or not text:
            return TRACEBACK in self.lines and bool(last)
        if not last:
            return text.startswith(_CHAINED)
        return last.startswith((" ", TRACEBACK, *_CHAINED)) or text.startswith(" ")

    def _chained(self) -> bool:
        return len(self.lines) > 1 and self.lines[-2].startswith(_CHAINED)

    def event(self) -> LogEvent:
        time_, level, source, model = self._head
        return LogEvent(time_, self._level(level), source, model, "\n".join(self.lines).rstrip())

    def _level(self, log4j: str) -> str:
        text = self.lines[0]
        if failure := _FAILURE.match(text):
            return "debug" if (failure["status"] or "500") < "500" else "error"
        if TRACEBACK in self.lines or text == DIED or text.startswith(_FATAL):
            return "error"
        return _told_level(text) or _LOG4J_LEVELS.get(log4j, "error")


class _Tail:
    """The lines that are added to a file which may be rotated, or not exist yet.

    Args:
        from_start: All of the file is new, not only what comes from now on.
    """

    def __init__(self, path: Path, *, from_start: bool) -> None:
        self._path = path
        self._begun = b""
        self._file = self._opened()
        if self._file is not None and not from_start:
            self._file.seek(0, os.SEEK_END)

    def _opened(self) -> IO[bytes] | None:
        try:
            return self._path.open("rb")
        except FileNotFoundError:
            return None
        except OSError as error:
            raise _unreadable(self._path, error) from error

    def new_lines(self) -> Iterator[str]:
        """Yield them; first the rest of a file that was replaced."""
        more = True
        while more:
            self._file = self._file or self._opened()
            if self._file is None:
                return
            more = self._replaced(self._file)
            *lines, self._begun = (self._begun + self._file.read()).split(b"\n")
            yield from (_text(line) for line in lines)
            if more:
                self._file.close()
                self._file, self._begun = None, b""

    def _replaced(self, file: IO[bytes]) -> bool:
        """Return whether the path names another file now, or the same one begun anew."""
        try:
            found = self._path.stat()
        except FileNotFoundError:
            return False
        own = os.fstat(file.fileno())
        return not os.path.samestat(found, own) or own.st_size < file.tell()


def _lines(path: Path) -> Iterator[str]:
    try:
        with gzip.open(path, "rb") if path.suffix == ".gz" else path.open("rb") as file:
            for line in file:
                yield _text(line.rstrip(b"\n"))
    except (OSError, EOFError) as error:  # BadGzipFile is an OSError
        raise _unreadable(path, error) from error


def _text(line: bytes) -> str:
    return line.decode("utf-8", "replace").rstrip("\r")


def _told_level(text: str) -> str | None:
    """Return the level that a text begins with."""
    told = _TOLD_LEVEL.match(text)
    return told.lastgroup if told else None


def _printed(path: Path, line: str) -> LogEvent:
    return LogEvent("", _told_level(line) or "info", path.name.partition(".log")[0], "", line)


def _resolved(text: str, configuration: str, environ: dict[str, str]) -> str:
    """Replace `${name}` by a property of a log4j2.xml, and `${env:NAME:-default}` by an environment variable."""
    properties = dict(re.findall(r"""<Property\s+name=["'](\w+)["']\s*>([^<]*)</Property>""", configuration))
    for name, value in properties.items():
        text = text.replace(f"${{{name}}}", value)
    return re.sub(r"\$\{env:(\w+)(?::-([^}]*))?\}", lambda found: environ.get(found[1]) or found[2] or "", text)


def _unreadable(path: Path, error: Exception) -> HandlergenError:
    reason = error.strerror if isinstance(error, OSError) and error.strerror else str(error)
    return HandlergenError(
        f"the log file {shown(path)} cannot be read: {reason}",
        hint="run the command as the user that runs the server, or remove the file if it is damaged",
    )
