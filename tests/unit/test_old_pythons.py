"""The runtime in the Pythons of TorchServe's images: 3.9 and newer, where the tool itself needs 3.10.

torch is a stub there: these Pythons have the standard library only. No hook of the module here uses a tensor.
"""

from __future__ import annotations

import ast
import os
import subprocess
import sys
from pathlib import Path

import pytest

from handlergen.archives.staging import make_bundle
from handlergen.inspection.project import open_project
from handlergen.runtime import contract
from tests.commands import pythons

RUNTIME = Path(contract.__file__).parent

TORCH = """
import contextlib
import sys
import types

def __getattr__(name):
    if name.startswith("__"):
        raise AttributeError(name)
    return type(name, (), {})

Tensor = type("Tensor", (), {})
layout = type("layout", (), {})

class device:
    def __init__(self, type):
        self.type = type

cuda = types.SimpleNamespace(is_available=lambda: False, is_initialized=lambda: False)
inference_mode = contextlib.nullcontext
is_inference_mode_enabled = lambda: True
set_num_threads = lambda count: None
"""

MODULE = """
from typing import Dict, Optional

async def preprocess(data: Dict[str, Optional[int]]):
    return data["a"]

def predict(inputs):
    yield "%d " % (inputs + 1)
    if inputs < 0:
        raise ValueError("negative")
    yield "and done"
"""

PROGRAM = """
import importlib
import os
import pathlib
import socket
import sys

root = pathlib.Path(sys.argv[1])
for path in sorted((root / "handlergen_runtime").rglob("*.py")):
    name = ".".join(path.relative_to(root).with_suffix("").parts)
    importlib.import_module(name[: -len(".__init__")] if name.endswith(".__init__") else name)

from handlergen_runtime.worker import Worker

class Context:
    manifest = {"model": {"modelName": "m"}}
    model_name, metrics, outlet = "m", None, None

    def __init__(self, place, headers):
        self.system_properties = {"model_dir": str(place), "gpu_id": None, "batch_size": 3}
        self.request_ids = {index: "%s %d of %d" % (place.name, index, len(headers)) for index in range(len(headers))}
        self.request_processor = [self.Processor(each) for each in headers]
        self.statuses = [200] * len(headers)

    class Processor:
        def __init__(self, headers):
            self.get_request_properties = lambda: headers

    def set_response_content_type(self, index, value):
        pass

    def set_response_header(self, index, name, value):
        pass

    def set_response_status(self, status, phrase, index):
        self.statuses[index] = status

cl_socket, frontend = socket.socketpair()
headers = {"explain": "False", "url_path": "", "content-type": "application/json"}
for name in sys.argv[2:]:
    place = root / name
    sys.path.insert(0, str(place))
    os.chdir(place)
    worker = Worker.start(Context(place, []))
    context = Context(place, [headers, headers, headers])
    bodies = worker.handle([{"body": b'{"a": 1}'}, {"body": b'{"a": -1}'}, {"body": b"[1"}], context)
    assert context.statuses == [200, 500, 400], (context.statuses, bodies)
    assert bodies[0] == b'"2 and done"', bodies
    describe = Context(place, [{"describe": "True"}])
    (body,) = worker.handle([{}], describe)
    assert describe.statuses == [200], body
    worker.close()
cl_socket.close()
frontend.close()
"""


@pytest.mark.parametrize("version", ["3.9", "3.10", "3.11", "3.12", "3.13"])
def test_every_module_is_imported_and_requests_are_answered(version: str, tmp_path: Path) -> None:
    python = pythons().get(version)
    if python is None:
        pytest.skip(f"no Python {version} on this machine")
    placements: dict[str, dict[str, str]] = {
        "in_worker": {},
        "in_process": {"predictor": "process", "stages": "worker"},
        "in_predictor": {"predictor": "process", "stages": "predictor"},
    }
    for name, settings in placements.items():
        place = tmp_path / name
        place.mkdir()
        (place / f"{name}.py").write_text(MODULE)
        project = open_project(place / f"{name}.py", overrides=settings, environ={})
        (place / "handlergen.json").write_text(make_bundle(project).to_json())
        (place / "handlergen_runtime").symlink_to(RUNTIME)
    (tmp_path / "handlergen_runtime").symlink_to(RUNTIME)
    (tmp_path / "torch").mkdir()
    (tmp_path / "torch" / "__init__.py").write_text(TORCH)
    # -S: no installed package, a torch least of all. The predictor process inherits PYTHONPATH.
    ended = subprocess.run(
        [python, "-S", "-s", "-W", "error", "-c", PROGRAM, tmp_path, *placements],
        env={
            **{"HANDLERGEN_STATE_DIR": str(tmp_path / "state"), "PYTHONPATH": str(tmp_path)},
            **{"PYTHONDONTWRITEBYTECODE": "1", "PATH": os.defpath},
        },
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    logged = ended.stdout + ended.stderr
    assert ended.returncode == 0, logged
    for name in placements:
        assert f'{name}.py", line 10, in predict' in logged, logged
    assert logged.count("ValueError: negative") == len(placements), logged
    assert "cannot be" not in logged, logged
    # The registered name, not the archives'.
    assert logged.count("handlergen_answers_total.Count:0|#status:200,model:m,") >= len(placements), logged


def test_no_spelling_of_python_3_10_is_left() -> None:
    """What is only found when its line runs, and by neither ruff nor mypy, which checks 3.10 at least."""
    wrong: list[tuple[str, int, str]] = []
    for path in sorted(RUNTIME.rglob("*.py")):
        for node in ast.walk(ast.parse(path.read_text("utf-8"))):
            if not isinstance(node, ast.Call):
                continue
            name = ast.unparse(node.func).rpartition(".")[2]
            keywords = {keyword.arg for keyword in node.keywords}
            if name in ("isinstance", "issubclass") and isinstance(node.args[1], ast.BinOp):
                wrong.append((path.name, node.lineno, "X | Y"))
            if (name, *keywords & {"strict", "slots", "kw_only", "compact"}) in (
                *(("zip", "strict"), ("dataclass", "slots"), ("dataclass", "kw_only"), ("from_exception", "compact")),
            ):
                wrong.append((path.name, node.lineno, name))
            if name in ("pairwise", "get_annotations", "aclosing", "anext", "aiter"):
                wrong.append((path.name, node.lineno, name))
    assert wrong == []


def test_this_python_is_among_them() -> None:
    assert ".".join(map(str, sys.version_info[:2])) in pythons()
