"""What packing sees of a module's imports, on a real TorchServe: the archive answers where the source is gone."""

from __future__ import annotations

import shutil
import textwrap
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from handlergen.archives.build import archive

pytestmark = pytest.mark.e2e

FILES = {
    "vendored.py": """
        import pathlib
        import sys

        sys.path.insert(0, str(pathlib.Path(__file__).resolve().parent / "vendor"))

        from shapes.box import box
        from steps_of_vendored import postprocess


        def load(context):
            import lazy_of_vendored

            return lazy_of_vendored.FACTOR


        def predict(inputs, model):
            return box(inputs["x"] * model)
        """,
    "lazy_of_vendored.py": "FACTOR = 1\n",
    "vendor/shapes/__init__.py": "",
    "vendor/shapes/box.py": "from units.scale import up\n\n\ndef box(x):\n    return [0, 0, up(x), up(x)]\n",
    "vendor/units/__init__.py": "",
    "vendor/units/scale.py": "def up(x):\n    return x * 10\n",
    "vendor/steps_of_vendored.py": "def postprocess(outputs):\n    return {'box': outputs}\n",
}


@pytest.fixture(scope="module")
def served(shared: Callable[..., Any], tmp_path_factory: pytest.TempPathFactory) -> Any:
    source, store = tmp_path_factory.mktemp("vendored"), tmp_path_factory.mktemp("store")
    for name, text in FILES.items():
        path = source / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(textwrap.dedent(text))
    made: Path = archive(source / "vendored.py", model_store=store, workers_per_device=1).path
    shutil.rmtree(source)
    return shared(made)


def test_a_vendored_directory(served: Any) -> None:
    assert served.client.predict("vendored", {"x": 2}).json() == {"box": [0, 0, 20, 20]}
