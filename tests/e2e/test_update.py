"""`handlergen update` and `rollback` on a real TorchServe, while clients ask over REST and gRPC.

What must hold of every history: each request is answered once, rightly, by the old or the new version.
"""

from __future__ import annotations

import json
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from pathlib import Path
from typing import Any

import pytest

from handlergen.client import Client
from handlergen.server.update_state import UpdateRecords
from tests.commands import HANDLERGEN, handlergen
from tests.histories import until
from tests.versions_under_load import VersionLoad, archive_of, source_of

pytestmark = pytest.mark.e2e

MODELS = {"single": 1, "batched": 4}
"""Each model's batch size."""

KILLED_IN = """
import os, signal, sys, threading
from handlergen.server.update_state import UpdateRecords

step, delay, arguments = sys.argv[1], float(sys.argv[2]), sys.argv[3:]
write = UpdateRecords.write


def write_and_die(self, model, record):
    write(self, model, record)
    if record.pending is not None and record.pending.step == step:
        kill = lambda: os.kill(os.getpid(), signal.SIGKILL)
        threading.Timer(delay, kill).start() if delay else kill()


UpdateRecords.write = write_and_die
from handlergen.cli import main
main(arguments)
"""
"""The command line, killed when it has recorded a step, or so many seconds later."""


class Site:
    """A server with one version of each model, and what is typed in its directory."""

    def __init__(self, server: Any, home: Path) -> None:
        self.server = server
        self.home = home

    def run(self, *arguments: str, status: int = 0) -> subprocess.CompletedProcess[str]:
        """Type a command; it must exit with that status."""
        done = handlergen(*arguments, cwd=self.server.directory)
        assert done.returncode == status, done.stdout + done.stderr
        return done

    def report(self, *arguments: str) -> dict[str, Any]:
        """Type a command with --json."""
        found: dict[str, Any] = json.loads(self.run(*arguments, "--json").stdout)
        return found

    def killed_in(self, step: str, delay: float, *arguments: str) -> None:
        """Type a command that is killed in a step; with a delay it may have passed it."""
        command = [sys.executable, "-c", KILLED_IN, step, str(delay), *arguments]
        done = subprocess.run(command, cwd=self.server.directory, capture_output=True, text=True, check=False)
        assert done.returncode == -signal.SIGKILL or (delay and done.returncode == 0), done.stdout + done.stderr

    def load(self, name: str, clients: int = 8) -> VersionLoad:
        return VersionLoad(self.server.running.client, name, clients)

    def archive(self, name: str, version: str) -> str:
        """An archive of that version, outside the store."""
        path = archive_of(self.home / name, name, version, workers_per_device=2, batch_size=MODELS[name])
        return str(path)

    def default(self, name: str) -> str:
        version: str = self.server.client.describe(name).version
        return version

    def versions(self, name: str) -> set[str]:
        return {each.version for each in self.server.client.versions(name)}

    def stored(self, name: str) -> tuple[set[str], set[str]]:
        """The names of a model's archives: those that the server would load, and those for a rollback."""
        store = self.server.store
        found, previous = (
            {path.name for path in directory.glob("*.mar") if name in path.name}
            for directory in (store, store / ".previous")
        )
        return found, previous

    def answered_by(self, load: VersionLoad, version: str) -> None:
        """Wait until every client has been answered by this version."""
        count = len(load.answered)
        until(lambda: len([each for each in load.answered[count:] if each.version == version]) > 4 * load.clients)


@pytest.fixture(scope="module")
def site(torchserve_module: Callable[..., Any], tmp_path_factory: pytest.TempPathFactory) -> Site:
    home = tmp_path_factory.mktemp("updates")
    mars = [
        archive_of(home / name, name, "1.0", workers_per_device=2, batch_size=size) for name, size in MODELS.items()
    ]
    return Site(torchserve_module(*mars, model_api=True), home)


def test_without_the_model_api_nothing_is_changed(torchserve: Callable[..., Any], tmp_path: Path) -> None:
    server = torchserve(archive_of(tmp_path / "m", "m", "1.0", workers_per_device=1))
    site = Site(server, tmp_path)
    new = archive_of(tmp_path / "m", "m", "2.0")
    for arguments in (("update", "m", str(new)), ("rollback", "m")):
        refused = site.run(*arguments, status=5)
        assert "enable_model_api" in refused.stderr
        assert "`handlergen config --model-api --force`" in refused.stderr
        assert "`handlergen stop`, `handlergen serve`" in refused.stderr
    assert [path.name for path in server.store.iterdir()] == ["m.mar"]
    assert site.default("m") == "1.0"
    assert not UpdateRecords(server.config).unfinished()


@pytest.mark.parametrize("name", MODELS)
def test_updated_and_rolled_back_under_load(site: Site, name: str) -> None:
    with site.load(name) as load:
        site.answered_by(load, "1.0")
        updated = site.report("update", name, site.archive(name, "2.0"))
        assert (updated["action"], updated["from"], updated["to"]) == ("updated", "1.0", "2.0")
        assert (updated["workers"], updated["kept"]) == (2, False)
        site.answered_by(load, "2.0")
        assert site.versions(name) == {"2.0"}
        assert site.stored(name) == ({f"{name}-2.0.mar"}, {f"{name}.mar"})
        back = site.report("rollback", name)
        assert (back["action"], back["from"], back["to"]) == ("rolled back", "2.0", "1.0")
        site.answered_by(load, "1.0")
        assert site.stored(name) == ({f"{name}.mar"}, {f"{name}-2.0.mar"})
        site.report("rollback", name)  # twice: forth and back
        site.answered_by(load, "2.0")
    assert not load.wrong("1.0", "2.0")
    assert {each.grpc for each in load.answered} == {True, False}
    assert len({each.number for each in load.answered}) == len(load.answered)


def test_the_same_contents_are_no_update(site: Site) -> None:
    default = site.default("single")
    before = site.stored("single")
    again = site.run("update", "single", site.archive("single", default))
    assert "has these contents already: nothing to do" in again.stdout
    assert site.stored("single") == before


def test_what_is_refused(site: Site, tmp_path: Path) -> None:
    before = site.stored("single")
    other = archive_of(tmp_path, "single", site.default("single"), response_timeout_s=61)
    refused = site.run("update", "single", str(other), status=1)
    assert "with other contents" in refused.stderr
    assert "--version " in refused.stderr
    refused = site.run("update", "single", site.archive("batched", "7.0"), status=1)
    assert "is the model batched, not single" in refused.stderr
    refused = site.run("update", "nobody", site.archive("batched", "7.0"), status=5)
    assert "the server has no model nobody to replace: it has batched, single" in refused.stderr
    assert site.stored("single") == before


def test_a_kept_version_makes_the_rollback_a_switch(site: Site) -> None:
    old = site.default("single")
    workers = {worker.pid for worker in site.server.client.describe("single").workers}
    with site.load("single") as load:
        kept = site.report("update", "single", site.archive("single", "3.0"), "--keep")
        assert kept["kept"]
        assert site.versions("single") == {old, "3.0"}
        site.answered_by(load, "3.0")
        new_workers = {worker.pid for worker in site.server.client.describe("single").workers}
        assert site.report("rollback", "single", "--keep")["kept"]
        assert {worker.pid for worker in site.server.client.describe("single").workers} == workers
        site.answered_by(load, old)
        assert not site.report("rollback", "single")["kept"]
        assert {worker.pid for worker in site.server.client.describe("single").workers} == new_workers
        site.answered_by(load, "3.0")
    assert not load.wrong(old, "3.0")
    assert site.versions("single") == {"3.0"}


def test_a_version_that_cannot_be_loaded(site: Site, tmp_path: Path) -> None:
    old, before = site.default("single"), site.stored("single")
    source = tmp_path / "single.py"
    source.write_text(source_of("bad").replace('    return "loaded by "', '    return missing + ""'))
    with site.load("single") as load:
        failed = site.run("update", "single", str(source), "--batch", "list", status=4)
        site.answered_by(load, old)
    assert "NameError: name 'missing' is not defined" in failed.stderr
    assert f"single {old} goes on serving" in failed.stderr
    assert not load.wrong(old)
    assert site.versions("single") == {old}
    assert site.stored("single") == before
    assert not list(site.server.store.glob(".update-*"))
    assert site.report("status")["updates"] == []


def test_a_source_gets_the_next_version_and_a_changed_one_replaces_an_unfinished(site: Site, tmp_path: Path) -> None:
    """Killed with one source, and gone on with another: the first one's version is removed."""
    source = tmp_path / "batched.py"
    old = site.default("batched")
    arguments = ("update", "batched", str(source), "--batch", "list", "--workers-per-device", "1")
    source.write_text(source_of("first"))
    with site.load("batched") as load:
        site.killed_in("load", 0, *arguments)
        assert site.versions("batched") == {old, "1.1"}
        status = site.run("status").stdout
        assert f"interrupted update of batched from {old} to 1.1: step load, {old} serves; the same command" in status
        (unfinished,) = site.report("status")["updates"]
        assert (unfinished["replacement"]["new"], unfinished["replacement"]["step"]) == ("1.1", "load")
        source.write_text(source_of("second"))
        report = site.report(*arguments)
        assert (report["from"], report["to"], report["workers"]) == (old, "1.1", 2)
        site.answered_by(load, "second")
        assert site.run("status").stdout.count("interrupted") == 0
    assert not load.wrong(old, "second")
    assert site.stored("batched")[0] == {"batched-1.1.mar"}


STEPS = ("archive", "register", "load", "shadow", "switch", "retire")


@pytest.mark.parametrize("delay", [0.0, 0.2], ids=["at the beginning", "in the middle"])
def test_killed_in_each_step_and_gone_on(site: Site, delay: float) -> None:
    """One update: each command goes on from the step in which the one before was killed, and is killed in the next."""
    old, new = site.default("single"), f"{10 + 10 * delay:g}.0"
    command = ("update", "single", site.archive("single", new), "--shadow", "50%", "--shadow-for", "1")
    with site.load("single") as load:
        for step in STEPS:
            site.killed_in(step, delay, *command)
            if not delay:
                assert site.default("single") == (new if step == "retire" else old)
                (unfinished,) = UpdateRecords(site.server.config).unfinished()
                assert unfinished.replacement.step == step
        site.run(*command)
        site.answered_by(load, new)
    assert not load.wrong(old, new)
    assert site.versions("single") == {new}
    assert site.stored("single")[0] == {f"single-{new}.mar"}
    assert site.report("status")["updates"] == []


def test_a_rollback_killed_in_each_step_and_gone_on(site: Site) -> None:
    now, before = site.default("single"), UpdateRecords(site.server.config).read("single").previous
    assert before is not None
    with site.load("single") as load:
        for step in STEPS:
            if step != "shadow":
                site.killed_in(step, 0, "rollback", "single")
        assert site.report("rollback", "single")["to"] == before
        site.answered_by(load, before)
    assert not load.wrong(now, before)
    assert site.versions("single") == {before}


def test_an_interrupted_update_is_rolled_back_and_ctrl_c_says_so(site: Site, tmp_path: Path) -> None:
    old, stored = site.default("single"), site.stored("single")
    source = tmp_path / "single.py"
    source.write_text(source_of("slow").replace('    return "loaded by', '    time.sleep(60)\n    return "loaded by'))
    command = [HANDLERGEN, "update", "single", str(source), "--batch", "list", "--version", "30.0"]
    with subprocess.Popen(command, cwd=site.server.directory, stderr=subprocess.PIPE, text=True) as process:
        until(lambda: any(each.replacement.step == "load" for each in UpdateRecords(site.server.config).unfinished()))
        running = site.run("status").stdout
        assert f"update of single from {old} to 30.0: step load, process {process.pid}" in running
        refused = site.run("rollback", "single", status=5)
        assert f"another update or rollback is running on config.properties (process {process.pid})" in refused.stderr
        process.send_signal(signal.SIGINT)
        _, said = process.communicate(timeout=60)
    assert process.returncode == 130
    assert "interrupted: the same command goes on, `handlergen rollback single` goes back" in said
    undone = site.run("rollback", "single")
    assert f"single: the unfinished update was removed; {old} serves" in undone.stdout
    assert (site.versions("single"), site.stored("single")) == ({old}, stored)


@contextmanager
def forms(connect: Callable[[], Client], name: str) -> Iterator[None]:
    """Send multipart forms, and requests without a content type, while the block runs."""
    ended, asked = threading.Event(), 0

    def ask() -> None:
        nonlocal asked
        with connect() as client:
            while not ended.is_set():
                assert client.predict(name, fields={"n": b"7"}).status == 200
                assert client.predict(name, content=b'{"n": 8}', headers={"Content-Type": ""}).status == 200
                asked += 1

    thread = threading.Thread(target=ask)
    thread.start()
    try:
        yield
    finally:
        ended.set()
        thread.join()
    assert asked > 5


SHADOWED = {
    "equal": ('"n": each["n"]', '"n": each["n"] * 1.0001'),
    "different": ('"model": model', '"model": model + "!"'),
    "failing": ("def preprocess(data):\n", "def preprocess(data):\n    raise RuntimeError('not this one')\n"),
}


@pytest.mark.parametrize("kind", SHADOWED)
def test_a_shadow(site: Site, kind: str, tmp_path: Path) -> None:
    old = site.default("batched")
    said = "second" if old == "1.1" else old
    source = tmp_path / "batched.py"
    source.write_text(source_of(said).replace(*SHADOWED[kind]))
    arguments = ("update", "batched", str(source), "--batch", "list", "--shadow", "50%", "--shadow-for", "3")
    # A field's text stays text, and would not be equal to a number.
    others = nullcontext() if kind == "equal" else forms(site.server.running.client, "batched")
    with site.load("batched") as load, others:
        site.answered_by(load, said)
        if kind == "failing":
            failed = site.run(*arguments, status=5).stderr
            assert "failed at a request that" in failed
            assert f"batched {old} goes on serving" in failed
        elif kind == "different":
            failed = site.run(*arguments, "--max-different", "10%", status=5).stderr
            assert "requests differently, more than 10.000%" in failed
            assert f'answer.model: "loaded by {said}" != "loaded by {said}!"' in failed
            site.answered_by(load, said)
        else:
            report = site.report(*arguments)["shadow"]
            assert report["equal"] == report["compared"] > 20
            assert (report["different"], report["failed"], report["unsuitable"]) == (0, 0, {})
    if kind == "equal":
        assert site.default("batched") != old
        site.run("rollback", "batched")
        failed = site.run(*arguments, "--shadow-for", "1", "--max-different", "10%", status=5).stderr
        assert "no answer of batched" in failed
    else:
        assert not load.wrong(said)
    assert site.versions("batched") == {old}


def test_nothing_to_roll_back_to(site: Site) -> None:
    record = site.server.directory / ".handlergen" / "config.properties.updates.json"
    shutil.move(record, record.with_suffix(".kept"))
    try:
        refused = site.run("rollback", "single", status=5)
    finally:
        shutil.move(record.with_suffix(".kept"), record)
    assert "there is nothing to roll back" in refused.stderr


def test_an_old_version_that_is_busy_for_longer_than_the_command_waits(site: Site) -> None:
    slow = site.home / "slow"
    slow.mkdir()
    (slow / "batched.py").write_text(source_of("slow", seconds=4))
    arguments = ("update", "batched", str(slow / "batched.py"), "--batch", "list")
    site.run(*arguments, "--version", "40.0")
    began = time.monotonic()
    with site.load("batched", clients=2) as load:
        until(lambda: time.monotonic() > began + 1)
        late = site.run("update", "batched", site.archive("batched", "41.0"), "--drain", "0.5", status=5)
        assert "batched 41.0 is the default and serves, but 40.0 could not be unregistered" in late.stderr
        assert "step retire, 41.0 serves" in site.run("status").stdout
        site.run("update", "batched", site.archive("batched", "41.0"))
        site.answered_by(load, "41.0")
    assert not load.wrong("slow", "41.0")
    assert site.versions("batched") == {"41.0"}
