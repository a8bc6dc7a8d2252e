"""`handlergen logs` on log files as TorchServe 0.12.0 writes them, without a server."""

from __future__ import annotations

import gzip
import json
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from handlergen.runtime.environment import REPORT
from handlergen.server.logs import EventJoiner
from tests.commands import HANDLERGEN, handlergen

FAILED = """request my-id/11ec-9f failed in predict with status 500
Traceback (most recent call last):
  File "/tmp/models/0f/m.py", line 3, in predict
    raise KeyError("x")
KeyError: 'x'

During handling of the above exception, another exception occurred:

Traceback (most recent call last):
  File "/tmp/models/0f/m.py", line 5, in predict
    raise RuntimeError
RuntimeError: two
lines
"""
FATAL = """Fatal Python error: Segmentation fault

Stack (most recent call first):
  File "/tmp/models/0f/m.py", line 5 in predict

Extension modules: torch._C (total: 1)"""
LOADING = """handlergen: the model could not be loaded: OSError: no weights
Traceback (most recent call last):
  File "m.py", line 1, in load
OSError: no
weights

Worker disconnected."""
START = """s_name_part0=/tmp/x/.ts.sock, s_name_part1=9000, pid=12
Listening on port: /tmp/x/.ts.sock.9000
Successfully loaded /srv/metrics.yaml.
[PID]12
Torch worker started.
Python runtime: 3.11.7
model_name: m, batchSize: 1
"""


def log(text: str, *, worker: str = "W-9000", level: str = "INFO ", model: str = "m_1.0") -> str:
    head = f"2026-11-20T12:35:22,298 [{level}] {worker}-{model}-stdout MODEL_LOG - "
    return "".join(f"{head}{line}\n" for line in text.split("\n"))


def mixed(*texts: str) -> str:
    """The lines of several workers in turn."""
    queues = [text.splitlines(keepends=True) for text in texts]
    return "".join(lines.pop(0) for _ in range(max(map(len, queues))) for lines in queues if lines)


@pytest.fixture
def directory(tmp_path: Path) -> Path:
    (tmp_path / "config.properties").write_text("model_store=model-store\n")
    (tmp_path / "logs").mkdir()
    return tmp_path


Events = Callable[..., list[dict[str, str]]]


@pytest.fixture
def events(directory: Path) -> Events:
    def read(*arguments: str) -> list[dict[str, str]]:
        done = handlergen("logs", *arguments, "--json", cwd=directory)
        assert done.returncode == 0, done.stderr
        return [json.loads(line) for line in done.stdout.splitlines()]

    return read


def test_tracebacks_of_workers_that_log_at_once_are_whole_and_torchserves_lines_one(
    directory: Path, events: Events
) -> None:
    logged = 'went wrong\nTraceback (most recent call last):\n  File "m.py", line 1\nValueError: 1\nnext print'
    (directory / "logs/model_log.log").write_text(
        mixed(log(START + FAILED + "\nafter"), log(logged, worker="W-9001", model="other_2.0"))
        + log("careful", level="WARN ")
        + log("ERROR:root:broken")
        + log(FATAL, level="WARN ")
        + log(LOADING, worker="W-9002", model="third_1.0")
        + "no line of this configuration\n"
    )
    (directory / "logs/predictor-m-1.0-cpu.log").write_text("printed in load\n")
    found = [(event["level"], event["source"], event["text"]) for event in events()]
    assert sorted(found) == sorted(
        [
            ("info", "W-9000", "worker started, process 12"),
            ("error", "W-9000", FAILED.rstrip()),
            ("info", "W-9000", "after"),
            ("error", "W-9001", logged.removesuffix("\nnext print")),
            ("info", "W-9001", "next print"),
            ("warning", "W-9000", "careful"),
            ("error", "W-9000", "ERROR:root:broken"),
            ("error", "W-9000", FATAL),
            ("error", "W-9002", LOADING.removesuffix("\n\nWorker disconnected.")),
            ("info", "W-9002", "Worker disconnected."),
            ("info", "", "no line of this configuration"),
            ("info", "predictor-m-1.0-cpu", "printed in load"),
        ]
    )
    assert [event["text"] for event in events("--model", "m", "--level", "warning")] == [
        FAILED.rstrip(),
        "careful",
        "ERROR:root:broken",
        FATAL,
    ]
    assert {event["source"] for event in events("--model", "m_1.0")} == {"W-9000", "predictor-m-1.0-cpu"}


def test_a_worker_that_prints_nothing_more_holds_nobody_up() -> None:
    joined = EventJoiner()
    lines = [*log(FAILED).splitlines()[:-1], *(log(str(number), worker="W-9001") for number in range(3000))]
    early = [event.text for line in lines for event in joined.add(line.removesuffix("\n"))]
    assert early[0] == FAILED.rstrip()
    assert early[1:] + [event.text for event in joined.rest()] == [str(number) for number in range(3000)]
    assert len(early) > 1500


def test_a_model_that_could_not_be_loaded_is_an_error_with_and_without_a_traceback(
    directory: Path, events: Events
) -> None:
    reason = REPORT + "torch is not installed for Python 3.9.1"
    raised = (
        REPORT
        + 'ValueError: two lines\nTraceback (most recent call last):\n  File "m.py", line 1\nValueError: two\nlines\n'
    )
    trace = 'Traceback (most recent call last):\n  File "model_service_worker.py", line 1\nRuntimeError: two lines'
    repeated = f"Failed to load model m, exception two lines\n{trace}\nBackend worker process died.\n{trace}"
    (directory / "logs/model_log.log").write_text(
        mixed(log(f"{raised}\n{repeated}"), log(f"{reason}\nBackend worker process died.", worker="W-9001"))
        + log("Backend worker process died.", worker="W-9002")
    )
    found = {(event["source"], event["text"]) for event in events("--level", "error")}
    assert found == {("W-9000", raised.rstrip()), ("W-9001", reason), ("W-9002", "Backend worker process died.")}


def test_one_requests_lines_by_either_id_also_in_rotated_files(directory: Path, events: Events) -> None:
    with gzip.open(directory / "logs/model_log.2026-11-19.1.log.gz", "wt") as rotated:
        rotated.write(log(FAILED) + log("request my-id-2/0 failed in predict with status 500\nKeyError\n"))
    (directory / "logs/model_log.2026-11-20.1.log").write_text(log("my-id: being compressed"))
    (directory / "logs/model_log.2026-11-20.1.log.gz").write_bytes(b"\x1f\x8b")  # not complete yet
    (directory / "logs/model_log.log").write_text(
        log("my-id: a hook's own line") + log("not my-ids") + log("nor my-id.2")
    )
    expected = [FAILED.rstrip(), "my-id: being compressed", "my-id: a hook's own line"]
    assert [event["text"] for event in events("my-id")] == expected
    assert [event["text"] for event in events("11ec-9f")] == expected[:1]
    missing = handlergen("logs", "my", cwd=directory)
    assert missing.returncode == 1
    assert "no line about request my\n" in missing.stderr


def test_the_log_is_where_the_log_configuration_says(directory: Path, events: Events) -> None:
    (directory / "config.properties").write_text("model_store=model-store\nvmargs=-Dlog4j.configurationFile=own.xml\n")
    (directory / "own.xml").write_text(
        '<Property name="where">${env:NO_SUCH_VARIABLE:-elsewhere}/here</Property> fileName="${where}/model_log.log"'
    )
    (directory / "elsewhere/here").mkdir(parents=True)
    (directory / "elsewhere/here/model_log.log").write_text(log("found"))
    assert [event["text"] for event in events()] == ["found"]


def test_what_cannot_be_read_is_said(directory: Path) -> None:
    done = handlergen("logs", cwd=directory)
    assert done.returncode != 0
    assert "there is no model log logs/model_log.log" in done.stderr
    (directory / "logs/model_log.log").write_text(log("\x1b[31mred"))
    (directory / "logs/model_log.1.log.gz").write_text("no gzip")
    assert r"\x1b[31mred" in handlergen("logs", cwd=directory).stdout
    done = handlergen("logs", "an-id", cwd=directory)
    assert done.returncode == 1
    assert "model_log.1.log.gz cannot be read: Not a gzipped file" in done.stderr


@pytest.fixture
def following(directory: Path) -> Iterator[subprocess.Popen[str]]:
    command = [HANDLERGEN, "logs", "--follow", "--level", "info"]
    process = subprocess.Popen(command, cwd=directory, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    yield process
    process.kill()
    process.communicate()


def test_follow_shows_what_comes_also_when_the_file_is_rotated(
    directory: Path, following: subprocess.Popen[str]
) -> None:
    assert following.stderr is not None
    assert following.stdout is not None
    assert "no server of `handlergen serve` runs on config.properties" in following.stderr.readline()
    path = directory / "logs/model_log.log"
    path.write_text(log("first"))
    assert following.stdout.readline().endswith("first\n")
    with path.open("a") as file:
        file.write(log("second"))
    path.rename(directory / "logs/model_log.1.log")
    path.write_text(log("third"))
    assert [following.stdout.readline().split()[-1] for _ in range(2)] == ["second", "third"]
