"""What runs in a process that prepares rows."""

from __future__ import annotations

import ctypes
import os
import signal
import sys
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any, cast

from torch.utils.data import Dataset

from handlergen.offline.arena import Arena
from handlergen.offline.crossing import prepare, taken
from handlergen.offline.rows import Row
from handlergen.offline.transport import Packed, pack
from handlergen.runtime.hook_inputs import HookInputs
from handlergen.runtime.hooks import Item
from handlergen.runtime.malloc import keep_freed_memory
from handlergen.runtime.pipeline import Pipeline

_PR_SET_PDEATHSIG = 1  # prctl(2)

_NICENESS = 5
"""The process that predicts, for which the device waits, goes first: it needs a core for some milliseconds a batch."""

Piece = tuple[int, int, list[Row]]
"""A part of a chunk, which its processes share: the chunk's number, the place of the first row in it, the rows."""


class Preparing(Dataset[Any]):
    """What torch's DataLoader runs in its processes: takes rows instead of an index, gives them back prepared.

    Args:
        pipeline: Of the loaded model; a forked process inherits it.
        inputs: What of a request is to be sent back.
        arena: Where large parts of it lie; each process is a writer.
        directory: Where hooks expect to run.
    """

    def __init__(self, pipeline: Pipeline, inputs: HookInputs, directory: Path, arena: Arena | None) -> None:
        self._pipeline = pipeline
        self._inputs = inputs
        self._directory = directory
        self._arena = arena
        self._lay_down: Callable[[Sequence[memoryview]], int | None] | None = None
        self._parent = os.getpid()

    def start(self, number: int) -> None:
        """Once in each process.

        Args:
            number: Which it is, from 0.
        """
        # The parent ends this process, when it has seen to what is under way; a terminal's Ctrl-C goes to both.
        signal.signal(signal.SIGINT, signal.SIG_IGN)
        _end_with_parent(self._parent)
        os.nice(_NICENESS)
        keep_freed_memory()
        if self._arena is not None:
            self._lay_down = partial(self._arena.lay_down, number)
        os.chdir(self._directory)
        self._pipeline = _ForkedPipeline.of(self._pipeline)

    def __getitem__(self, piece: Piece) -> tuple[int, int, int, Packed | str]:
        number, start, rows = piece
        pipeline = cast(_ForkedPipeline, self._pipeline)
        items = prepare(pipeline, rows) if not pipeline.refused else []
        if pipeline.refused:
            return number, start, len(rows), pipeline.refused
        try:
            values = [taken(item, self._inputs) for item in items]
            return number, start, len(rows), pack(values, self._lay_down)
        except Exception as error:  # the pickling of the user's own types raises anything
            return (
                number,
                start,
                len(rows),
                f"what preprocess returned cannot cross to another process ({error})",
            )


class _ForkedPipeline(Pipeline):
    """The pipeline in a preparing process. What fails because of the fork fails here only, and nobody is told.

    Attributes:
        refused: Why the rows must be prepared in the parent; "" when they need not.
    """

    refused = ""

    @classmethod
    def of(cls, pipeline: Pipeline) -> _ForkedPipeline:
        own = pipeline.forked()
        own.__class__ = cls
        return cast(_ForkedPipeline, own)

    def fail(self, item: Item, error: BaseException, hook: str) -> None:
        if isinstance(error, RuntimeError) and "forked subprocess" in str(error):
            self.refused = "preprocess uses the GPU, which a forked process cannot"
        super().fail(item, error, hook)


def _end_with_parent(parent: int) -> None:
    """Let the kernel end this process when the parent's thread that forked it ends, even by SIGKILL."""
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
        if os.getppid() != parent:  # it died before the call
            os._exit(1)
