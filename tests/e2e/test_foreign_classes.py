"""LitServe's and Cog's classes on a real TorchServe. Their archives hold stand-ins for the two packages."""

from __future__ import annotations

import shutil
import textwrap
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import httpx
import pytest

from handlergen.archives.build import archive

pytestmark = pytest.mark.e2e

PACKAGES = Path(__file__).resolve().parents[1] / "foreign_packages"

HALVER = """
import litserve


class Halver(litserve.LitAPI):
    def setup(self, device):
        self.by = 2

    def decode_request(self, request, context):
        context["x"] = request["x"]
        return request["x"]

    def predict(self, x):
        return [each / self.by for each in x]

    def encode_response(self, output, context):
        return {"half": output, "of": context["x"]}


if __name__ == "__main__":
    litserve.LitServer(Halver(max_batch_size=4)).run()
"""
WORDS = """
import litserve


class Words(litserve.LitAPI):
    def predict(self, x):
        yield from x["words"]

    def encode_response(self, output):
        for word in output:
            yield word + " "
"""
PREDICTOR = """
from cog import BasePredictor, Input, Path


class Predictor(BasePredictor):
    def setup(self):
        self.by = 2

    def predict(self, image: Path = Input(), times: int = Input(default=1, ge=1, le=3)) -> Path:
        answer = image.with_name("answer.txt")
        answer.write_bytes(image.read_bytes() * times * self.by)
        return answer
"""


@pytest.fixture(scope="module")
def served(shared: Callable[..., Any], tmp_path_factory: pytest.TempPathFactory) -> Any:
    home = tmp_path_factory.mktemp("foreign")
    for package in PACKAGES.glob("*.py"):
        shutil.copy(package, home)
    for name, text in (("halver", HALVER), ("words", WORDS), ("predictor", PREDICTOR)):
        (home / f"{name}.py").write_text(textwrap.dedent(text))
    common = {"model_store": home / "store", "workers_per_device": 2}
    return shared(
        archive(
            home / "halver.py", extra_files=["litserve.py"], batch="list", max_batch=4, linger_ms=20, **common
        ).path,
        archive(home / "words.py", extra_files=["litserve.py"], **common).path,
        archive(home / "predictor.py", extra_files=["cog.py"], **common).path,
    )


def _post(served: Any, name: str, **sent: Any) -> httpx.Response:
    url = f"{served.settings.inference_address}/predictions/{name}"
    return httpx.post(url, headers=served.client.authorization(), timeout=60, **sent)


def test_a_lit_api_in_batches(served: Any) -> None:
    with ThreadPoolExecutor(8) as pool:
        answers = list(pool.map(lambda x: _post(served, "halver", json={"x": x}).json(), range(24)))
    assert answers == [{"half": x / 2, "of": x} for x in range(24)]


def test_a_lit_api_that_streams(served: Any) -> None:
    answer = _post(served, "words", json={"words": ["a", "b"]})
    assert (answer.headers["transfer-encoding"], answer.text) == ("chunked", "a b ")


def test_a_cog_predictor(served: Any) -> None:
    sent = _post(served, "predictor", files={"image": ("a.txt", b"ab", "text/plain")}, data={"times": "2"})
    assert (sent.status_code, sent.json()) == (200, "data:text/plain;base64,YWJhYmFiYWI=")
    wrapped = _post(served, "predictor", json={"input": {"image": "data:text/plain,ab"}})
    assert wrapped.json() == "data:text/plain;base64,YWJhYg=="
    refused = _post(served, "predictor", json={"image": "data:text/plain,ab", "times": 4})
    assert (refused.status_code, refused.json()["message"]) == (400, "the input times must be at most 3, not 4")
    refused = _post(served, "predictor", json={"image": "file:///etc/passwd"})
    assert (refused.status_code, "data URL" in refused.json()["message"]) == (400, True)
