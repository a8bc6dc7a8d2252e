"""The main job on a real TorchServe: what clients get, that predictions take turns, what a missing worker says."""

from __future__ import annotations

import os
import signal
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest

from handlergen.errors import RequestFailed
from handlergen.performance.recordings import beside, of_stage, overlapping, read_spans
from tests.archives import make_archive
from tests.histories import until

pytestmark = pytest.mark.e2e

EVERYTHING = '''
"""Shows a client what arrived."""
import time

def load(context):
    try:
        import handlergen
        found = True
    except ImportError:
        found = False
    return {"handlergen importable": found, "factor": context.config["factor"]}

def preprocess(data, files, request):
    request.metadata["began"] = True
    time.sleep(0.01)
    return data, [(file.name, file.content_type, len(file.read())) for file in files]

def predict(inputs, model):
    data, files = inputs
    time.sleep(0.01)
    if isinstance(data, dict) and "x" in data:
        return {"y": data["x"] * model["factor"]}
    return {"type": type(data).__name__, "data": str(data), "files": files, **model}

def postprocess(outputs, input_data, request):
    time.sleep(0.01)
    return {**outputs, "began": request.metadata["began"]}
'''


@pytest.fixture(scope="module")
def server(shared: Callable[..., Any], tmp_path_factory: pytest.TempPathFactory) -> Any:
    """A model `everything` with four workers, where handlergen cannot be imported (see conftest.py)."""
    home = tmp_path_factory.mktemp("main")
    return shared(make_archive(home, "everything", EVERYTHING, workers_per_device=4, config={"factor": 3}))


def test_rest_json_and_no_handlergen_needed(server: Any) -> None:
    client = server.client
    answer = client.predict("everything", {"x": 14})
    assert (answer.status, answer.content_type) == (200, "application/json")
    assert answer.body == b'{"y":42,"began":true}'
    assert client.predict("everything", "text").json()["handlergen importable"] is False


def test_rest_multipart(server: Any, tmp_path: Path) -> None:
    image = tmp_path / "seven.png"
    image.write_bytes(b"\x89PNG....")
    answer = server.client.predict("everything", fields={"image": image, "note": "hello"}).json()
    assert answer["data"] == "{'note': 'hello'}"
    assert answer["files"] == [["image", "image/png", 8]]
    assert server.client.predict("everything", fields={"data": '{"x": 5}', "image": image}).json()["y"] == 15


def test_predictions_take_turns_and_the_rest_overlaps(server: Any) -> None:
    client = server.client
    with ThreadPoolExecutor(16) as pool:
        answers = list(pool.map(lambda x: client.predict("everything", {"x": x}).json()["y"], range(200)))
    assert answers == [3 * x for x in range(200)]
    spans = server.spans()
    predictions = of_stage(spans, "predict")
    assert len({span.pid for span in predictions}) == 1  # the model's only copy
    assert len({span.pid for span in of_stage(spans, "preprocess")}) == 4
    assert overlapping(predictions) == []
    # Each prepares and answers while another predicts: most of 200, or there would be no point.
    assert len(beside(of_stage(spans, "preprocess"), predictions)) > 100
    assert len(beside(of_stage(spans, "postprocess"), predictions)) > 100


def test_a_batch_of_eight_keeps_its_order(shared: Callable[..., Any], tmp_path: Path) -> None:
    source = """
        import time

        def preprocess(data):
            if data["x"] % 7 == 3:
                raise ValueError(f"no {data['x']}")
            time.sleep(0.003 * (data["x"] % 5))
            return data["x"]

        def predict(inputs):
            return inputs * 10

        def postprocess(outputs):
            time.sleep(0.002 * (outputs % 3))
            return outputs
        """
    mar = make_archive(tmp_path, "eight", source, batch_size=8, max_batch_delay_ms=100)
    server = shared(mar)

    def ask(x: int) -> object:
        try:
            return server.client.predict("eight", {"x": x}).json()
        except RequestFailed as error:
            return error.status

    with ThreadPoolExecutor(16) as pool:
        answers = list(pool.map(ask, range(120)))
    assert answers == [400 if x % 7 == 3 else x * 10 for x in range(120)]
    prepared = of_stage(server.spans(), "preprocess")
    # Requests of one batch were prepared at once: spans of the single worker overlap each other.
    assert len({span.pid for span in prepared}) == 1
    assert len(overlapping(prepared)) > 40


SLEEPER = """
    import time

    def preprocess(data):
        return data["x"]

    def predict(inputs):
        time.sleep(0.004)
        return inputs + {offset}
    """


def test_two_models_and_two_servers_share_one_device(
    shared: Callable[..., Any], torchserve: Callable[..., Any], tmp_path: Path
) -> None:
    mars = [
        make_archive(tmp_path, f"plus{offset}", SLEEPER.format(offset=offset), workers_per_device=2)
        for offset in (1, 2, 3)
    ]
    first = shared(mars[0], mars[1])
    second = torchserve(mars[2], environ={"HANDLERGEN_TRACE_DIR": str(tmp_path / "spans")})
    targets = [(first, "plus1", 1), (first, "plus2", 2), (second, "plus3", 3)]

    def ask(number: int) -> bool:
        server, name, offset = targets[number % 3]
        return bool(server.client.predict(name, {"x": number}).json() == number + offset)

    with ThreadPoolExecutor(12) as pool:
        assert all(pool.map(ask, range(300)))
    predictions = of_stage([*first.spans(), *read_spans(tmp_path / "spans")], "predict")
    assert {span.model for span in predictions} == {"plus1", "plus2", "plus3"}
    assert len({span.pid for span in predictions}) == 6
    assert overlapping(predictions) == []
    second.stop()
    assert first.client.predict("plus1", {"x": 1}).json() == 2


def test_status_shows_why_a_worker_is_missing(
    shared: Callable[..., Any], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """A model that loaded once and no longer does: its replacement dies, and `status` has the user's traceback."""
    from handlergen.cli import main

    flag = tmp_path / "flag"
    flag.write_text("weights")
    source = f"""
        def load(context):
            return open({str(flag)!r}).read()

        def predict(inputs):
            return inputs
        """
    # A predictor process of its own would go on with the model that it has, and so would the next worker.
    server = shared(make_archive(tmp_path, "fickle", source, predictor="worker"))
    flag.unlink()
    os.kill(server.worker_pids("fickle")[0], signal.SIGKILL)

    def status() -> str:
        with pytest.raises(SystemExit, match="0"):
            main(["status", "-c", str(server.config)])
        shown = capsys.readouterr().out
        return shown if "FileNotFoundError" in shown else ""

    shown = until(status, within_s=60)
    assert "0 of 1 workers READY" in shown
    assert shown.count("in load") == 1
    assert shown.count("FileNotFoundError") == 2  # the reason in a line, and the traceback
