"""Loggers of handlergen's own, which nothing that a module does to `logging`, `sys.stdout` or `sys.stderr` silences.

They belong to a manager of their own: `logging.config.dictConfig`, `logging.disable` and `logging.basicConfig` reach
those of Python's manager only. Each record also goes to the handlers that the program has given to `logging`.
"""

from __future__ import annotations

import contextlib
import logging
import os
import sys
from collections.abc import Callable
from typing import Any

from .codec.redaction import WithoutSecrets

_WITHOUT_SECRETS = WithoutSecrets()


class _Logger(logging.Logger):
    """A logger that works whatever the program has done to `logging`."""

    def getEffectiveLevel(self) -> int:
        """Return the level that was set on this logger, else the lower one of handlergen's and the program's."""
        return self.level or min(ROOT.level, logging.getLogger(self.name).getEffectiveLevel())

    def isEnabledFor(self, level: int) -> bool:
        return level >= self.getEffectiveLevel()  # not cached: the program's level may change

    def makeRecord(self, *what: Any) -> logging.LogRecord:
        try:
            return super().makeRecord(*what)
        except Exception:  # of the program's own factory of records
            return logging.LogRecord(*what[:7])

    def handle(self, record: logging.LogRecord) -> None:
        _WITHOUT_SECRETS.filter(record)
        super().handle(record)

    def __reduce__(self) -> Any:
        return logger, (self.name,)


class DescriptorHandler(logging.Handler):
    """Writes records to a file descriptor, whatever becomes of `sys.stdout` and `sys.stderr`."""

    def __init__(self, descriptor: int) -> None:
        super().__init__()
        self._descriptor = descriptor

    def emit(self, record: logging.LogRecord) -> None:
        try:
            self.write(f"{self.format(record)}\n")
        except Exception:
            self.handleError(record)

    def write(self, text: str) -> None:
        """Write a text whole.

        Raises:
            OSError: Nobody reads it any more.
        """
        rest = text.encode("utf-8", "backslashreplace")
        while rest:
            rest = rest[os.write(self._descriptor, rest) :]


class _ProgramHandlers(logging.Handler):
    """Passes records to the handlers that the program has given to `logging` for loggers of the same name.

    Where handlergen has a handler of its own, those that write to a console would only repeat what it says.
    """

    def emit(self, record: logging.LogRecord) -> None:
        current: logging.Logger | None = logging.getLogger(record.name)
        if current is None or record.levelno < current.getEffectiveLevel():
            return
        handlers: list[logging.Handler] = []
        while current is not None:
            handlers += current.handlers
            current = current.parent if current.propagate else None
        alone = len(ROOT.handlers) == 1
        if alone and not handlers and logging.lastResort is not None:
            handlers.append(logging.lastResort)
        for handler in handlers:
            if handler in ROOT.handlers:  # the predictor process's has records of all loggers
                continue
            if record.levelno >= handler.level and (alone or not _is_console(handler)):
                with contextlib.suppress(Exception):
                    handler.handle(record)


def _is_console(handler: logging.Handler) -> bool:
    stream: Any = getattr(handler, "stream", None)
    try:
        return stream in (sys.stdout, sys.stderr, sys.__stdout__, sys.__stderr__) or stream.fileno() in (1, 2)
    except (AttributeError, OSError, ValueError):  # no stream, or none with a descriptor
        return False


ROOT = logging.RootLogger(logging.WARNING)
"""Its handlers get what handlergen and `context.logger` log; its level is the one of loggers that have none."""
ROOT.addHandler(_ProgramHandlers())
_manager = logging.Manager(ROOT)
_manager.setLoggerClass(_Logger)
_output: DescriptorHandler | None = None


def logger(name: str = "handlergen") -> logging.Logger:
    """Return handlergen's own logger of a name. `logging.getLogger` returns another one."""
    return _manager.getLogger(name)


def use(handler: logging.Handler) -> None:
    """Let a handler of handlergen's own have everything from level INFO on; consoles of the program repeat nothing."""
    ROOT.addHandler(handler)
    ROOT.setLevel(logging.INFO)


def log_to_stdout() -> None:
    """Log to the standard output that this process has now: a worker's is what TorchServe logs."""
    global _output  # noqa: PLW0603 - a process has one standard output
    if _output is not None:
        ROOT.removeHandler(_output)
    _output = DescriptorHandler(os.dup(1))
    use(_output)


def printer() -> Callable[[str], None]:
    """Return a function that writes to this process's standard output, which TorchServe reads."""
    if _output is not None:
        return _output.write
    stream = sys.stdout  # now: a hook may redirect it for a while

    def write(text: str) -> None:
        stream.write(text)
        stream.flush()

    return write


def reopen_streams() -> None:
    """Open `sys.stdout` and `sys.stderr` again if the module has closed them: TorchServe prints to them, too."""
    for name, descriptor in (("stdout", 1), ("stderr", 2)):
        if getattr(getattr(sys, name), "closed", True):
            # Python does not close the descriptors with its own streams.
            setattr(sys, name, open(descriptor, "w", buffering=1, errors="backslashreplace", closefd=False))  # noqa: SIM115


def take_over_logging() -> None:
    """Let all of this process's loggers log to handlergen's output: the module has failed, TorchServe says the rest."""
    logging.disable(logging.NOTSET)
    logging.setLogRecordFactory(logging.LogRecord)
    root = logging.getLogger()
    root.disabled = False
    root.setLevel(logging.INFO)
    if _output is not None:
        root.handlers[:] = [_output]
