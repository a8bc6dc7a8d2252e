"""What crosses between a worker and its predictor process, and how: values, shared memory, frames."""

from __future__ import annotations

import gc
import os
import socket
import sys
import threading
import time
import types
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy
import pytest
import torch

from handlergen.runtime.predictor_process.transport import (
    SHARED_FROM,
    Gone,
    Message,
    SharedMemoryPool,
    Transport,
    Unreadable,
    pack,
    unpack,
)

KIND = 20
DTYPES = [
    *(torch.float32, torch.float64, torch.float16, torch.bfloat16, torch.float8_e4m3fn, torch.complex64),
    *(torch.complex128, torch.uint8, torch.int8, torch.int16, torch.int32, torch.int64, torch.bool),
]


@dataclass
class Point:
    x: Any
    y: Any


@pytest.fixture
def ends() -> Iterator[tuple[Transport, Transport]]:
    one, other = (Transport(end) for end in socket.socketpair())
    yield one, other
    one.close()
    other.close()


def carried(ends: tuple[Transport, Transport], value: Any) -> Any:
    ends[0].send(KIND, 1, value)
    return several(ends[1], 1)[0].value


def several(end: Transport, count: int) -> list[Message]:
    messages: list[Message] = []
    while len(messages) < count:
        assert end.wait(20), f"{len(messages)} of {count} messages arrived"
        messages.append(end.receive())
    return messages


def through(value: Any) -> Any:
    pickled, buffers = pack(value)
    return unpack(pickled, [bytearray(buffer) for buffer in buffers])


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("shape", [(), (1,), (3, 5), (0,), (2, 0, 3), (2, 3, 4, 5)], ids=str)
def test_a_tensor_of_every_type_and_shape_arrives_bit_by_bit(dtype: torch.dtype, shape: tuple[int, ...]) -> None:
    value = torch.randint(0, 2, shape).to(dtype)
    got = through(value)
    assert (got.dtype, got.shape, got.stride()) == (value.dtype, value.shape, value.stride())
    assert got.reshape(-1).view(torch.uint8).tolist() == value.reshape(-1).view(torch.uint8).tolist()
    got.reshape(-1).view(torch.uint8).fill_(0)  # it can be written


@pytest.mark.parametrize(
    "make",
    [
        lambda t: t.t(),
        lambda t: t[::2, 1:],
        lambda t: t[:, 3],
        lambda t: t.flip(0),
        lambda t: t[:1].expand(4, 6),
        lambda t: t.unfold(1, 3, 1),
        lambda t: t.reshape(2, 2, 3, 2).contiguous(memory_format=torch.channels_last),
    ],
)
def test_a_tensor_that_is_not_contiguous_shows_the_same(make: Any) -> None:
    value = make(torch.arange(24.0).reshape(4, 6))
    got = through(value)
    assert got.shape == value.shape
    assert torch.equal(got, value)


def test_a_dense_layout_keeps_its_strides_and_a_slice_does_not_bring_its_storage() -> None:
    turned = torch.arange(24.0).reshape(4, 6).t()
    assert through(turned).stride() == turned.stride()
    pickled, buffers = pack(torch.zeros(1000, 1000)[:2, :2])
    assert sum(buffer.nbytes for buffer in buffers) == 16
    assert len(pickled) < 1000


def with_inference() -> torch.Tensor:
    with torch.inference_mode():
        return torch.ones(3) * 2


@pytest.mark.filterwarnings("ignore:The PyTorch API of nested tensors")
@pytest.mark.parametrize(
    "make",
    [
        lambda: torch.ones(3, requires_grad=True),
        lambda: torch.nn.Parameter(torch.ones(3)),
        lambda: torch.eye(3).to_sparse(),
        lambda: torch.complex(torch.ones(2), torch.ones(2)).conj(),
        lambda: torch.complex(torch.ones(2), torch.ones(2)).conj().imag,
        lambda: torch.nested.nested_tensor([torch.ones(2), torch.zeros(3)]),
        with_inference,
    ],
    ids=["grad", "parameter", "sparse", "conj", "neg", "nested", "inference"],
)
def test_unusual_tensors_cross_by_torchs_own_pickling(make: Callable[[], Any]) -> None:
    value = make()
    value.length = 7  # what the user's code has put there
    got = through(value)
    assert type(got) is type(value)
    assert got.length == 7
    if value.is_nested:
        assert [row.tolist() for row in got.unbind()] == [[1, 1], [0, 0, 0]]
    else:
        assert torch.equal(got.to_dense() if got.is_sparse else got, value.to_dense() if value.is_sparse else value)


def test_nested_values_arrive_as_they_were() -> None:
    shared = torch.arange(3)
    value = {
        "tensors": [shared, shared, (torch.ones(2), {"deep": torch.zeros(0)})],
        "arrays": Point(numpy.arange(6.0).reshape(2, 3), numpy.array(["a", None], dtype=object)),
        "scalar": numpy.float32(1.5),
        "empty": numpy.zeros((0, 4)),
        "fortran": numpy.asfortranarray(numpy.arange(6).reshape(2, 3)),
        "read-only": types.MappingProxyType({"a": 1}),
        "plain": [None, True, 1, 1.5, "text", b"bytes", bytearray(b"x"), {1, 2}, 3 + 4j],
    }
    got = through(value)
    assert got["tensors"][0] is got["tensors"][1]
    assert got["tensors"][2][1]["deep"].shape == (0,)
    assert got["arrays"].x.tolist() == value["arrays"].x.tolist()  # type: ignore[attr-defined]
    assert got["arrays"].y.tolist() == ["a", None]
    assert (got["scalar"], type(got["scalar"])) == (1.5, numpy.float32)
    assert got["empty"].shape == (0, 4)
    assert got["fortran"].flags.f_contiguous
    assert got["plain"] == value["plain"]
    assert (type(got["read-only"]), got["read-only"]["a"]) == (types.MappingProxyType, 1)


@pytest.mark.parametrize("numbers", [0, 1, 1000, SHARED_FROM // 4 - 1, SHARED_FROM // 4, 1_200_000])
def test_arrays_of_every_size_arrive_and_can_be_written(ends: tuple[Transport, Transport], numbers: int) -> None:
    value = {"a": torch.arange(numbers, dtype=torch.float32), "b": numpy.arange(3), "n": numbers}
    got = carried(ends, value)
    assert torch.equal(got["a"], value["a"])
    got["a"].add_(1)
    got["b"] += 1
    assert got["b"].tolist() == [1, 2, 3]


def test_numbers_are_aligned_whatever_lies_before_them(ends: tuple[Transport, Transport]) -> None:
    for odd in range(1, 20):
        value = ["x" * odd, numpy.zeros(odd, numpy.uint8), numpy.arange(4.0), torch.arange(4, dtype=torch.float64)]
        _, _, array, tensor = carried(ends, value)
        assert array.flags.aligned
        assert array.ctypes.data % 16 == 0
        assert tensor.data_ptr() % 16 == 0


@pytest.mark.parametrize("count", [600, 1100, 5000])
def test_thousands_of_small_tensors_are_one_message(ends: tuple[Transport, Transport], count: int) -> None:
    got = carried(ends, [torch.tensor([number]) for number in range(count)])
    assert [int(each) for each in got] == list(range(count))


def test_a_message_that_is_all_pickle_and_larger_than_the_socket(ends: tuple[Transport, Transport]) -> None:
    value = [os.urandom(3_000_000), "end"]
    assert carried(ends, value) == value


def test_messages_stay_in_order_and_whole_between_many_senders(ends: tuple[Transport, Transport]) -> None:
    def send(number: int) -> None:
        for count in range(30):
            ends[0].send(KIND, number, (count, torch.full((count * 1500,), number), bytes(count * 700)))

    threads = [threading.Thread(target=send, args=(number,)) for number in range(4)]
    for thread in threads:
        thread.start()
    messages = several(ends[1], 120)
    for thread in threads:
        thread.join()
    for number in range(4):
        mine = [message.value for message in messages if message.number == number]
        assert [count for count, _, _ in mine] == list(range(30))
        assert all(bool((tensor == number).all()) for _, tensor, _ in mine)


def test_a_receiver_that_does_not_read_never_holds_up_the_sender(ends: tuple[Transport, Transport]) -> None:
    began = time.monotonic()
    for number in range(100):  # each with a new segment: more descriptors than one message may carry
        ends[0].send(KIND, number, (torch.full((SHARED_FROM // 4 + 1,), number), b"x" * 50_000))
    assert time.monotonic() - began < 30
    messages = several(ends[1], 100)
    assert [message.number for message in messages] == list(range(100))
    assert all(bool((message.value[0] == message.number).all()) for message in messages)


def test_a_message_that_arrives_piece_by_piece_is_put_together() -> None:
    whole, copy = socket.socketpair()
    Transport(whole).send(KIND, 7, value := b"y" * 300_000)
    raw = bytearray()
    while len(raw) < 300_000:
        raw += copy.recv(1 << 20)
    one, other = socket.socketpair()
    receiver = Transport(other)

    def send() -> None:
        for piece in (raw[:5], raw[5:100], raw[100:150_000], raw[150_000:]):
            one.sendall(piece)
            time.sleep(0.02)

    sender = threading.Thread(target=send)
    sender.start()
    assert receiver.receive() == Message(KIND, 7, value)
    sender.join()
    receiver.close()
    for each in (one, whole, copy):
        each.close()


def test_an_end_that_closes_midway_is_gone(ends: tuple[Transport, Transport]) -> None:
    ends[0].send(KIND, 1, "first")
    ends[0]._socket.send(b"half a header")
    ends[0].close()
    assert several(ends[1], 1)[0].value == "first"
    with pytest.raises(Gone):
        ends[1].receive()
    with pytest.raises(Gone):
        ends[0].send(KIND, 2, "x")


def test_what_cannot_be_pickled_sends_nothing(ends: tuple[Transport, Transport]) -> None:
    with pytest.raises(Exception, match="lambda"):
        ends[0].send(KIND, 1, {"a": torch.ones(SHARED_FROM), "f": lambda: None})
    assert carried(ends, "next") == "next"


def test_a_class_that_only_the_other_end_knows_is_unreadable_and_the_next_message_is_not(
    ends: tuple[Transport, Transport],
) -> None:
    module = types.ModuleType("only_there")
    exec("class Value:\n    pass", module.__dict__)
    sys.modules["only_there"] = module
    ends[0].send(KIND, 1, (module.Value(), torch.ones(SHARED_FROM)))
    del sys.modules["only_there"]
    first = several(ends[1], 1)[0].value
    assert isinstance(first, Unreadable)
    assert "only_there" in str(first.error)
    assert carried(ends, "next") == "next"


def test_shared_memory_is_used_again_only_when_nothing_lies_in_it(ends: tuple[Transport, Transport]) -> None:
    size = SHARED_FROM
    kept = carried(ends, torch.full((size,), 1.0))
    part = carried(ends, {"x": torch.full((size,), 2.0)})["x"][10:20]
    for number in range(20):
        assert float(carried(ends, torch.full((size,), 3.0 + number))[0]) == 3.0 + number
        carried((ends[1], ends[0]), None)  # carries back what was released
    assert bool((kept == 1).all())
    assert bool((part == 2).all())
    assert len(ends[0]._pool._lent) + len(ends[0]._pool._free) <= 4


def test_no_descriptor_is_left() -> None:
    gc.collect()
    before = len(list(Path("/proc/self/fd").iterdir()))
    for _ in range(3):
        one, other = (Transport(end) for end in socket.socketpair())
        held = [carried((one, other), torch.ones(SHARED_FROM * (1 + number % 5))) for number in range(30)]
        assert len(held) == 30
        one.send(KIND, 1, torch.ones(SHARED_FROM))  # never received
        one.close()
        other.close()
    del held
    gc.collect()
    assert len(list(Path("/proc/self/fd").iterdir())) == before


def test_large_segments_do_not_keep_the_memory_of_past_requests() -> None:
    pool = SharedMemoryPool()
    numbers = [pool.copy([memoryview(bytes(33 << 20))])[0] for _ in range(4)]  # of 64 MiB each
    small, _ = pool.copy([memoryview(bytes(100))])
    for number in [*numbers, small]:
        pool.returned(number)
    forgotten = pool.surplus()
    assert len(forgotten) == 3
    assert set(forgotten) < set(numbers)  # what is left: one of them, and the small one
    assert pool.surplus() == []
    pool.close()
