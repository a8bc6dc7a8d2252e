"""Threads of the module: no process is forked beside them, and none keeps a command from ending."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

import handlergen
from handlergen.errors import HandlergenError
from handlergen.local.offline import preparation

HANDLERGEN = str(Path(sys.executable).with_name("handlergen"))

POOLED = """
from concurrent.futures import ThreadPoolExecutor

POOL = ThreadPoolExecutor(2)

def load(context):
    list(POOL.map(str, range(8)))

def preprocess(data):
    return sum(POOL.map(abs, [data["x"], -1]))

def predict(inputs):
    return inputs
"""
LEFT = """
import atexit
import threading

def load(context):
    atexit.register(print, "handler ran", flush=True)
    threading.Thread(target=threading.Event().wait, name="the-waiting-one").start()

def predict(inputs):
    print("said by predict", end="")
    return inputs if inputs else 1 / 0
"""


def handlergen_(*arguments: object) -> subprocess.CompletedProcess[str]:
    command = [HANDLERGEN, *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, check=False)


def test_map_takes_threads_where_the_module_has_some(tmp_path: Path) -> None:
    (tmp_path / "pooled.py").write_text(POOLED)
    (tmp_path / "rows.jsonl").write_text("".join(f'{{"x": {x}}}\n' for x in range(20)))
    done = handlergen_("map", tmp_path / "pooled.py", tmp_path / "rows.jsonl", "-o", "-", "--workers", 2)
    assert [json.loads(line)["answer"] for line in done.stdout.splitlines()] == list(range(1, 21))
    assert (done.returncode, done.stderr.count("the module has threads running (ThreadPoolExecutor-0_0")) == (0, 1)


def test_a_process_that_waits_for_ever_is_an_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(preparation, "_STUCK_AFTER_S", 3.0)
    source = """
import threading

import grpc

CHANNEL = grpc.insecure_channel("127.0.0.1:1")  # has threads in every fork, which wake up all the time
LOCK = threading.Lock()

def load(context):
    LOCK.acquire()

def preprocess(data):
    with LOCK:
        return data

def predict(inputs):
    return inputs
"""
    (tmp_path / "locked.py").write_text(source)
    stuck = pytest.raises(HandlergenError, match="waited for 3 s")
    with handlergen.load(tmp_path / "locked.py") as model, stuck as raised:
        list(model.map([1, 2], workers=1))
    assert "--threads" in str(raised.value.hint)


def test_rows_that_only_wait_are_waited_for(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(preparation, "_STUCK_AFTER_S", 4.0)
    source = "import time\n\ndef preprocess(data):\n    time.sleep(2)\n    return data\n\ndef predict(x): return x\n"
    (tmp_path / "slow.py").write_text(source)
    with handlergen.load(tmp_path / "slow.py") as model:
        assert [result.value for result in model.map(range(4), workers=1)] == [0, 1, 2, 3]


def test_a_preprocess_that_starts_processes_runs_in_the_predicting_one(tmp_path: Path) -> None:
    source = """
from torch.utils.data import DataLoader

def preprocess(data):
    return sum(int(batch.sum()) for batch in DataLoader(data, batch_size=2, num_workers=1))

def predict(inputs):
    return inputs
"""
    (tmp_path / "loading.py").write_text(source)
    with handlergen.load(tmp_path / "loading.py") as model:
        assert [result.value for result in model.map([[1, 2, 3], [4]], workers=1)] == [6, 4]


@pytest.mark.parametrize(("value", "status"), [("1", 0), ("0", 6)])
def test_predict_ends_whatever_threads_are_left(tmp_path: Path, value: str, status: int) -> None:
    (tmp_path / "left.py").write_text(LEFT)
    done = handlergen_("predict", tmp_path / "left.py", value)
    assert done.returncode == status
    assert done.stdout == ("1\nhandler ran\n" if status == 0 else "handler ran\n")
    assert "said by predict" in done.stderr
    assert "the module left threads running (the-waiting-one)" in done.stderr


def test_a_sample_ends_whatever_threads_are_left(tmp_path: Path) -> None:
    (tmp_path / "left.py").write_text(LEFT)
    (tmp_path / "sample.json").write_text("1")
    done = handlergen_("check", tmp_path / "left.py", "--sample", tmp_path / "sample.json")
    assert done.returncode == 0
    assert "Answer: 200 application/json\n1\n" in done.stdout


def test_threads_that_end_by_themselves_are_waited_for(tmp_path: Path) -> None:
    source = """
import pathlib
import threading
import time

def write():
    time.sleep(1)
    pathlib.Path(__file__).with_name("written").touch()

def predict(inputs):
    threading.Thread(target=write).start()
    return inputs
"""
    (tmp_path / "writing.py").write_text(source)
    done = handlergen_("predict", tmp_path / "writing.py", "1")
    assert (done.returncode, done.stdout, done.stderr) == (0, "1\n", "")
    assert (tmp_path / "written").exists()
