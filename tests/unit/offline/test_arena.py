"""Shared memory between the processes of a map run: what was written is read, for as long as somebody reads it."""

from __future__ import annotations

import gc
import os
from collections.abc import Callable
from pathlib import Path

import numpy
import pytest

import handlergen
from handlergen.offline import preparation
from handlergen.offline.arena import Arena
from handlergen.offline.transport import pack


def in_a_child(work: Callable[[], int | None]) -> int | None:
    """What a forked process returns: a small number or None."""
    child = os.fork()
    if child == 0:
        try:
            found = work()
            os._exit(255 if found is None else found)
        finally:
            os._exit(254)
    _, status = os.waitpid(child, 0)
    code = os.waitstatus_to_exitcode(status)
    assert code != 254
    return None if code == 255 else code


def written(arena: Arena, writer: int, *contents: bytes) -> int | None:
    return in_a_child(lambda: arena.lay_down(writer, [memoryview(content) for content in contents]))


def test_what_a_child_wrote_is_read() -> None:
    arena = Arena(2, 2, slot_bytes=1 << 16)
    contents = b"a" * 100, b"", b"b" * 64, b"c"
    slot = written(arena, 1, *contents)
    assert slot == 2  # the first of the second writer
    views = arena.views(slot, [len(content) for content in contents])
    assert [bytes(view) for view in views] == list(contents)
    views[0][0] = ord("z")
    assert bytes(views[0][:2]) == b"za"


def test_a_slot_is_used_again_when_the_last_view_of_it_is_gone() -> None:
    arena = Arena(1, 2, slot_bytes=1 << 16)
    first, second = written(arena, 0, b"one"), written(arena, 0, b"two")
    assert (first, second) == (0, 1)
    assert written(arena, 0, b"three") is None
    array = numpy.frombuffer(arena.views(0, [3])[0], dtype=numpy.uint8)
    part = array[1:]
    del array
    gc.collect()
    assert written(arena, 0, b"three") is None
    assert bytes(part) == b"ne"
    del part
    assert written(arena, 0, b"three") == 0


def test_what_is_too_much_is_not_laid_down() -> None:
    arena = Arena(1, 1, slot_bytes=4096)
    assert written(arena, 0, bytes(4097)) is None
    assert written(arena, 0, bytes(4096)) == 0


def test_packed_values_lie_in_the_arena_when_they_are_many_and_fit() -> None:
    arena = Arena(1, 1, slot_bytes=1 << 20)

    def lay_down(buffers: list[memoryview]) -> int | None:
        return arena.lay_down(0, buffers)

    small, large = numpy.arange(10), numpy.arange(20_000.0)
    assert isinstance(pack(small, lay_down).memory, bytes)
    packed = pack([large, large + 1], lay_down)
    assert packed.memory == 0
    again = pack([large], lay_down)  # none is free
    assert isinstance(again.memory, bytes)
    first, second = packed.unpack(arena)
    assert numpy.array_equal(first, large)
    assert numpy.array_equal(second, large + 1)
    assert numpy.array_equal(again.unpack()[0], large)


KEEPING = """
import torch

kept = []

def preprocess(data):
    return torch.full((40_000,), float(data))

def predict(inputs):
    kept.append(inputs)  # as a module may: a cache, say
    return torch.stack([each[:1] for each in kept]).sum()

def postprocess(outputs):
    return float(outputs)
"""


@pytest.mark.parametrize("promised", [True, False])
def test_inputs_that_a_module_keeps_are_not_overwritten(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, promised: bool
) -> None:
    """Far more pieces than there are slots, and none of them is ever free again; or no shared memory at all."""
    if not promised:

        def refused(*_arguments: object) -> Arena:
            raise OSError("no memory")

        monkeypatch.setattr(preparation, "Arena", refused)
    monkeypatch.setenv("HANDLERGEN_STATE_DIR", str(tmp_path / "state"))
    (tmp_path / "keeping.py").write_text(KEEPING)
    with handlergen.load(tmp_path / "keeping.py") as model:
        found = [result.value for result in model.map(range(1, 161), batch_size=8, workers=2)]
    assert found == [sum(range(1, number + 1)) for number in range(1, 161)]
