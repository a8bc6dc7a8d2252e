"""What a model's code sees of the process: the working directory, `sys.path`, and the modules of its own files.

All three belong to the process, so models take turns. Each has its own, as in a process of its own.
"""

from __future__ import annotations

import contextlib
import importlib
import os
import sys
import sysconfig
import threading
from collections.abc import Iterable, Iterator, Sequence
from contextvars import ContextVar
from pathlib import Path
from types import ModuleType
from weakref import WeakSet

from handlergen.runtime.pipeline.event_loop import THREAD_NAME as LOOP_THREAD

_MOST_FILES = 20_000  # of a model's directory, whose names are looked at
_INSTALLED = (
    *{sysconfig.get_path("stdlib") + os.sep, sysconfig.get_path("platstdlib") + os.sep},
    str(Path(__file__).resolve().parents[1]) + os.sep,
)

_turn = threading.Condition()
_entered: list[Surroundings] = []
"""The models whose code is running: each but the first is used by a hook of the one before it."""

_waiting: list[Surroundings] = []

_within: ContextVar[tuple[Surroundings, ...]] = ContextVar("handlergen_within", default=())
"""The models that the running code belongs to. A hook has it in whatever thread it runs: see `request_context`."""


class Surroundings:
    """The surroundings of one loaded model; `entered` around everything that runs its code.

    Args:
        module: The name of the user's module.
        roots: The model's directory, absolute, and the parents of its `packages`. Modules of their files, and of
            directories that the module puts on `sys.path` itself, are the model's own.
    """

    def __init__(self, module: str, roots: Sequence[Path]) -> None:
        self._top = module.partition(".")[0]
        self._root = roots[0]
        self._directory = roots[0]
        self._callers_directory = Path()
        self._callers_path = sys.path
        self._roots = [*map(str, roots)]
        self._path = [*self._roots, *sys.path]
        self._known = {*self._path}
        self._names = _names_below(self._roots)
        self._modules: dict[str, ModuleType] = {}
        self._hidden: dict[str, ModuleType] = {}
        self._last_module = ""
        self._threads = 0
        self._others_threads = WeakSet(threading.enumerate())

    @contextlib.contextmanager
    def entered(self) -> Iterator[None]:
        """Be in the model's surroundings, and leave the caller's as they were.

        Threads of one model may be inside at once. Another model waits until they are out, but for one that a hook
        of this model uses, which interrupts it: imports that other threads of this model make meanwhile may fail.

        Raises:
            FileNotFoundError: The caller's working directory does not exist.
        """
        within = _within.get()
        with _turn:
            _waiting.append(self)
            try:
                _turn.wait_for(lambda: self._may_enter(within))
            finally:
                _waiting.remove(self)
            if not _entered or _entered[-1] is not self:
                self._push()
            self._threads += 1
        token = _within.set((*within, self))
        try:
            yield
        finally:
            _within.reset(token)
            with _turn:
                self._threads -= 1
                _turn.notify_all()
                while _entered and not _entered[-1]._threads:
                    _pop()

    def threads(self) -> list[str]:
        """Return the names of the threads that have started since the model was, and that a forked process lacks."""
        own = {threading.main_thread(), threading.current_thread(), *self._others_threads}
        names = [thread.name for thread in threading.enumerate() if thread not in own]
        # What async hooks have made belongs to the loop's; handlergen's others run nothing between requests.
        return sorted(name for name in names if name == LOOP_THREAD or not name.startswith("handlergen"))

    def _may_enter(self, within: Sequence[Surroundings]) -> bool:
        if not _entered or _entered[-1] in within:
            return True
        # A model that is always busy would otherwise keep the others out.
        return _entered[-1] is self and all(other is self for other in _waiting)

    def _push(self) -> None:
        interrupted = _entered[-1] if _entered else None
        if interrupted is not None:
            interrupted._leave()
        try:
            self._enter()
        except BaseException:
            if interrupted is not None:
                interrupted._enter()
            raise
        _entered.append(self)

    def _enter(self) -> None:
        self._callers_directory = Path.cwd()
        try:
            os.chdir(self._directory)
        except OSError:  # a hook has removed it
            os.chdir(self._root)
        self._callers_path, sys.path = sys.path, self._path
        self._hidden = self._callers_namesakes()
        for name in self._hidden:
            del sys.modules[name]
        self._last_module = next(reversed(sys.modules))
        sys.modules.update(self._modules)
        if not self._modules:  # its files may be new
            importlib.invalidate_caches()

    def _leave(self) -> None:
        with contextlib.suppress(FileNotFoundError):
            self._directory = Path.cwd()
        self._path, sys.path = sys.path, self._callers_path
        self._find_own_directories()
        self._modules = dict(reversed(list(self._own_modules())))
        for name in self._modules:
            del sys.modules[name]
        sys.modules.update(self._hidden)
        os.chdir(self._callers_directory)

    def _callers_namesakes(self) -> dict[str, ModuleType]:
        """Return the modules of the caller's that hide files of the model; what is installed is common to all."""
        names = self._names & sys.modules.keys()
        names = {name for name in names if name == self._top or not _is_installed(sys.modules[name])}
        if not names:
            return {}
        return {name: module for name, module in sys.modules.items() if name.partition(".")[0] in names}

    def _find_own_directories(self) -> None:
        """Take up the directories that the module has put on the path."""
        new = {*self._path} - self._known
        if not new:
            return
        self._known |= new
        paths = {os.path.normpath(self._root / entry) for entry in new}
        own = [path for path in sorted(paths) if path not in self._roots and not _is_of_installation(path)]
        self._roots += own
        self._names |= _names_below(own)

    def _own_modules(self) -> Iterator[tuple[str, ModuleType]]:
        """Yield what has been imported from the model's directories, the latest first."""
        below = tuple(root + os.sep for root in self._roots)
        for name in reversed(list(sys.modules)):
            if name == self._last_module:  # later ones come after it
                return
            file = _file_of(sys.modules[name])
            if name in self._modules or (file.startswith(below) and not _is_of_installation(file)):
                yield name, sys.modules[name]


def _pop() -> None:
    _entered.pop()._leave()
    if _entered:
        _entered[-1]._enter()


def _file_of(module: ModuleType) -> str:
    """Return a module's file, a namespace package's directory, or "" where there is neither."""
    values = getattr(module, "__dict__", {})
    # A package without `__init__.py` has a directory instead of a file.
    file = values.get("__file__") or next(iter(values.get("__path__") or ()), "")
    return os.path.normpath(file) if isinstance(file, str) and file else ""


def _is_installed(module: ModuleType) -> bool:
    file = _file_of(module)
    return not file or _is_of_installation(file)


def _is_of_installation(path: str) -> bool:
    return "site-packages" in path or "dist-packages" in path or (path + os.sep).startswith(_INSTALLED)


def _names_below(directories: Iterable[str]) -> set[str]:
    """Return the names that imports could find in directories, if each directory in them were on the path."""
    names: set[str] = set()
    left = _MOST_FILES
    for directory in directories:
        for _, folders, files in os.walk(directory):
            folders[:] = [name for name in folders if name.isidentifier() and name != "__pycache__"]
            names.update(folders, (name.partition(".")[0] for name in files))
            left -= len(files) + len(folders)
            if left < 0:
                return names
    return names
