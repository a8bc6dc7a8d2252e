"""A worker receives ahead what TorchServe sends, and reads from it what TorchServe's own function would."""

from __future__ import annotations

import random
import socket
import struct
import threading
import time
from collections.abc import Iterator
from itertools import pairwise
from typing import Any

import pytest
from ts.protocol import otf_message_handler as protocol

from handlergen.runtime.torchserve_reading import Batches, ReadAhead, read_ahead

OWN = protocol._retrieve_buffer
OWN_BATCH = protocol._retrieve_inference_msg


@pytest.fixture
def connection() -> Iterator[tuple[socket.socket, socket.socket]]:
    ours, theirs = socket.socketpair()
    with ours, theirs:
        yield ours, theirs


@pytest.fixture
def _patched(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(protocol, "_retrieve_buffer", OWN)  # undone afterwards
    monkeypatch.setattr(protocol, "_retrieve_inference_msg", OWN_BATCH)
    monkeypatch.setenv("TS_DECODE_INPUT_REQUEST", "false")
    read_ahead()


def field(content: bytes) -> bytes:
    return struct.pack("!i", len(content)) + content


END = struct.pack("!i", -1)


def message(bodies: list[bytes], headers: int = 3) -> bytes:
    """A batch as the frontend writes it (ts/protocol/otf_message_handler.py, `_retrieve_request`)."""
    text = b"I"
    for number, body in enumerate(bodies):
        text += field(b"request %d" % number)
        for header in range(headers):
            text += field(b"x-%d" % header) + field(b"value" * header)
        text += END + field(b"body") + field(b"application/octet-stream") + field(body) + END
    return text + END


def sent(to: socket.socket, pieces: list[bytes], *, pause_s: float = 0.0) -> threading.Thread:
    def send() -> None:
        for piece in pieces:
            to.sendall(piece)
            time.sleep(pause_s)

    thread = threading.Thread(target=send)
    thread.start()
    return thread


def cut(text: bytes, seed: int) -> list[bytes]:
    places = sorted(random.Random(seed).sample(range(1, len(text)), min(12, len(text) - 1)))
    return [text[start:end] for start, end in pairwise([0, *places, len(text)])]


def read_all(connection: socket.socket, count: int) -> list[Any]:
    return [protocol.retrieve_msg(connection) for _ in range(count)]


SIZES = [0, 1, 100, 100, 100, 30_000, 65_535, 65_536, 65_537, 1_000_000]


@pytest.mark.parametrize("seed", range(8))
def test_messages_are_read_as_torchserve_reads_them_wherever_they_are_cut(
    connection: tuple[socket.socket, socket.socket], seed: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    ours, theirs = connection
    source = random.Random(seed)
    text = b"".join(
        message(
            [source.randbytes(source.choice(SIZES)) for _ in range(source.randint(1, 4))],
            source.randint(0, 9),
        )
        for _ in range(3)
    )
    found = []
    monkeypatch.setenv("TS_DECODE_INPUT_REQUEST", "false")
    ahead = ReadAhead(OWN)
    for field_by, batch_by in ((OWN, OWN_BATCH), (ahead, Batches(ahead, OWN_BATCH))):
        monkeypatch.setattr(protocol, "_retrieve_buffer", field_by)
        monkeypatch.setattr(protocol, "_retrieve_inference_msg", batch_by)
        sender = sent(theirs, cut(text, seed), pause_s=0.001)
        found.append(read_all(ours, 3))
        sender.join()
    assert repr(found[0]) == repr(found[1])  # of the same types, too


@pytest.mark.usefixtures("_patched")
def test_a_small_request_is_received_with_one_call() -> None:
    class Counting:
        calls = 0

        def recv_into(self, into: memoryview) -> int:
            self.calls += 1
            into[: len(text)] = text
            return len(text)

    text = message([b'{"number": 1}'], headers=20)
    counting = Counting()
    _, (request,) = protocol.retrieve_msg(counting)
    assert (len(request["headers"]), counting.calls) == (20, 1)


def test_batches_that_are_there_are_read_in_one_go(connection: tuple[socket.socket, socket.socket]) -> None:
    ours, theirs = connection
    ahead = ReadAhead(OWN)

    def own(_connection: socket.socket) -> Any:
        raise AssertionError("it was not")

    read = Batches(ahead, own)
    theirs.sendall(message([b"one", b"", b"three"]) + message([]) + message([b"four"]))
    found = []
    for _ in range(3):
        assert ahead(ours, 1) == b"I"
        found.append(read(ours))
    assert [[request["parameters"][0]["value"] for request in batch] for batch in found] == [
        [b"one", b"", b"three"],
        [],
        [b"four"],
    ]


def test_names_that_are_no_text_are_as_wrong_as_for_torchserve(
    connection: tuple[socket.socket, socket.socket],
) -> None:
    ours, theirs = connection
    text = b"I" + field(b"1") + END + field(b"\xff") + field(b"text/plain") + field(b"x") + END + END
    ahead = ReadAhead(OWN)
    theirs.sendall(text)
    ahead(ours, 1)
    with pytest.raises(UnicodeDecodeError):
        Batches(ahead, OWN_BATCH)(ours)


def test_what_was_received_of_one_connection_is_not_read_from_another() -> None:
    read = ReadAhead(OWN)
    for _ in range(2):
        ours, theirs = socket.socketpair()
        with ours, theirs:
            theirs.sendall(b"abcd")
            assert read(ours, 2) == b"ab"


@pytest.mark.parametrize("before", [b"", b"ab", b"a" * 70_000])
def test_the_worker_ends_when_torchserve_has_gone(
    connection: tuple[socket.socket, socket.socket], before: bytes, caplog: pytest.LogCaptureFixture
) -> None:
    ours, theirs = connection
    sent(theirs, [before]).join()
    theirs.close()
    with caplog.at_level("INFO"), pytest.raises(SystemExit) as ended:
        ReadAhead(OWN)(ours, len(before) + 1)
    assert ended.value.code == 0
    assert "Frontend disconnected." in caplog.text


@pytest.mark.parametrize("length", [0, -1])
def test_nothing_is_waited_for_when_nothing_is_asked(
    connection: tuple[socket.socket, socket.socket], length: int
) -> None:
    ours, theirs = connection
    read = ReadAhead(OWN)
    assert read(ours, length) == b""
    theirs.sendall(b"xyz")
    assert [read(ours, 1), read(ours, length), read(ours, 2)] == [b"x", b"", b"yz"]


@pytest.mark.usefixtures("_patched")
def test_it_takes_the_place_once() -> None:
    first = protocol._retrieve_buffer, protocol._retrieve_inference_msg
    read_ahead()
    assert (protocol._retrieve_buffer, protocol._retrieve_inference_msg) == first
    assert [type(each) for each in first] == [ReadAhead, Batches]


def test_another_torchserve_is_left_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delattr(protocol, "_retrieve_buffer")
    read_ahead()
    assert not hasattr(protocol, "_retrieve_buffer")
