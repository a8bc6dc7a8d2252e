"""The process that is forked off an empty worker: it becomes the predictor process, or ends, and holds nothing."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
import threading
from pathlib import Path
from typing import Any

import psutil
import pytest

from handlergen.runtime.process.spare import Spare
from tests.histories import until

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="elsewhere no spare process is made")

WORKER = """
import json, os, socket, sys, time
from pathlib import Path
import torch
from handlergen.runtime.process import main
from handlergen.runtime.process.spare import Spare

def run(arguments):
    print(json.dumps({
        "arguments": arguments,
        "directory": os.getcwd(),
        "environ": dict(os.environ),
        "files": sorted(int(path.name) for path in list(Path("/proc/self/fd").iterdir())),
        "leads": os.getsid(0) == os.getpid(),
        "pid": os.getpid(),
        "command": Path("/proc/self/cmdline").read_text().rstrip("\\0"),
        "argv": sys.argv,
    }))
    os._exit(3)

main.run = run
ours, theirs = socket.socketpair()

spare = Spare.if_safe()
"""


def worker(directory: Path, rest: str, *arguments: str) -> dict[str, Any]:
    """What a worker that makes a spare process, and does the rest then, says in its last line."""
    ran = subprocess.run(
        [sys.executable, "-c", WORKER + rest, *arguments, "x" * 300],
        cwd=directory,
        capture_output=True,
        text=True,
        timeout=100,
        check=False,
    )
    assert ran.returncode == 0, ran.stderr
    said: dict[str, Any] = json.loads(ran.stdout.splitlines()[-1])
    return said


BECOME = """
print("not twice", flush=False)
output = Path("output")
spare.become(["python", "-m", "a.b", "/home/of"], directory=Path("model"), environ={"ONLY": "this"}, output=output)
while spare.poll() is None:
    time.sleep(0.01)
print(json.dumps({"pid": spare.pid, "code": spare.poll(), "said": output.read_text()}))
"""


def test_it_becomes_what_it_is_told(tmp_path: Path) -> None:
    (tmp_path / "model").mkdir()
    seen = worker(tmp_path, BECOME)
    said = json.loads(seen["said"])  # and nothing that the worker had not printed yet
    listing = said["files"].pop()
    assert listing == 3
    assert said == {
        "arguments": ["/home/of"],
        "argv": ["a.b", "/home/of"],
        "command": "python -m a.b /home/of",
        "directory": str(tmp_path / "model"),
        "environ": {"ONLY": "this"},
        "files": [0, 1, 2],
        "leads": True,
        "pid": seen["pid"],
    }
    assert seen["code"] == 3


def test_what_it_writes_follows_what_is_there(tmp_path: Path) -> None:
    (tmp_path / "model").mkdir()
    (tmp_path / "output").write_text("before\n")
    assert worker(tmp_path, BECOME)["said"].startswith('before\n{"arguments"')


def test_it_holds_nothing_of_the_workers_while_it_waits(tmp_path: Path) -> None:
    rest = """
theirs.close()
ours.settimeout(10)
theirs_gone = ours.recv(1) == b""
def links():
    try:
        return sorted(os.readlink(path) for path in Path(f"/proc/{spare.pid}/fd").iterdir())
    except FileNotFoundError:  # it is just at it
        return []
held, deadline = [], time.monotonic() + 10
while len(held) != 4 and time.monotonic() < deadline:
    held = links()
print(json.dumps({"gone": theirs_gone, "held": held}))
spare.dismiss()
"""
    seen = worker(tmp_path, rest)
    pipe = seen["held"].pop()
    assert pipe.startswith("pipe:")
    assert seen == {"gone": True, "held": ["/dev/null"] * 3}


def test_it_ends_when_it_is_not_needed_and_leaves_no_zombie(tmp_path: Path) -> None:
    rest = """
spare.dismiss()
print(json.dumps({"pid": spare.pid, "there": os.path.exists(f"/proc/{spare.pid}")}))
"""
    assert worker(tmp_path, rest)["there"] is False


@pytest.mark.parametrize("how", ["os._exit(0)", "os.kill(os.getpid(), 9)"])
def test_it_ends_with_its_worker(tmp_path: Path, how: str) -> None:
    rest = f"""
print(spare.pid, flush=True)
{how}
"""
    ran = subprocess.run(
        [sys.executable, "-c", WORKER + rest], cwd=tmp_path, capture_output=True, text=True, check=False
    )
    assert ran.returncode in (0, -signal.SIGKILL), ran.stderr
    until(lambda: not psutil.pid_exists(int(ran.stdout)), 10)


def test_one_that_has_died_is_told(tmp_path: Path) -> None:
    rest = """
os.kill(spare.pid, 9)
while spare.poll() is None:
    time.sleep(0.01)
try:
    spare.become(["a", "b"], directory=Path("."), environ={}, output=Path("output"))
except OSError as error:
    print(json.dumps({"error": type(error).__name__}))
"""
    assert worker(tmp_path, rest) == {"error": "BrokenPipeError"}


def test_none_is_made_where_it_might_not_work(monkeypatch: pytest.MonkeyPatch) -> None:
    ended = threading.Event()
    thread = threading.Thread(target=ended.wait)
    thread.start()
    before = len(psutil.Process().children())
    try:
        assert Spare.if_safe() is None
        monkeypatch.setattr("handlergen.runtime.process.spare.threading.active_count", lambda: 1)
        monkeypatch.setattr("torch.cuda.is_available", lambda: True)
        assert Spare.if_safe() is None
    finally:
        ended.set()
        thread.join()
    assert len(psutil.Process().children()) == before
