"""A project as a server would run it, without the server: inspected, its contract written and read, loaded."""

from __future__ import annotations

import importlib
import json
import subprocess
import sys
import textwrap
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from handlergen.archives.staging import make_bundle
from handlergen.cli import main
from handlergen.inspection.project import open_project
from handlergen.local.model import LocalModel, load
from handlergen.runtime.contract import Bundle
from handlergen.runtime.worker import Worker
from tests.serving import ServerContext

Run = Callable[..., tuple[int, str, str]]


class ServedProject:
    """A loaded project. Call it with values: one batch of JSON requests, answered as (status, value) pairs."""

    def __init__(self, worker: Worker) -> None:
        self.worker = worker
        self.context: ServerContext

    def __call__(self, *values: Any) -> list[tuple[int, Any]]:
        return [(status, json.loads(body)) for status, body in self.raw(*[(value, {}) for value in values])]

    def raw(self, *requests: tuple[Any, dict[str, str]]) -> list[tuple[int, bytes]]:
        """One batch of (body, headers) pairs; the content type is JSON where the headers name none."""
        properties = []
        for _, headers in requests:
            kind = headers.get("content-type", "application/json")
            properties.append({"host": "h", "content-type": kind, "body": {"content-type": kind}, **headers})
        self.context = ServerContext(properties)
        bodies = self.worker.handle([{"body": body} for body, _ in requests], self.context)
        return list(zip(self.context.statuses, bodies, strict=True))

    def describe(self) -> Any:
        """What the management address's `customized=true` is answered."""
        context = ServerContext([{"describe": "True", "host": "h"}])
        (body,) = self.worker.handle([{}], context)
        assert context.statuses == [200]
        return json.loads(body)


@pytest.fixture
def run(capsys: pytest.CaptureFixture[str]) -> Run:
    """`run("check", "digits.py")` -> exit status, stdout and stderr of that command, in this process."""

    def handlergen(*arguments: str) -> tuple[int, str, str]:
        with pytest.raises(SystemExit) as ended:
            main(list(arguments))
        printed = capsys.readouterr()
        return int(ended.value.code or 0), printed.out, printed.err

    return handlergen


@pytest.fixture
def write_onnx_sums() -> Callable[..., None]:
    """`write_onnx_sums(path, columns=3)`: an ONNX model, (n, columns) to (n,): the rows' sums."""
    onnx = pytest.importorskip("onnx")
    helper, real = onnx.helper, onnx.TensorProto.FLOAT

    def write(path: Path, *, columns: int) -> None:
        graph = helper.make_graph(
            [helper.make_node("ReduceSum", ["x", "axes"], ["y"], keepdims=0)],
            "sums",
            [helper.make_tensor_value_info("x", real, ["n", columns])],
            [helper.make_tensor_value_info("y", real, ["n"])],
            [helper.make_tensor("axes", onnx.TensorProto.INT64, [1], [1])],
        )
        onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 13)], ir_version=8), path)

    return write


@pytest.fixture
def ended() -> int:
    """The id of a process that is no more."""
    process = subprocess.Popen(["true"])
    process.wait()
    return process.pid


@pytest.fixture
def serve_project(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[..., ServedProject]]:
    """`serve_project(source, batch_size=8, **settings)`: source text becomes a module beside tmp_path's files."""
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.chdir(tmp_path)  # as in a worker: the archive's root
    monkeypatch.setenv("HANDLERGEN_STATE_DIR", str(tmp_path / "state"))
    monkeypatch.setenv("HANDLERGEN_TRACE_DIR", str(tmp_path / "spans"))
    opened: list[Worker] = []

    def serve(source: str, *, batch_size: int = 8, **settings: Any) -> ServedProject:
        name = f"served_{len(opened)}_{abs(hash(tmp_path))}"
        (tmp_path / f"{name}.py").write_text(textwrap.dedent(source))
        importlib.invalidate_caches()
        project = open_project(
            tmp_path / f"{name}.py", overrides={"name": "m", "batch_size": batch_size, **settings}, environ={}
        )
        bundle = Bundle.from_json(make_bundle(project).to_json())
        worker = Worker(bundle, tmp_path, gpu_id=None, batch_size=batch_size)
        opened.append(worker)
        return ServedProject(worker)

    yield serve
    for worker in opened:
        worker.close()
    for name in [name for name in sys.modules if name.startswith("served_")]:
        del sys.modules[name]


@pytest.fixture
def model(tmp_path: Path) -> Iterator[Callable[..., LocalModel]]:
    """`model(source, **settings)`: source text becomes mymodel.py and is loaded as `handlergen.load` does."""
    opened: list[LocalModel] = []

    def make(source: str, **settings: Any) -> LocalModel:
        (tmp_path / "mymodel.py").write_text(textwrap.dedent(source))
        opened.append(load(tmp_path / "mymodel.py", **settings))
        return opened[-1]

    yield make
    for each in opened:
        each.close()
