"""Annotations that validate and convert a request's data, and the JSON Schemas they give."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from typing import Any

import pytest

from handlergen.runtime.pipeline.typed_hooks import AnnotationError
from tests.serving import ServerContext

TYPED = """
from __future__ import annotations
import datetime, enum
from dataclasses import dataclass, field
from typing import Literal, Optional, TYPE_CHECKING
if TYPE_CHECKING:
    from nowhere import Unknown

class Colour(enum.Enum):
    RED = "red"
    BLUE = "blue"

@dataclass
class Point:
    x: float
    y: float = 0.0

@dataclass
class Job:
    name: str
    count: int
    at: Point
    path: list[Point] = field(default_factory=list)
    flags: dict[str, bool] = field(default_factory=dict)
    mode: Literal["fast", "slow"] = "fast"
    colour: Optional[Colour] = None
    size: int | str = 1
    when: datetime.datetime | None = None
    parent: Optional[Job] = None

    def __post_init__(self):
        if self.count < 0:
            raise ValueError("count must not be negative")

def preprocess(data: Job, request: Unknown):
    assert isinstance(data, Job) and isinstance(data.at, Point)
    return data

def predict(inputs):
    return inputs

def postprocess(outputs, input_data) -> Job:
    assert isinstance(outputs, Job) and outputs == input_data  # a copy, where the next predict may overwrite it
    return outputs
"""


GOOD = {"name": "a", "count": 2, "at": {"x": 1}}


@pytest.fixture
def job(serve_project: Callable[..., Any]) -> Any:
    return serve_project(TYPED)


def test_a_dataclass_arrives_as_one(job: Any) -> None:
    ((status, value),) = job({
        **GOOD, "path": [{"x": 1, "y": 2}], "flags": {"a": True}, "mode": "slow", "colour": "blue", "size": "XL",
        "when": "2024-05-01T10:00:00Z", "parent": GOOD,
    })  # fmt: skip
    assert status == 200
    assert value["at"] == {"x": 1.0, "y": 0.0}
    assert value["path"] == [{"x": 1.0, "y": 2.0}]
    assert (value["mode"], value["colour"], value["size"]) == ("slow", "blue", "XL")
    assert value["when"] == "2024-05-01T10:00:00+00:00"
    assert value["parent"]["name"] == "a"


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"at": {}}, "at.x: Field required"),
        ({"at": {"x": 1, "z": 2}}, "at.z: Unexpected keyword argument"),
        ({"at": [1]}, "at: Input should be a dictionary or an instance of Point"),
        ({"count": "hunter2"}, "count: Input should be a valid integer"),
        ({"count": 1.5}, "count: Input should be a valid integer, got a number with a fractional part"),
        ({"count": -1}, "Value error, count must not be negative"),
        ({"name": 7}, "name: Input should be a valid string"),
        ({"path": [{"x": 1}, {"x": None}]}, "path.1.x: Input should be a valid number"),
        ({"flags": {"a": "perhaps"}}, "flags.a: Input should be a valid boolean"),
        ({"mode": "medium"}, "mode: Input should be 'fast' or 'slow'"),
        ({"colour": "green"}, "colour: Input should be 'red' or 'blue'"),
        ({"when": "tomorrow"}, "when: Input should be a valid datetime"),
        ({"parent": {"name": "a"}}, "parent.count: Field required; parent.at: Field required"),
        ({"at": {}, "extra": 1, "count": None}, "at.x: Field req; extra: Unexpected; count: Input should"),
    ],
)
def test_each_field_error_is_told_and_nobody_else_fails(job: Any, change: dict[str, Any], message: str) -> None:
    first, second = job({**GOOD, **change}, GOOD)
    assert first[0] == 400
    assert first[1]["type"] == "ValidationError"
    for part in message.split("; "):
        assert part in first[1]["message"]
    assert "hunter2" not in json.dumps(first)  # what was sent is not told
    assert second[0] == 200


@pytest.mark.parametrize("value", [None, 3, "text", [], [GOOD]])
def test_no_object_at_all(job: Any, value: Any) -> None:
    ((status, answer),) = job(value)
    assert status == 400
    assert answer["message"] == "Input should be a dictionary or an instance of Job"


def test_describe_has_both_schemas(job: Any) -> None:
    described = job.worker.describe()
    schema = described["input"]["schema"]
    assert described["input"]["validated"] is True
    assert schema["$ref"] == "#/$defs/Job"
    definition = schema["$defs"]["Job"]
    assert definition["required"] == ["name", "count", "at"]
    assert definition["additionalProperties"] is False
    path = definition["properties"]["path"]
    assert (path["type"], path["items"]) == ("array", {"$ref": "#/$defs/Point"})
    assert definition["properties"]["parent"]["anyOf"] == [{"$ref": "#/$defs/Job"}, {"type": "null"}]
    assert schema["$defs"]["Colour"]["enum"] == ["red", "blue"]
    assert described["output"]["schema"] == schema
    json.dumps(described)


def test_pydantic_models_convert_by_pydantic(serve_project: Callable[..., Any]) -> None:
    served = serve_project(
        """
        from pydantic import BaseModel, Field
        class Inner(BaseModel):
            n: int = Field(ge=0)
        class Query(BaseModel):
            text: str
            inner: list[Inner] = []
        class Answer(BaseModel):
            length: int
        def predict(query: Query) -> Answer:
            return Answer(length=len(query.text) + sum(i.n for i in query.inner))
        """
    )
    good, bad, worse = served({"text": "abc", "inner": [{"n": "4"}]}, {"inner": [{"n": -1}]}, 5)
    assert good == (200, {"length": 7})
    assert (bad[0], bad[1]["type"]) == (400, "ValidationError")
    assert "text: Field required" in bad[1]["message"]
    assert "inner.0.n: Input should be greater than or equal to 0" in bad[1]["message"]
    assert worse[0] == 400
    described = served.worker.describe()
    assert described["input"]["schema"]["$defs"]["Inner"]["properties"]["n"]["minimum"] == 0
    assert described["output"]["schema"]["properties"]["length"]["type"] == "integer"


@pytest.mark.parametrize("module", ["typing", "typing_extensions"])
def test_typed_dicts_of_either_module_nested_in_all_records(serve_project: Callable[..., Any], module: str) -> None:
    """pydantic takes those of `typing` only from Python 3.12 on."""
    served = serve_project(
        f"""
        from dataclasses import dataclass
        from typing import Annotated, NamedTuple, Optional
        from typing_extensions import NotRequired
        from {module} import TypedDict
        from pydantic import Field

        class Leaf(TypedDict):
            n: Annotated[int, Field(ge=0)]

        class Base(TypedDict, total=False):
            note: str

        class Node(Base):
            '''A tree.'''
            leaf: Leaf
            children: "list[Node]"
            extra: NotRequired[int]

        class Pair(NamedTuple):
            first: Leaf
            second: int

        @dataclass
        class Forest:
            trees: dict[str, Node]
            pair: Pair

        def preprocess(data: Optional[Forest]):
            return data
        def predict(inputs):
            tree = inputs.trees["a"]
            return [type(inputs).__name__, type(tree).__name__, tree, inputs.pair.first]
        def postprocess(outputs) -> list[Node]:
            return outputs
        """
    )
    leaf = {"n": "4"}
    tree = {"leaf": leaf, "children": [{"leaf": leaf, "children": [], "note": "x"}]}
    worse = {"leaf": {}, "children": [{"leaf": {"n": -1}, "children": [], "note": 5, "other": 1}], "extra": "?"}
    good, bad = served({"trees": {"a": tree}, "pair": [leaf, 2]}, {"trees": {"a": worse}, "pair": [{}, 2]})
    assert good[0] == 200
    assert good[1][:2] == ["Forest", "dict"]
    assert good[1][2]["children"][0] == {"leaf": {"n": 4}, "children": [], "note": "x"}
    assert good[1][3] == {"n": 4}
    assert bad[0] == 400
    for part in (
        "trees.a.leaf.n: Field required",
        "trees.a.children.0.leaf.n: Input should be greater than or equal to 0",
        "trees.a.children.0.note: Input should be a valid string",
        "trees.a.children.0.other: Extra inputs are not permitted",
        "trees.a.extra: Input should be a valid integer",
        "pair.0.n: Field required",
    ):
        assert part in bad[1]["message"]
    node = served.worker.describe()["output"]["schema"]["$defs"]["Node"]
    assert (node["title"], node["description"], node["required"]) == ("Node", "A tree.", ["leaf", "children"])
    assert node["properties"]["children"]["items"] == {"$ref": "#/$defs/Node"}


@pytest.mark.skipif(sys.version_info < (3, 11), reason="a TypedDict of `typing` is never generic before")
def test_a_generic_typed_dict_with_its_own_configuration(serve_project: Callable[..., Any]) -> None:
    served = serve_project(
        """
        from typing import Generic, TypedDict, TypeVar
        T = TypeVar("T")
        class Box(TypedDict, Generic[T]):
            __pydantic_config__ = {"extra": "ignore"}
            content: T
        def predict(box: Box[int]):
            return box
        """
    )
    good, bad = served({"content": "3", "more": 1}, {"content": "x"})
    assert good == (200, {"content": 3})
    assert bad[1]["message"].startswith("content: Input should be a valid integer")


def test_a_form_s_text_fields_become_numbers(serve_project: Callable[..., Any]) -> None:
    served = serve_project(
        """
        from dataclasses import dataclass
        @dataclass
        class Query:
            k: int
            exact: bool
            text: str
        def preprocess(data: Query):
            return data
        def predict(inputs):
            return [inputs.k + 1, inputs.exact, inputs.text]
        """
    )
    properties = {"content-type": "multipart/form-data; boundary=x", "host": "h"}
    context = ServerContext([{**properties, **{key: {"content-type": None} for key in ("k", "exact", "text")}}])
    (body,) = served.worker.handle([{"k": b"4", "exact": b"true", "text": b"4"}], context)
    assert (context.statuses[0], json.loads(body)) == (200, [5, True, "4"])
    assert context.headers[0]["content-type"] == "application/json"


def test_an_annotation_that_cannot_be_read_is_no_reason_not_to_serve(
    serve_project: Callable[..., Any], caplog: pytest.LogCaptureFixture
) -> None:
    served = serve_project(
        """
        from __future__ import annotations
        from typing import TYPE_CHECKING
        if TYPE_CHECKING:
            from PIL.Image import Image
        def preprocess(data: Image):
            return data
        def predict(inputs):
            return inputs
        """
    )
    assert served({"a": 1}) == [(200, {"a": 1})]
    assert "the annotation 'data' of preprocess cannot be read (NameError" in caplog.text
    assert served.worker.describe()["input"] == {"schema": None, "validated": False}


def test_plain_annotations_do_not_convert_but_are_described(serve_project: Callable[..., Any]) -> None:
    served = serve_project(
        """
        def preprocess(data: list[int]):
            return data
        def predict(inputs):
            return inputs
        def postprocess(outputs) -> dict[str, float]:
            return {"n": len(outputs)}
        """
    )
    assert served(["a", "b"]) == [(200, {"n": 2})]
    described = served.worker.describe()
    assert described["input"] == {"schema": {"type": "array", "items": {"type": "integer"}}, "validated": False}
    assert described["output"]["schema"] == {"type": "object", "additionalProperties": {"type": "number"}}


def test_keyword_arguments_are_described_as_an_object(serve_project: Callable[..., Any]) -> None:
    served = serve_project("def predict(text: str, top_k: int = 3): return [text] * top_k")
    assert served({"text": "a", "top_k": 1}) == [(200, ["a"])]
    described = served.worker.describe()["input"]
    schema = described["schema"]
    assert described["validated"] is True
    types = {name: each["type"] for name, each in schema["properties"].items()}
    assert types == {"text": "string", "top_k": "integer"}
    assert (schema["type"], schema["required"], schema["additionalProperties"]) == ("object", ["text"], False)


def test_in_list_mode_the_element_is_what_is_validated(serve_project: Callable[..., Any]) -> None:
    served = serve_project(
        """
        from dataclasses import dataclass
        @dataclass
        class Point:
            x: float
        def predict(points: list[Point]) -> list[float]:
            return [2 * point.x for point in points]
        """,
        batch="list",
    )
    assert served({"x": 1}, {"x": "two"}, {"x": 3})[::2] == [(200, 2.0), (200, 6.0)]
    assert served({"x": "two"})[0][0] == 400
    assert served.worker.describe()["output"]["schema"] == {"type": "number"}


def test_a_truss_model_s_typed_dict_only_says_what_is_meant(serve_project: Callable[..., Any]) -> None:
    """Truss reads pydantic models and hands everything else on as it is."""
    served = serve_project(
        """
        from typing import TypedDict
        class Input(TypedDict):
            text: str
        class Model:
            def predict(self, model_input: Input):
                return [type(model_input).__name__, model_input]
        """
    )
    assert served({"other": 1}) == [(200, ["dict", {"other": 1}])]
    assert served.worker.describe()["input"]["validated"] is False
    served = serve_project(
        """
        from pydantic import BaseModel
        class Input(BaseModel):
            text: str
        class Model:
            def predict(self, model_input: Input):
                return type(model_input).__name__
        """
    )
    (good, bad) = served({"text": "a"}, {"other": 1})
    assert good == (200, "Input")
    assert (bad[0], "text" in bad[1]["message"]) == (400, True)
    assert served.worker.describe()["input"]["validated"] is True


POINTS = """
from dataclasses import dataclass
from typing import Optional
@dataclass(frozen=True)
class Point:
    x: float
def preprocess(data: list[Point]) -> Optional[Point]:
    return data
def predict(inputs) -> dict[str, int]:
    return inputs
"""


def test_without_pydantic_a_typed_hook_is_refused_at_load(
    serve_project: Callable[..., Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "pydantic", None)
    with pytest.raises(AnnotationError, match=r"preprocess is annotated with list\[.*Point\].* add pydantic>=2.7 to"):
        serve_project(POINTS)


@pytest.mark.parametrize("annotation", ["dict", "list[int]", "bytes", "numpy.ndarray", "torch.Tensor", "object"])
def test_without_pydantic_other_annotations_are_no_matter(
    serve_project: Callable[..., Any], monkeypatch: pytest.MonkeyPatch, annotation: str
) -> None:
    monkeypatch.setitem(sys.modules, "pydantic", None)
    served = serve_project(f"import numpy, torch\ndef predict(inputs: {annotation}) -> {annotation}: return inputs")
    assert served([1]) == [(200, [1])]
    assert served.worker.describe()["input"] == {"schema": None, "validated": False}
    assert served.worker.describe()["output"] == {"schema": None}


@pytest.mark.parametrize(
    "source",
    [
        "from dataclasses import dataclass\n@dataclass\nclass Row:",
        "from typing import TypedDict\nclass Row(TypedDict):",
    ],
)
def test_what_pydantic_cannot_validate_is_refused_at_load(serve_project: Callable[..., Any], source: str) -> None:
    with pytest.raises(AnnotationError, match=r"predict is annotated with Row, .*or drop it") as caught:
        serve_project(f"{source}\n    x: 'Nowhere'\ndef predict(row: Row): return row")
    assert "name 'Nowhere' is not defined" in str(caught.value)


def test_arrays_in_fields_are_made_of_lists_wherever_they_stand(serve_project: Callable[..., Any]) -> None:
    served = serve_project(
        """
        from dataclasses import dataclass, field
        from typing import Optional
        import numpy, numpy.typing, torch
        from pydantic import BaseModel
        class Box(BaseModel):
            side: float
        @dataclass
        class Part:
            image: numpy.typing.NDArray[numpy.float32]
            weights: Optional[torch.Tensor] = None
            boxes: list[Box] = field(default_factory=list)
        @dataclass(slots=True)
        class Whole:
            part: Part
            masks: dict[str, torch.Tensor | None] = field(default_factory=dict)
        def predict(wholes: list[Whole]) -> numpy.ndarray:
            (whole,) = wholes
            values = [whole.part.image, whole.part.weights, *whole.part.boxes, *whole.masks.values()]
            return [type(value).__name__ for value in values]
        """
    )
    good, bad, worse = served(
        [{"part": {"image": [1.5], "weights": [0.5], "boxes": [{"side": 2}]}, "masks": {"a": [1], "b": None}}],
        [{"part": {"image": [[1], [1, 2]]}}],
        [{"part": {"image": [1], "weights": ["a"], "boxes": [{}]}}],
    )
    assert good == (200, ["ndarray", "Tensor", "Box", "Tensor", "NoneType"])
    message = "0.part.image: Value error, Input should be an array of numbers, each row of the same length"
    assert bad[1]["message"] == message
    for place in ("0.part.boxes.0.side: Field required", "0.part.weights: "):
        assert place in worse[1]["message"]
    assert served.worker.describe()["output"] == {"schema": None}


def test_models_of_pydantic_1(serve_project: Callable[..., Any]) -> None:
    served = serve_project(
        """
        from pydantic.v1 import BaseModel
        class Query(BaseModel):
            n: int
        def predict(query: Query) -> Query:
            return query
        """
    )
    good, bad = served({"n": "4"}, {})
    assert good == (200, {"n": 4})
    assert (bad[0], bad[1]["type"], bad[1]["message"]) == (400, "ValidationError", "n: field required")
    described = served.worker.describe()
    assert described["input"]["validated"] is True
    assert described["input"]["schema"]["properties"]["n"]["type"] == "integer"


def test_a_message_names_twenty_errors_and_counts_the_rest(serve_project: Callable[..., Any]) -> None:
    served = serve_project(POINTS)
    ((status, answer),) = served([{}] * 25)
    assert status == 400
    assert answer["message"].startswith("0.x: Field required; ")
    assert answer["message"].endswith("19.x: Field required; and 5 more")
