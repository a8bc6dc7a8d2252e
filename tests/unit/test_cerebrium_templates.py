"""Functions as Cerebrium's templates have written them over the years."""

from __future__ import annotations

from pathlib import Path

import pytest

from handlergen.local.model import load

pytest.importorskip("pydantic")

ITEM = """
from pydantic import BaseModel
class Item(BaseModel):
    prompt: str
    times: int = 2
def helper(item):
    return item
"""


@pytest.mark.parametrize(
    "text",
    [
        "def predict(item, run_id, logger):\n    item = Item(**item)\n    logger.info(run_id + item.prompt)\n"
        "    return item.prompt * item.times\n",
        "def predict(item: Item, run_id, logger):\n    return helper(item).prompt * item.times if run_id else None\n",
        "def predict(item, logger, run_id):\n    return item['prompt'] * 2 if logger.info('x') is None else run_id\n",
        "def predict(prompt: str, times: int = 2):\n    return prompt * times\n",
        "def predict(item: Item):\n    return item.prompt * item.times\n",
    ],
)
@pytest.mark.parametrize("package", ["pydantic", "pydantic.v1"])
def test_predict(tmp_path: Path, text: str, package: str) -> None:
    (tmp_path / "main.py").write_text(ITEM.replace("pydantic", package) + text)
    with load(tmp_path / "main.py") as model:
        assert model.predict({"prompt": "ab"}) == "abab"
