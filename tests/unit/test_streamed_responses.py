"""Responses of Starlette's kind that are streamed: status, headers, parts, in every hook that answers.

Written out here, as Starlette has them: the runtime knows them by their attributes.
"""

from __future__ import annotations

import textwrap
from pathlib import Path
from typing import Any

import pytest

from handlergen.errors import RequestFailed
from handlergen.local.model import LocalModel, load

RESPONSES = """
    import asyncio, threading, torch

    async def iterate_in_threadpool(iterator):
        raise AssertionError("a synchronous iterator is read in the hook's own thread")
        yield

    class StreamingResponse:
        def __init__(self, content, status_code=200, headers=None, media_type=None):
            self.body_iterator = content if hasattr(content, "__aiter__") else iterate_in_threadpool(content)
            self.status_code, self.media_type = status_code, media_type
            self.headers = {**(headers or {}), **({"content-type": media_type} if media_type else {})}

    class FileResponse:
        def __init__(self, path, media_type):
            self.path, self.status_code, self.headers, self.media_type = path, 200, {}, media_type

    def parts(count):
        for n in range(count):
            yield f"{threading.current_thread() is threading.main_thread()} {torch.is_inference_mode_enabled()}|"

    async def later(*given):
        for part in given:
            await asyncio.sleep(0)
            yield part

    class Iterator:
        def __init__(self, count):
            self.left = count
        def __aiter__(self):
            return self
        async def __anext__(self):
            self.left -= 1
            if self.left < 0:
                raise StopAsyncIteration
            return b"x"

    def answer(kind):
        if kind == "sync":
            return StreamingResponse(parts(2), 201, {"X-Own": "1"}, "text/csv")
        if kind == "async":
            return StreamingResponse(later("data: 0\\n\\n", b"data: 1\\n\\n"), media_type="text/event-stream")
        if kind == "iterator":
            return StreamingResponse(Iterator(3))
        if kind == "list":
            return StreamingResponse(["a", "b"], 418)
        if kind == "empty":
            return StreamingResponse(iter(()), 202, media_type="text/x")
        if kind == "file":
            return FileResponse(__file__, "text/x-python")
        if kind == "wrong":
            return StreamingResponse(later({"a": 1}))
        if kind == "late":
            def failing():
                yield "a"
                raise RuntimeError("late")
            return StreamingResponse(failing())
        return {"plain": kind}
    """
HOOKS = {
    "predict": "def predict(x):\n    return answer(x)\n",
    "async predict": "async def predict(x):\n    return answer(x)\n",
    "postprocess": "def predict(x):\n    return x\ndef postprocess(x):\n    return answer(x)\n",
    "model-class": "class Model:\n    def predict(self, x):\n        return answer(x)\n",
    "output_fn": "import json\ndef model_fn(d):\n    return 1\ndef input_fn(data, kind):\n    return json.loads(data)\n"
    "def predict_fn(x, m):\n    return x\ndef output_fn(x, accept):\n    return answer(x)\n",
}


def opened(directory: Path, hooks: str) -> LocalModel:
    path = directory / "module.py"
    path.write_text(textwrap.dedent(RESPONSES) + HOOKS[hooks])
    return load(path)


@pytest.mark.parametrize("hooks", HOOKS)
def test_a_response_says_what_its_answer_is(tmp_path: Path, hooks: str) -> None:
    with opened(tmp_path, hooks) as model:

        def ask(kind: str) -> tuple[int, str, bytes]:
            answer = model.request(kind)
            return answer.status, answer.content_type, answer.body

        status, kind, body = ask("sync")
        assert (status, kind) == (201, "text/csv")
        # async hooks have a thread of their own: what they return is read in predict's.
        assert body == b"True True|True True|"
        assert model.request("sync").headers["X-Own"] == "1"
        assert ask("async") == (200, "text/event-stream", b"data: 0\n\ndata: 1\n\n")
        assert ask("iterator") == (200, "application/octet-stream", b"xxx")
        assert ask("list") == (418, "text/plain; charset=utf-8", b"ab")
        assert ask("empty") == (202, "text/x", b"")
        assert ask("file") == (200, "text/x-python", (tmp_path / "module.py").read_bytes())
        assert ask("wrong")[0] == 500
        assert ask("late")[0] == 500
        assert model.predict("else") == {"plain": "else"}


@pytest.mark.parametrize("hooks", ["predict", "postprocess"])
def test_parts_are_sent_as_they_are_made(tmp_path: Path, hooks: str) -> None:
    with opened(tmp_path, hooks) as model:
        assert list(model.stream("async")) == [b"data: 0\n\n", b"data: 1\n\n"]
        received: list[Any] = []
        # Of a response the client's wish for JSON changes nothing.
        model.request("async", headers={"accept": "application/json"}, on_chunk=lambda *part: received.append(part))
        assert received == [(f"data: {n}\n\n".encode(), "text/event-stream") for n in (0, 1)]
        with pytest.raises(RequestFailed):
            list(model.stream("late"))


def test_a_streamed_response_and_a_postprocess_are_refused(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    text = textwrap.dedent(RESPONSES) + HOOKS["predict"] + "def postprocess(x):\n    return x\n"
    (tmp_path / "module.py").write_text(text)
    with load(tmp_path / "module.py") as model, pytest.raises(RequestFailed):
        model.predict("sync")
    assert "predict returned a StreamingResponse" in caplog.text
