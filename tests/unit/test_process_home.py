"""Where workers meet their predictor process, what the page says, what is printed, and who waits in which order."""

from __future__ import annotations

import contextlib
import itertools
import json
import logging
import math
import os
import signal
import socket
import struct
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from handlergen.runtime.hooks import Item
from handlergen.runtime.process import forks
from handlergen.runtime.process import home as home_module
from handlergen.runtime.process.home import Home, Identity, NotOurs, Starts, check_peer, remove_orphans
from handlergen.runtime.process.output import Forwarder
from handlergen.runtime.process.page import IDLE, PREDICTING, SLOTS, Page
from handlergen.runtime.process.start import Starter, Unavailable
from handlergen.runtime.process.waiting import Taken, Waiting
from handlergen.runtime.requests import Request
from handlergen.runtime.server_process import started


def identity(**changes: Any) -> Identity:
    pid = os.getpid()
    return replace(Identity(pid, started(pid), "model", "1.0", "/somewhere", "cpu"), **changes)


def gone() -> int:
    """A process id that nobody has any more."""
    child = subprocess.Popen([sys.executable, "-c", ""])
    child.wait()
    return child.pid


@pytest.fixture
def home(tmp_path: Path) -> Home:
    found = Home(identity(), tmp_path)
    found.make()
    return found


# -- the directory ------------------------------------------------------------------------------------------------


def test_equal_identities_meet_and_others_do_not(tmp_path: Path) -> None:
    others = [
        identity(),
        identity(name="other"),
        identity(version="2.0"),
        identity(model_dir="/elsewhere"),
        identity(device="gpu 0"),
        identity(server_started=1),
    ]
    assert len({Home(each, tmp_path).path for each in others}) == len(others)
    assert Home(identity(), tmp_path).path == Home(identity(), tmp_path).path


def test_the_directory_is_this_users_alone_and_its_name_harmless(tmp_path: Path) -> None:
    found = Home(identity(name="../../etc/ü x" + "y" * 500), tmp_path)
    found.make()
    assert found.path.parent == tmp_path
    assert found.path.stat().st_mode & 0o777 == 0o700
    found.listen().close()
    assert (found.path / "socket").stat().st_mode & 0o777 == 0o600
    assert Home.at(found.path).identity == found.identity


def test_a_path_that_no_socket_address_can_hold(tmp_path: Path) -> None:
    deep = tmp_path.joinpath(*["directory-with-a-long-name"] * 6)
    deep.mkdir(parents=True)
    found = Home(identity(), deep)
    found.make()
    assert len(str(found.path / "socket")) > 200
    with found.listen() as listener:
        connection = found.connect()
        assert connection is not None
        accepted, _ = listener.accept()
        accepted.close()
        connection.close()


def test_nobody_listens_at_a_stale_socket(home: Home) -> None:
    assert home.connect() is None
    home.listen().close()
    assert (home.path / "socket").exists()
    assert home.connect() is None
    with home.listen():  # the next process's takes its place
        connection = home.connect()
        assert connection is not None
        connection.close()


def test_another_users_process_is_refused_at_both_ends(home: Home, monkeypatch: pytest.MonkeyPatch) -> None:
    with home.listen() as listener:
        monkeypatch.setattr(home_module.os, "geteuid", lambda: os.getuid() + 1)
        with pytest.raises(NotOurs, match="is user"):
            home.connect()
        accepted, _ = listener.accept()
        with accepted, pytest.raises(NotOurs):
            check_peer(accepted)


def test_one_owner_until_it_dies(home: Home) -> None:
    first = home.own()
    assert first is not None
    assert home.own() is None
    forks.close(first)
    second = home.own()
    assert second is not None
    forks.close(second)


def test_a_forked_child_does_not_keep_the_ownership(home: Home) -> None:
    owner = home.own()
    assert owner is not None
    child = os.fork()
    if child == 0:
        time.sleep(30)
        os._exit(0)
    try:
        time.sleep(0.1)
        forks.close(owner)
        again = home.own()
        assert again is not None
        forks.close(again)
    finally:
        os.kill(child, 9)
        os.waitpid(child, 0)


def test_one_starts_at_a_time(home: Home) -> None:
    with home.starting(0) as mine:
        assert mine
        began = time.monotonic()
        with home.starting(0.1) as other:
            assert not other
        assert time.monotonic() - began >= 0.1
    with home.starting(0) as again:
        assert again


def test_an_owner_removes_its_own_directory_only(home: Home) -> None:
    owner = home.own()
    assert owner is not None
    with home.starting(0):
        home.remove(owner)
    assert home.path.exists()  # the next process is being started in it
    (home.path / "owner.lock").unlink()
    other = home.own()
    assert other is not None
    home.remove(owner)
    assert home.path.exists()  # it is the next process's by now
    home.remove(other)
    assert not home.path.exists()
    home.remove(other)


def test_the_directory_of_an_ended_server_goes_though_a_worker_has_not_noticed(tmp_path: Path) -> None:
    ended = Home(identity(server=gone(), server_started=1), tmp_path)
    ended.path.mkdir(mode=0o700)
    owner = ended.own()
    assert owner is not None
    with ended.starting(0):
        ended.remove(owner)
    assert not ended.path.exists()
    forks.close(owner)


def test_nothing_is_started_for_an_ended_server(tmp_path: Path) -> None:
    ended = Home(identity(server=gone(), server_started=1), tmp_path)
    starter = Starter(
        ended, model_dir=tmp_path, arguments={}, environ={}, logger=logging.getLogger("test"), spare=None
    )
    with pytest.raises(Unavailable, match="the server has ended"):
        starter.connect(math.inf)
    assert list(tmp_path.iterdir()) == []


def test_directories_of_dead_servers_are_removed_and_no_others(tmp_path: Path) -> None:
    dead = gone()
    mine, theirs = Home(identity(), tmp_path), Home(identity(server=dead, server_started=1), tmp_path)
    reused = Home(identity(server_started=1), tmp_path)  # the number is another process's by now
    unwritten = tmp_path / f"predictor-{dead}-model-0123"  # its maker was killed just then
    written_now = tmp_path / f"predictor-{os.getpid()}-model-0123"
    held = Home(identity(server=dead, server_started=2), tmp_path)
    for each in (mine, theirs, reused, held):
        each.path.mkdir(mode=0o700)
        (each.path / "identity.json").write_text(json.dumps(each.identity.__dict__))
    unwritten.mkdir()
    written_now.mkdir()
    (tmp_path / "cpu.lock").touch()
    owner = held.own()
    assert owner is not None
    remove_orphans(tmp_path)
    assert sorted(tmp_path.iterdir()) == sorted([mine.path, held.path, written_now, tmp_path / "cpu.lock"])
    forks.close(owner)
    Home(identity(), tmp_path).make()  # as the next worker does
    assert not held.path.exists()


# -- back-off -----------------------------------------------------------------------------------------------------


def test_the_first_death_costs_nothing_and_the_next_ones_more_and_more() -> None:
    def delays(reason: str) -> list[float]:
        return [Starts(100.0, in_a_row, reason).next_after() - 100.0 for in_a_row in range(1, 9)]

    assert delays("") == [0, 1, 2, 4, 4, 4, 4, 4]
    assert delays("cannot be loaded") == [0, 1, 2, 4, 8, 16, 30, 30]


def test_starts_are_counted_and_a_process_that_served_is_no_failure(
    home: Home, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert home.starts() == Starts()
    now = 1000.0
    monkeypatch.setattr(home_module.time, "monotonic", lambda: now)
    for _ in range(3):
        home.note_start()
    home.note_failure("ValueError: no weights")
    assert home.starts() == Starts(1000.0, 3, "ValueError: no weights", 3)
    now = 1100.0
    home.note_start()
    assert home.starts() == Starts(1100.0, 1, "", 4)
    (home.path / "starts.json").write_text("{broken")
    assert home.starts() == Starts()


# -- the page -----------------------------------------------------------------------------------------------------


def test_the_page_says_what_the_process_does_even_after_it(tmp_path: Path) -> None:
    page = Page.make(tmp_path / "page")
    seen = Page.open(tmp_path / "page")
    assert seen.look().state == "loading"
    page.enter(PREDICTING)
    slot = page.take_slot(3, 7)
    assert seen.holds(3, 7)
    assert not seen.holds(7, 3)
    assert not seen.holds(3, 8)
    page.count(4, 2)
    page.count(1, 0)
    page.free_slot(slot)
    assert not seen.holds(3, 7)
    picture = seen.look()
    assert (picture.pid, picture.state) == (os.getpid(), "predicting")
    assert (picture.predictions, picture.requests, picture.largest_batch, picture.waiting) == (2, 5, 4, 0)
    page.enter(IDLE)
    assert seen.look().state == "idle"
    assert not page.timed_out
    seen.condemn()
    assert page.timed_out
    fresh = Page.make(tmp_path / "page")
    assert not fresh.timed_out
    assert page.timed_out  # the old one stays with whoever has it open


def test_a_look_at_the_page_never_mixes_two_states(tmp_path: Path) -> None:
    """It was filled byte by byte: a predict that had just begun seemed to have run for hours, and was killed for it."""
    page = Page.make(tmp_path / "page")
    seen = Page.open(tmp_path / "page")
    writer = os.fork()
    if writer == 0:
        until = time.monotonic() + 1.5
        while time.monotonic() < until:
            page.enter(PREDICTING)
            page.enter(IDLE)
        os._exit(0)
    try:
        longest, looks = 0.0, 0
        while os.waitpid(writer, os.WNOHANG) == (0, 0):
            longest = max([longest, *[seen.look().since_s for _ in range(100)]])
            looks += 100
    finally:
        with contextlib.suppress(ProcessLookupError):
            os.kill(writer, signal.SIGKILL)
    assert looks > 1000
    assert longest < 60  # a torn look gives the time since the machine was started, or 146 years


def test_a_forked_child_does_not_keep_the_start_to_itself(tmp_path: Path) -> None:
    """Of a pool that a hook makes while the worker starts the predictor process."""
    home = Home(identity(), tmp_path)
    home.make()
    with home.starting(0) as ours:
        assert ours
        child = os.fork()
        if child == 0:
            time.sleep(60)
            os._exit(0)
    try:
        with home.starting(0) as ours:
            assert ours
    finally:
        os.kill(child, signal.SIGKILL)
        os.waitpid(child, 0)


def test_more_requests_than_the_page_has_room_for(tmp_path: Path) -> None:
    page = Page.make(tmp_path / "page")
    slots = [page.take_slot(1, number) for number in range(SLOTS + 2)]
    assert slots[-2:] == [-1, -1]
    assert len(set(slots)) == SLOTS + 1
    assert page.holds(1, SLOTS - 1)
    for slot in slots:
        page.free_slot(slot)
    assert page.take_slot(1, 5) >= 0


def test_numbers_that_look_alike_in_memory_are_told_apart(tmp_path: Path) -> None:
    page = Page.make(tmp_path / "page")
    page.take_slot(1 << 16, 1 << 16)
    page.take_slot(0, 0)
    assert not page.holds(1, 1)
    assert not page.holds(1, 0)
    assert page.holds(1 << 16, 1 << 16)


@pytest.mark.parametrize("content", [b"", b"x" * 10, bytes(256 + SLOTS * 8)])
def test_a_file_that_is_no_page_is_refused(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "page").write_bytes(content)
    with pytest.raises(ValueError, match="not a page"):
        Page.open(tmp_path / "page")


# -- output -------------------------------------------------------------------------------------------------------


def test_one_worker_hands_the_output_on_and_another_goes_on_where_it_ended(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    output = tmp_path / "output"
    one, other = Forwarder(output), Forwarder(output)
    one.forward()  # nothing there yet
    output.write_text("first\nsecond\nhal")
    one.forward()
    other.forward()
    assert capsys.readouterr().out == "first\nsecond\n"
    with output.open("a") as file:
        file.write("f\n")
    one.close()
    other.forward()
    assert capsys.readouterr().out == "half\n"
    with output.open("a") as file:
        file.write("no end of line")
    other.forward()
    assert capsys.readouterr().out == "no end of line"
    other.close()


def test_output_of_a_process_in_a_new_directory_is_found(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    place = tmp_path / "home"
    forwarder = Forwarder(place / "output")
    for life in ("one", "two"):
        place.mkdir()
        (place / "output").write_text(f"life {life}\n")
        forwarder.forward()
        assert capsys.readouterr().out == f"life {life}\n"
        for file in place.iterdir():
            file.unlink()
        place.rmdir()
        forwarder.forward()
    forwarder.close()


def test_a_long_output_is_cut(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    output = tmp_path / "output"
    forwarder = Forwarder(output)
    with output.open("ab", buffering=0) as file:  # as the process writes: at the end, wherever that is
        for number in range(300):
            file.write(b"%04d" % number + b"x" * 9_995 + b"\n")
            forwarder.forward()
        file.write(b"last\n")
        forwarder.forward()
    forwarder.close()
    lines = capsys.readouterr().out.splitlines()
    assert [line[:4] for line in lines] == [f"{number:04d}" for number in range(300)] + ["last"]
    assert output.stat().st_size < 1_100_000


# -- the queue ----------------------------------------------------------------------------------------------------


class Asked:
    numbers = itertools.count()

    def __init__(self, name: str, *, explains: bool = False) -> None:
        self.item = Item(0, {}, {}, Request({}, name))
        self.name = name
        self.explains = explains
        self.abandoned = False
        self.told: list[str] = []

    def entered(self) -> None:
        self.told.append("entered")

    def done(self) -> None:
        self.told.append("done")

    def skipped(self) -> None:
        self.told.append("skipped")


class Asleep:
    """What waits in these tests: nothing has to be read."""

    def __init__(self) -> None:
        self._changed = threading.Condition()

    def until(self, ready: Callable[[], bool], timeout_s: float | None = None) -> None:
        with self._changed:
            self._changed.wait_for(ready, timeout_s)

    def wake(self) -> None:
        with self._changed:
            self._changed.notify_all()

    def look(self) -> None:
        pass


def waiting_for(*, most: int, linger_s: float) -> Waiting:
    return Waiting(most=most, linger_s=linger_s, idle=Asleep())


def names(taken: Any) -> str:
    return "".join(each.name for each in taken)


def test_what_is_there_is_taken_in_order_up_to_the_most() -> None:
    waiting = waiting_for(most=3, linger_s=0)
    for name in "abcde":
        waiting.put(Asked(name))
    assert [names(waiting.take()), names(waiting.take())] == ["abc", "de"]


def test_a_request_alone_does_not_wait_for_others() -> None:
    waiting = waiting_for(most=8, linger_s=0)
    threading.Timer(0.1, waiting.put, [Asked("a")]).start()
    assert names(waiting.take()) == "a"


def test_it_lingers_for_others_as_long_as_it_is_told_and_no_longer_than_it_needs() -> None:
    waiting = waiting_for(most=2, linger_s=20)
    waiting.put(Asked("a"))
    threading.Timer(0.1, waiting.put, [Asked("b")]).start()
    began = time.monotonic()
    assert names(waiting.take()) == "ab"
    assert time.monotonic() - began < 10
    waiting = waiting_for(most=2, linger_s=0.1)
    waiting.put(Asked("a"))
    began = time.monotonic()
    assert names(waiting.take()) == "a"
    assert time.monotonic() - began >= 0.1


def test_requests_that_come_one_at_a_time_soon_do_not_linger_and_do_again_when_others_come() -> None:
    waiting = waiting_for(most=2, linger_s=0.05)

    def lingers(*beside: str) -> bool:
        for name in ("a", *beside):
            waiting.put(Asked(name))
        began = time.monotonic()
        waiting.take()
        return time.monotonic() - began >= 0.05

    alone = [lingers() for _ in range(300)]
    assert alone[:8] == [True] * 8
    assert [number for number, lingered in enumerate(alone) if lingered and number >= 8] == [128, 256]
    assert not lingers("b")
    assert lingers()


def test_requests_that_nobody_waits_for_are_left_out_and_told() -> None:
    waiting = waiting_for(most=4, linger_s=0)
    asked = [Asked(name) for name in "abcd"]
    asked[0].abandoned = asked[2].abandoned = True
    for each in asked:
        waiting.put(each)
    assert names(waiting.take()) == "bd"
    assert [each.told for each in asked] == [["skipped"], [], ["skipped"], []]


def test_an_explanation_comes_alone_and_in_its_turn() -> None:
    waiting = waiting_for(most=8, linger_s=0)
    for name in "abXcY":
        waiting.put(Asked(name, explains=name.isupper()))
    assert [names(waiting.take()) for _ in range(4)] == ["ab", "X", "c", "Y"]


def test_nothing_is_taken_after_the_end() -> None:
    waiting = waiting_for(most=8, linger_s=5)
    threading.Timer(0.1, waiting.end).start()
    assert waiting.take() == []


def test_the_end_comes_while_it_lingers() -> None:
    waiting = waiting_for(most=8, linger_s=60)
    waiting.put(Asked("a"))
    threading.Timer(0.1, waiting.end).start()
    began = time.monotonic()
    assert names(waiting.take()) in ("a", "")
    assert time.monotonic() - began < 30


def test_all_that_was_taken_is_there_and_each_is_told_when_it_is_done() -> None:
    asked = [Asked("a"), Asked("b")]
    taken = Taken(asked)
    first = taken.next()
    assert first is asked[0].item
    assert taken.more
    assert taken.next_ready() is None
    second = taken.next()
    assert second is asked[1].item
    assert taken.next() is None
    taken.done(second)
    assert [each.told for each in asked] == [[], ["done"]]


def test_a_peer_is_known_by_its_user() -> None:
    one, other = socket.socketpair()
    with one, other:
        check_peer(one)
        raw = one.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, struct.calcsize("3i"))
        assert struct.unpack("3i", raw)[1] == os.geteuid()
