"""Which files belong to an output of `map`: the output itself, and what a run keeps beside it."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

from handlergen.errors import HandlergenError
from handlergen.offline.convert import CONVERTERS
from handlergen.offline.journal import journal_path
from handlergen.offline.predicted import SUFFIX as PREDICTED

_LINES = ".rows.jsonl"
_PARTIAL = ".partial"


@dataclass(frozen=True)
class OutputFiles:
    """The files of one output, whether they are there or not.

    Attributes:
        output: What the user named.
    """

    output: Path

    @property
    def converted(self) -> bool:
        """Is the output made of the lines in the end, because it is not lines itself?"""
        return self.output.suffix.lower() in CONVERTERS

    @property
    def lines(self) -> Path:
        """Where the lines are written."""
        return self.output.with_name(self.output.name + _LINES) if self.converted else self.output

    @property
    def journal(self) -> Path:
        return journal_path(self.lines)

    @property
    def predicted(self) -> Path:
        return self.lines.with_name(self.lines.name + PREDICTED)

    @property
    def partial(self) -> Path:
        """What a converted output is called until it is complete."""
        return self.output.with_name(self.output.name + _PARTIAL)

    def refuse_as_input(self, path: Path) -> None:
        """See that an input is none of them, under whatever name: it would be lost before it is read.

        Raises:
            HandlergenError: It is.
        """
        for own in self._all():
            if _same_file(own, path):
                same = "" if own == path else f": {own} is the same file"
                raise HandlergenError(
                    f"{path} is the input, and the run would write over it{same}",
                    hint="name another output with -o",
                )

    def own(self, path: Path) -> bool:
        """Is this file one of them? They come and go while a run works, so what counts is where they would be."""
        return (path.name in self._names or path.is_symlink()) and path.resolve() in self._places

    @cached_property
    def _places(self) -> frozenset[Path]:
        return frozenset(path.resolve() for path in self._all())

    @cached_property
    def _names(self) -> frozenset[str]:
        return frozenset(path.name for path in (*self._all(), *self._places))

    def _all(self) -> Iterator[Path]:
        yield from (self.output, self.lines, self.journal, self.predicted, self.partial)


def _same_file(one: Path, other: Path) -> bool:
    try:
        return one.is_file() and one.samefile(other)
    except OSError:  # too long for a name, say, which is told when it is opened
        return False


def left_by(output: Path) -> bool:
    """Has a run left something to go on with?"""
    return OutputFiles(output).journal.exists()
