"""Classes of other serving systems: LitServe's and Cog's are served; for others, the class in the message runs."""

from __future__ import annotations

import base64
import re
import textwrap
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from handlergen.errors import ContractError, RequestFailed
from handlergen.local.model import LocalModel
from tests.inspecting import problems, read, warnings
from tests.serving import ServerContext

Load = Callable[..., LocalModel]
Serve = Callable[..., Any]

LIT = """
    import litserve

    class {name}(litserve.LitAPI):
        def setup(self, device):
            self.by = 2

        def decode_request(self, request):
            return request["x"]

        def predict(self, x):
            return x / self.by

        def encode_response(self, output):
            return {{"half": output}}
"""
COG = """
    from cog import BasePredictor, Input

    class {name}(BasePredictor):
        def setup(self):
            self.by = 2

        def predict(self, x: float = Input(description="to halve", le=100), digits: int = Input(default=1)) -> float:
            return round(x / self.by, digits)
"""


@pytest.fixture(autouse=True)
def _packages(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(str(Path(__file__).resolve().parents[1] / "foreign_packages"))


@pytest.mark.parametrize("name", ["Halver", "Model"])
def test_a_lit_api_is_served(model: Load, name: str) -> None:
    assert model(LIT.format(name=name)).predict({"x": 5}) == {"half": 2.5}


@pytest.mark.parametrize("name", ["Predictor", "Model"])
def test_a_cog_predictor_is_served(model: Load, name: str) -> None:
    loaded = model(COG.format(name=name))
    assert loaded.predict({"x": 5.25}) == 2.6
    assert loaded.predict({"input": {"x": 5.123, "digits": 3}, "id": "1"}) == 2.562


@pytest.mark.parametrize("text", [LIT, COG])
def test_a_base_in_another_file(model: Load, text: str, tmp_path: Path) -> None:
    (tmp_path / "bases.py").write_text(textwrap.dedent(text.format(name="Base")))
    loaded = model("from bases import Base\n\nclass Model(Base):\n    pass\n", extra_files=("bases.py",))
    assert loaded.predict({"x": 5}) == (2.5 if text is COG else {"half": 2.5})


@pytest.mark.parametrize("text", [LIT, COG])
def test_check_says_that_the_worker_needs_the_package(text: str, tmp_path: Path) -> None:
    package = "litserve" if text is LIT else "cog"
    (warning,) = warnings(tmp_path, text.format(name="Model"))
    assert f"Write requirements: [{package}]" in warning
    assert warnings(tmp_path, text.format(name="Model"), requirements=(f"{package}>=0.2",)) == []
    (tmp_path / "needs.txt").write_text(f"numpy\n{package}==0.2\n")
    assert warnings(tmp_path, text.format(name="Model"), requirements=("needs.txt",)) == []


def test_check_says_when_a_batch_has_one_request(tmp_path: Path) -> None:
    text = LIT.format(name="Halver") + "\n    litserve.LitServer(Halver(max_batch_size=4))"
    says = "predict takes a batch, which has one request. Write batch: list to have several."
    (warning,) = warnings(tmp_path, text, requirements=("litserve",))
    assert warning.endswith(f"digits.py:11: {says}")
    assert warnings(tmp_path, text, requirements=("litserve",), batch="list") == []


@pytest.mark.parametrize("batch", ["auto", "list"])
def test_a_lit_api_for_batches(serve_project: Serve, batch: str) -> None:
    served = serve_project(
        """
        import litserve as ls
        import torch

        class Base(ls.LitAPI):
            def setup(self, device):
                self.offset = torch.ones(2, device=device)

            def decode_request(self, request, context):
                context["name"] = request["name"]
                return torch.tensor(request["x"])

            def predict(self, x, context):
                assert x.shape == (len(context), 2)
                return (x + self.offset).sum(dim=1)

        class Sums(Base):
            def encode_response(self, output, context):
                return {"sum": output, "name": context["name"]}

        if __name__ == "__main__":
            ls.LitServer(Sums(max_batch_size=4)).run(port=8000)
        """,
        batch=batch,
    )
    answers = served({"x": [1.0, 2.0], "name": "a"}, {"x": [3.0, 4.0], "name": "b"})
    assert answers == [(200, {"sum": 5.0, "name": "a"}), (200, {"sum": 9.0, "name": "b"})]


def test_a_lit_api_with_batch_and_unbatch_of_its_own(serve_project: Serve) -> None:
    served = serve_project(
        """
        import litserve

        class Joined(litserve.LitAPI):
            def batch(self, inputs):
                return {"all": [each["x"] for each in inputs]}

            def predict(self, x):
                return {"all": [each * 2 for each in x["all"]]}

            def unbatch(self, output):
                return output["all"]
        """,
        batch="list",
    )
    assert served({"x": 1}, {"x": 2}) == [(200, 2), (200, 4)]


def test_a_lit_api_that_streams(model: Load) -> None:
    loaded = model("""
        import litserve

        class Words(litserve.LitAPI):
            def predict(self, x):
                for i in range(x["n"]):
                    yield i

            def encode_response(self, output):
                for each in output:
                    yield {"word": each}
    """)
    assert loaded.predict({"n": 2}) == [{"word": 0}, {"word": 1}]


def test_a_lit_api_that_is_async_and_takes_arguments(model: Load) -> None:
    loaded = model(
        """
        import asyncio, litserve

        class Scaled(litserve.LitAPI):
            def __init__(self, scale, **others):
                super().__init__(**others)
                self.scale = scale

            async def decode_request(self, request):
                await asyncio.sleep(0)
                return request["x"]

            async def predict(self, x):
                await asyncio.sleep(0)
                return x * self.scale

            async def encode_response(self, output):
                return {"y": output}
        """,
        model_kwargs={"scale": 4},
    )
    assert loaded.predict({"x": 5}) == {"y": 20}


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("class A(L):\n    def __init__(self, scale): ...\n    def predict(self, x): ...", "created without `scale`"),
        ("class A(L):\n    def setup(self, device): ...", "class A has no predict"),
        ("class A(L):\n    def predict(self, x): ...\nclass B(L):\n    def predict(self, x): ...", "A .* and B"),
        ("class A(L):\n    def predict(self): ...", "predict takes no inputs"),
        ("class A(L):\n    def predict(self, x, y): ...", "nothing is passed for the parameter `y` of predict"),
        (
            "class A(L):\n    def batch(self, x): ...\n    def predict(self, x):\n        yield x",
            "takes a batch, and is",
        ),
        ("class A(L):\n    def predict(self, x): ...\nserver = S(A())\nserver.run()", "starts LitServe's server"),
    ],
)
def test_what_a_lit_api_cannot_be(text: str, message: str, tmp_path: Path) -> None:
    imports = "from litserve import LitAPI as L, LitServer as S\n"
    assert any(re.search(message, each) for each in problems(tmp_path, imports + text))


@pytest.mark.parametrize(
    ("sent", "message"),
    [
        ({"x": "much"}, "the input x must be a number, not 'much'"),
        ({"x": 101}, "the input x must be at most 100, not 101"),
        ({"x": 1, "digits": 1.5}, "the input digits must be a whole number, not 1.5"),
        ({"x": None}, "the input x must be a number, not None"),
        ({"digits": 1}, "missing key: x (keys: x, digits)"),
        ({"x": 1, "y": 2}, "unknown key: y (keys: x, digits)"),
        ({"input": {"y": 2}}, "missing key: x; unknown key: y"),
        ([1], "takes a JSON object with the keys x, digits, not list"),
    ],
)
def test_inputs_of_cog_that_are_refused(model: Load, sent: Any, message: str) -> None:
    loaded = model(COG.format(name="Predictor"))
    with pytest.raises(RequestFailed) as refused:
        loaded.predict(sent)
    assert refused.value.status == 400
    assert message in str(refused.value)


KINDS = """
    import os
    from enum import Enum
    from typing import List, Literal, Optional
    from cog import BasePredictor, Input, Path

    SCHEDULERS = {"ddim": 1, "euler": 2}

    class Size(Enum):
        SMALL = "small"

    class Predictor(BasePredictor):
        def setup(self, weights: Optional[Path] = None):
            self.paths = []

        def predict(
            self,
            image: Optional[Path] = Input(description="a picture"),
            scheduler: str = Input(choices=list(SCHEDULERS), default="ddim"),
            name: str = Input(default="x", regex="^[a-z]+$", max_length=3),
            tags: List[int] = Input(default=None, ge=1),
            flag: bool = False,
            size: Size = Size.SMALL,
            mode: Literal["a", "b"] = "a",
        ) -> dict:
            left = [str(each) for each in self.paths if os.path.exists(each)]
            if image:
                self.paths.append(image)
            content = image.read_bytes().decode() if image else None
            return {"image": content, "left": left, "all": [scheduler, name, tags, flag, size.value, mode]}
"""


def test_the_types_of_cog(model: Load) -> None:
    loaded = model(KINDS)
    picture = "data:image/png;base64," + base64.b64encode(b"pixels").decode()
    assert loaded.predict({}) == {"image": None, "left": [], "all": ["ddim", "x", None, False, "small", "a"]}
    sent = {"image": picture, "scheduler": "euler", "tags": [1, 2], "flag": True, "mode": "b"}
    answer = loaded.predict(sent)
    assert answer == {"image": "pixels", "left": [], "all": ["euler", "x", [1, 2], True, "small", "b"]}
    assert loaded.predict({})["left"] == []  # files are deleted after their prediction
    for key, value in (
        *(("image", "http://127.0.0.1/x.png"), ("image", "data:;base64,?"), ("image", 3), ("scheduler", "other")),
        *(("name", "A"), ("name", "abcd"), ("tags", [0]), ("tags", 1), ("flag", 1), ("size", "big"), ("mode", "c")),
    ):
        with pytest.raises(RequestFailed, match=f"the input {key} must be ") as refused:
            loaded.predict({key: value})
        assert refused.value.status == 400


def test_files_of_a_form_for_cog(serve_project: Serve) -> None:
    served = serve_project(KINDS, batch_size=1)
    (answer,) = served.worker.handle(
        [{"image": b"pixels", "name": b"abc", "flag": b"true"}],
        _form({"image": "image/png"}),
    )
    assert b'"image":"pixels"' in bytes(answer)
    assert b'["ddim","abc",null,true,"small","a"]' in bytes(answer)


def _form(types: dict[str, str]) -> ServerContext:
    parts = {name: {"content-type": kind} for name, kind in types.items()}
    return ServerContext([{"content-type": "multipart/form-data; boundary=b", **parts}])


def test_cog_streams_and_answers_with_files(model: Load, tmp_path: Path) -> None:
    streaming = model("""
        from cog import BaseRunner, Input

        class Runner(BaseRunner):
            def run(self, prompt: str, n: int = Input(default=2, ge=1)):
                for i in range(n):
                    yield f"{prompt}{i} "
    """)
    assert streaming.predict({"prompt": "a"}) == "a0 a1 "
    drawing = model(f"""
        from cog import BasePredictor, Path

        class Predictor(BasePredictor):
            async def predict(self, text: str) -> Path:
                drawn = Path({str(tmp_path)!r}) / "drawn.png"
                drawn.write_text(text)
                return drawn
    """)
    assert drawing.predict({"text": "hi"}) == "data:image/png;base64,aGk="


@pytest.mark.parametrize("batch", ["list", "collate"])
def test_batches_have_no_inputs_for_cog(batch: str, tmp_path: Path) -> None:
    assert "one value for several requests" in problems(tmp_path, COG.format(name="P"), batch=batch)[0]


#: Per system: a module, the bodies that its author puts into the class of the message, a request and its answer.
REFUSED = {
    "an MLflow PythonModel": (
        """
        import mlflow.pyfunc

        class {name}(mlflow.pyfunc.PythonModel):
            def load_context(self, context): ...
            def predict(self, context, model_input, params=None): ...
        """,
        {"load_context": "self.by = 2", "predict": "return model_input / self.by"},
        (5, 2.5),
    ),
    "a KServe Model": (
        """
        from kserve import Model as KModel

        class {name}(KModel):
            def __init__(self, name):
                super().__init__(name)
            def load(self): ...
            def preprocess(self, payload, headers=None): ...
            async def predict(self, payload, headers=None): ...
            def postprocess(self, result, headers=None): ...
        """,
        {
            "load": "self.by = 2",
            "preprocess": 'return payload["instances"]',
            "predict": "return [x / self.by for x in payload]",
            "postprocess": 'return {"predictions": result}',
        },
        ({"instances": [5, 6]}, {"predictions": [2.5, 3.0]}),
    ),
    "a mosec Worker": (
        """
        import mosec

        class {name}(mosec.Worker):
            def __init__(self): ...
            def deserialize(self, data): ...
            def forward(self, data): ...
            def serialize(self, data): ...
        """,
        {
            "__init__": "self.by = 2",
            "deserialize": 'return data["x"]',
            "forward": "return data / self.by",
            "serialize": 'return {"half": data}',
        },
        ({"x": 5}, {"half": 2.5}),
    ),
    "a Triton Python model": (
        """
        import triton_python_backend_utils as pb_utils

        class TritonPythonModel:
            def initialize(self, args): ...
            def execute(self, requests): ...
            def finalize(self): ...
        """,
        {
            "initialize": "self.by = 2",
            "execute": 'import numpy; y = numpy.asarray(inputs["X"]) / self.by; return {"Y": y}',
        },
        ({"X": [5, 6]}, {"Y": [2.5, 3.0]}),
    ),
    "a Ray Serve deployment": (
        """
        from ray import serve

        @serve.deployment(num_replicas=2)
        class {name}:
            def __init__(self): ...
            async def __call__(self, request): ...
        """,
        {"__init__": "self.by = 2", "__call__": 'return inputs["x"] / self.by'},
        ({"x": 5}, 2.5),
    ),
    "a BentoML service": (
        """
        import bentoml

        @bentoml.service(resources={{"cpu": "2"}})
        class {name}:
            def __init__(self) -> None: ...
            @bentoml.api(batchable=False)
            def halve(self, x: float) -> float: ...
        """,
        {"__init__": "self.by = 2", "halve": 'return inputs["x"] / self.by'},
        ({"x": 5}, 2.5),
    ),
}


@pytest.mark.parametrize("name", ["Halver", "Model"])
@pytest.mark.parametrize("system", REFUSED)
def test_who_follows_the_message_has_a_module_that_works(model: Load, system: str, name: str, tmp_path: Path) -> None:
    text, bodies, (sent, answer) = REFUSED[system]
    with pytest.raises(ContractError) as refused:
        read(tmp_path, text.format(name=name))
    (problem,) = refused.value.problems
    assert f"is {system}, which handlergen does not serve as it is" in problem.message
    written = textwrap.dedent(problem.fix[problem.fix.index("        class Model:") :])
    for hook, body in bodies.items():
        written, count = re.subn(rf"\.\.\.  # the body of {hook}$", lambda _, b=body: b, written, flags=re.MULTILINE)
        assert count == 1, hook
    assert "..." not in written
    assert model(written).predict(sent) == answer


def test_a_base_of_another_system_in_another_file(tmp_path: Path) -> None:
    (tmp_path / "bases.py").write_text("import kserve\n\nclass Base(kserve.Model):\n    def load(self): ...\n")
    text = "from bases import Base\n\nclass Model(Base):\n    def postprocess(self, result): ...\n"
    with pytest.raises(ContractError, match="is a KServe Model") as refused:
        read(tmp_path, text)
    assert str(refused.value).endswith("def predict(self, inputs):\n                ...  # what answers a request")


def test_a_class_of_another_system_beside_predict_is_left_alone(tmp_path: Path) -> None:
    text = "import mlflow.pyfunc\nclass W(mlflow.pyfunc.PythonModel):\n    def predict(self, context, x): ...\n"
    assert read(tmp_path, text + "def predict(inputs): ...\n").form == "functions"
