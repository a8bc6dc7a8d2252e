"""map --engine ray, on a cluster of two nodes on this machine. In a process of its own: Ray keeps threads and warns."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

pytestmark = [pytest.mark.e2e, pytest.mark.timeout(280)]

MODULE = """
from pathlib import Path

import ray

label = Path("label.txt").read_text()

def preprocess(data):
    if isinstance(data, bytes):
        return len(data)
    if data["x"] < 0:
        raise ValueError("x must not be negative")
    return data["x"]

def predict(inputs):
    return inputs * 2

def postprocess(outputs, input_data):
    where = ray.get_runtime_context().get_node_id()
    return {"y": outputs, "label": label, "node": where} if input_data != {"x": 3} else outputs
"""

PROGRAM = """
import json, os, sys, threading
from pathlib import Path

import ray
from ray.cluster_utils import Cluster

small = {"num_cpus": 1, "object_store_memory": 80 * 2**20}
cluster = Cluster(initialize_head=True, head_node_args={**small, "include_dashboard": False})
cluster.add_node(**small)
cluster.wait_for_nodes()
ray.init(address=cluster.address, logging_level="ERROR", log_to_driver=False)

from handlergen.errors import HandlergenError, TooManyErrors
from handlergen.local.offline.job import as_json, map_to_file
from handlergen.local.offline.ray_engine import open_ray_engine
from handlergen.local.offline.sources import RowSource, open_source

report = {"nodes": len(ray.nodes())}
with open_ray_engine(Path("model.py"), actors=None) as engine:
    out = Path("out.jsonl")
    try:
        map_to_file(engine, open_source("rows.jsonl"), out, batch_size=4, max_errors=0)
    except TooManyErrors:
        report["kept"] = out.read_text()
    summary = map_to_file(engine, open_source("rows.jsonl"), out, batch_size=4)
    report["summary"] = as_json(summary)

    map_to_file(engine, open_source("scans"), Path("scans.jsonl"), batch_size=1)

    # An input that waits for the answers to what it has given: they come while it is open.
    reader, writer = os.pipe()
    def feed():
        with os.fdopen(writer, "wb") as stream:
            stream.write(b'{"x": 1}\\n' * 4)
            stream.flush()
            answered.wait(120)
            report["came before the end"] = answered.is_set()
            stream.write(b'{"x": 2}\\n' * 4)
    answered = threading.Event()
    thread = threading.Thread(target=feed)
    thread.start()
    source = RowSource("jsonl", stream=os.fdopen(reader, "rb"))
    map_to_file(engine, source, Path("live.jsonl"), batch_size=4, progress=lambda _p: answered.set())
    thread.join()

    try:
        bad = RowSource("csv", stream=open("bad.csv", "rb"))
        map_to_file(engine, bad, Path("bad.jsonl"), batch_size=1)
    except HandlergenError as error:
        report["bad"] = error.message
ray.shutdown()
cluster.shutdown()
print(json.dumps(report))
"""


def test_two_nodes_answer_as_one_process_does(tmp_path: Path) -> None:
    pytest.importorskip(
        "ray", reason="Ray is not installed: map --engine ray is NOT tested (pip install handlergen[ray])"
    )
    (tmp_path / "model.py").write_text(MODULE)
    (tmp_path / "label.txt").write_text("from a file")
    (tmp_path / "handlergen.yaml").write_text("name: model\nsource: model.py\nextra_files: [label.txt]\n")
    values = [-1 if number == 30 else number for number in range(90)]
    (tmp_path / "rows.jsonl").write_text("".join(f'{{"x": {value}}}\n' for value in values))
    (tmp_path / "scans").mkdir()
    for name in ("a", "bb", "ccc"):
        (tmp_path / "scans" / name).write_bytes(b"x" * len(name))
    (tmp_path / "bad.csv").write_text("x,y\n1,2\n3\n")
    done = subprocess.run([sys.executable, "-c", PROGRAM], cwd=tmp_path, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    report = json.loads(done.stdout.splitlines()[-1])
    assert report["nodes"] == 2
    rows = [json.loads(line) for line in (tmp_path / "out.jsonl").read_text().splitlines()]
    assert [row["id"] for row in rows] == list(range(90))
    assert rows[30]["error"] == {"type": "ValueError", "message": "x must not be negative"}
    answers = [row["answer"] for row in rows if "answer" in row]
    assert answers[3] == 6
    assert [answer["y"] for answer in answers[4:10]] == [8, 10, 12, 14, 16, 18]
    assert {answer["label"] for answer in answers[4:]} == {"from a file"}
    assert len({answer["node"] for answer in answers[4:]}) == 2
    # It stopped at the first error, kept what was done, and went on from there.
    assert report["kept"].count("\n") == report["summary"]["resumed_rows"] == 32
    assert (tmp_path / "out.jsonl").read_text().startswith(report["kept"])
    assert (report["summary"]["rows"], report["summary"]["failed"]) == (90, 1)
    scans = [json.loads(line) for line in (tmp_path / "scans.jsonl").read_text().splitlines()]
    assert [(row["id"], row["answer"]["y"]) for row in scans] == [("a", 2), ("bb", 4), ("ccc", 6)]
    assert report["came before the end"] is True
    assert "the row has fewer fields than the header" in report["bad"]
