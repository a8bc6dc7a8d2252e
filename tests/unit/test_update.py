"""Updates without a server: versions, the record, the lock, recorded requests, and what counts as different."""

from __future__ import annotations

import json
import multiprocessing
import os
import stat
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

import handlergen
from handlergen.cli.update import Share
from handlergen.errors import HandlergenError, ServerError
from handlergen.runtime.codec.encode import encode
from handlergen.runtime.codec.errors import Failure
from handlergen.runtime.pipeline.hooks import Item
from handlergen.runtime.torchserve.control import COMMAND, Commands
from handlergen.runtime.torchserve.frontend import received
from handlergen.server.configuration import write_configuration
from handlergen.server.properties import server_settings
from handlergen.server.update import next_version
from handlergen.server.update_state import ModelRecord, Replacement, UpdateRecords
from tests.commands import handlergen as run
from tests.serving import ServerContext

PLAN = Replacement(
    action="update", old="1.0", new="1.1", sha256="0" * 64, origin="new", registered=False, workers=2, keep=False
)


@pytest.mark.parametrize(
    ("version", "taken", "following"),
    [
        ("1.0", {"1.0"}, "1.1"),
        ("1.9", {"1.9", "1.10"}, "1.11"),
        ("2", {"2"}, "3"),
        ("v1", {"v1"}, "v2"),
        ("2024-rc1b", {"2024-rc1b"}, "2024-rc2b"),
        ("beta", {"beta", "beta-2"}, "beta-3"),
        ("1.0", {"1.1"}, "1.0"),
    ],
)
def test_the_next_version(version: str, taken: set[str], following: str) -> None:
    assert next_version(version, taken) == following


@pytest.mark.parametrize(("text", "share"), [("10%", 0.1), ("0.25", 0.25), ("100%", 1.0), ("0", 0.0)])
def test_shares_on_the_command_line(text: str, share: float) -> None:
    assert Share().convert(text, None, None) == pytest.approx(share)


def test_the_record_is_kept_and_private(tmp_path: Path) -> None:
    config = tmp_path / "config.properties"
    records = UpdateRecords(config)
    assert records.read("digits") == ModelRecord()
    assert records.unfinished() == []
    records.write("digits", ModelRecord("1.0", True, PLAN))
    records.write("cats", ModelRecord("3"))
    again = UpdateRecords(config)
    assert again.read("digits") == ModelRecord("1.0", True, PLAN)
    assert [(each.model, each.replacement, each.pid) for each in again.unfinished()] == [("digits", PLAN, None)]
    (file,) = (tmp_path / ".handlergen").iterdir()
    assert file.name == "config.properties.updates.json"
    assert stat.S_IMODE(file.stat().st_mode) == 0o600
    file.write_text("{")
    with pytest.raises(HandlergenError, match=r"updates\.json cannot be read"):
        again.read("digits")


def _hold(config: Path, ready: Any, done: Any) -> None:
    with UpdateRecords(config).locked():
        ready.set()
        done.wait(30)


def test_a_second_update_is_refused_with_who_holds_the_lock(tmp_path: Path) -> None:
    config = tmp_path / "config.properties"
    records = UpdateRecords(config)
    spawn = multiprocessing.get_context("spawn")
    ready, done = spawn.Event(), spawn.Event()
    holder = spawn.Process(target=_hold, args=(config, ready, done))
    holder.start()
    assert ready.wait(30)
    try:
        refusal = pytest.raises(ServerError, match=rf"another update or rollback is running .*process {holder.pid}\)")
        with refusal, records.locked():
            pass
        records.write("digits", ModelRecord(pending=replace(PLAN, step="load")))
        assert [each.pid for each in records.unfinished()] == [holder.pid]
    finally:
        done.set()
        holder.join()
    with records.locked():
        assert [each.pid for each in records.unfinished()] == [os.getpid()]
    assert [each.pid for each in records.unfinished()] == [None]


def test_without_a_server_the_error_names_serve(tmp_path: Path) -> None:
    write_configuration(tmp_path / "config.properties", server_settings())
    for arguments in (("update", "digits", "digits.mar"), ("rollback", "digits")):
        done = run(*arguments, cwd=tmp_path)
        assert done.returncode == 5
        assert "no server started by `handlergen serve` is running" in done.stderr
        assert "Hint: `handlergen serve`" in done.stderr


def test_an_archive_takes_no_settings(tmp_path: Path) -> None:
    with pytest.raises(HandlergenError, match="its settings cannot be changed"):
        handlergen.update("digits", "digits.mar", config=tmp_path / "config.properties", version="2.0")


class Recorded:
    """A worker's commands, for the recording of requests."""

    def __init__(self, directory: Path) -> None:
        self.commands = Commands(("digits", "1.0"), directory)

    def command(self, **commands: Any) -> dict[str, Any]:
        (item,) = items({}, describe="True", **{COMMAND: json.dumps(commands)})
        assert self.commands.obeyed([item])
        assert item.failure is None, item.failure
        answer: dict[str, Any] = json.loads(item.reply.body)
        return answer

    def answer(self, item: Item) -> None:
        if item.failure is None:
            item.reply = encode({"answer": 1})
        self.commands.record([item])


def items(entry: dict[str, Any], **properties: Any) -> list[Item]:
    return received([entry], ServerContext([properties]))


def test_a_worker_records_while_it_is_commanded(tmp_path: Path) -> None:
    worker, other = Recorded(tmp_path), Recorded(tmp_path)
    (item,) = items({"body": b"[1]"}, **{"Content-Type": "application/json", "Authorization": "Bearer secret"})
    worker.answer(item)
    directory = Path(worker.command(record={"share": 1, "seconds": 60})["recording"])
    assert directory.parent == tmp_path
    assert stat.S_IMODE(directory.stat().st_mode) == 0o700
    other.commands.accepted([item])  # the command reaches the other workers with their next request
    other.answer(item)
    (file,) = directory.glob("*.json")
    file.unlink()  # these two workers are one process, and would give their files the same names
    worker.answer(item)
    failed = items({"data": b"x"})[0]
    failed.failure = Failure(400, "BadRequest", "no")
    worker.answer(failed)
    found = [json.loads(file.read_text()) for file in sorted(directory.glob("*.json"))]
    assert len(found) == 2
    assert [each["status"] for each in found].count(400) == 1
    (rest,) = {json.dumps(each) for each in found if each["status"] == 200}
    assert json.loads(rest) == {
        "grpc": False,
        "headers": {"Content-Type": "application/json"},
        "parts": {"body": ["", "WzFd"]},
        "status": 200,
        "answer": "eyJhbnN3ZXIiOjF9",
    }
    assert "secret" not in json.dumps(found)
    assert worker.command(record={"share": 0, "seconds": 0}).get("recording") is None
    assert not directory.exists()
    other.answer(item)  # has not noticed yet, and goes on
    assert not directory.exists()


@pytest.mark.parametrize(
    ("entry", "properties", "reason"),
    [
        ({"data": b"1", "ts_stream_next": b"true"}, {}, "stream"),
        ({"body": b"{}"}, {"url_path": "extra", "explain": "False"}, "address below the model's, such as KServe's"),
        ({"body": b"{}"}, {"explain": "False"}, "address below the model's, such as KServe's"),
        ({"body": b"{}"}, {"url_path": "", "explain": "True"}, "explanation"),
        ({"body": b"\x1f"}, {"Content-Encoding": "gzip"}, "compressed body"),
        ({"a": b"1"}, {"Content-Type": "application/x-www-form-urlencoded"}, "form-encoded body"),
        ({"body": {"a": 1}}, {"Content-Type": "application/json"}, "body that TorchServe decoded"),
    ],
)
def test_requests_that_cannot_be_compared(
    tmp_path: Path, entry: dict[str, Any], properties: dict[str, str], reason: str
) -> None:
    worker = Recorded(tmp_path)
    directory = Path(worker.command(record={"share": 1, "seconds": 60})["recording"])
    worker.answer(items(entry, **properties)[0])
    assert [json.loads(file.read_text()) for file in directory.glob("*.json")] == [{"unsuitable": reason}]


def test_nothing_grows_when_nobody_reads(tmp_path: Path) -> None:
    worker = Recorded(tmp_path)
    directory = Path(worker.command(record={"share": 1, "seconds": 60})["recording"])
    (item,) = items({"body": b"[1]"}, **{"Content-Type": "application/json"})
    for _ in range(300):
        worker.answer(item)
    assert 150 < len(list(directory.iterdir())) <= 200


def test_the_recording_ends_by_itself(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    worker = Recorded(tmp_path)
    worker.command(record={"share": 1, "seconds": 60})
    now = time.time()
    monkeypatch.setattr("handlergen.runtime.torchserve.shadow.time.time", lambda: now + 61)
    assert worker.command().get("recording") is None


@pytest.mark.parametrize("wrong", [{"share": 2, "seconds": 1}, {"share": "x", "seconds": 1}, {"share": 0.1}])
def test_a_wrong_command_is_refused(tmp_path: Path, wrong: dict[str, Any]) -> None:
    (item,) = items({}, describe="True", **{COMMAND: json.dumps({"record": wrong})})
    assert Commands(("digits", "1.0"), tmp_path).obeyed([item])
    assert item.failure is not None
    assert item.failure.status == 400
