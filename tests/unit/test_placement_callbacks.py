"""The project's code that a library or a decorator calls back is read in the role of the hook that uses it."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.placing import functions, placed

LOAD = """
TOKENS = None
def load(context):
    global TOKENS
    TOKENS = {"a": 1}
"""

CALLED = {
    "a method that a base calls": """
        from html.parser import HTMLParser
        class Clean(HTMLParser):
            def __init__(self):
                super().__init__()
                self.found = []
            def handle_data(self, text): self.found += [TOKENS[word] for word in text.split()]
        def preprocess(data):
            parser = Clean()
            parser.feed(data)
            return parser.found
    """,
    "a function that a transformer holds": """
        from sklearn.preprocessing import FunctionTransformer
        def scaled(x): return TOKENS[x]
        SCALE = FunctionTransformer(scaled)
        def preprocess(data): return SCALE.transform(data)
    """,
    "transforms in a list": """
        from torchvision import transforms
        def scaled(x): return TOKENS[x]
        PREPARE = transforms.Compose([transforms.ToTensor(), transforms.Lambda(lambda x: x), scaled])
        def preprocess(data): return PREPARE(data)
    """,
    "transforms in transforms": """
        from torchvision import transforms
        PREPARE = transforms.Compose([transforms.Lambda(lambda x: TOKENS[x])])
        def preprocess(data): return PREPARE(data)
    """,
    "an encoder's class": """
        import json
        class Encoder(json.JSONEncoder):
            def default(self, value): return TOKENS[value]
        def postprocess(outputs): return json.dumps(outputs, cls=Encoder)
    """,
    "a default dict": """
        from collections import defaultdict
        WORDS = defaultdict(lambda: TOKENS["a"])
        def preprocess(data): return WORDS[data]
    """,
    "a data set that is iterated": """
        from torch.utils.data import DataLoader
        class Rows:
            def __getitem__(self, index): return TOKENS[index]
        ROWS = DataLoader(Rows())
        def preprocess(data): return [row for row in ROWS]
    """,
    "a function of several": """
        import functools
        @functools.singledispatch
        def clean(value): return value
        @clean.register(str)
        def _(value): return TOKENS[value]
        def preprocess(data): return clean(data)
    """,
    "a function of several, by annotation": """
        import functools
        @functools.singledispatch
        def clean(value): return value
        @clean.register
        def _(value: str): return TOKENS[value]
        def preprocess(data): return clean(data)
    """,
    "a field's factory": """
        from dataclasses import dataclass, field
        def made(): return TOKENS["a"]
        @dataclass
        class Request:
            text: str
            token: int = field(default_factory=made)
        def preprocess(data): return Request(data).token
    """,
    "a field's lambda": """
        from dataclasses import dataclass, field
        @dataclass
        class Request:
            text: str
            token: int = field(default_factory=lambda: TOKENS["a"])
        def preprocess(data): return Request(data).token
    """,
    "a validator": """
        import pydantic
        class Request(pydantic.BaseModel):
            text: str
            @pydantic.field_validator("text")
            @classmethod
            def known(cls, text): return TOKENS[text]
        def preprocess(data): return Request(**data).text
    """,
    "a validator of a validated request": """
        import pydantic
        class Request(pydantic.BaseModel):
            text: str
            @pydantic.field_validator("text")
            def known(cls, text): return TOKENS[text]
        def preprocess(data): return Request.model_validate(data).text
    """,
    "a method of a constant of an enumeration": """
        import enum
        class Kind(enum.Enum):
            CAT = 1
            def token(self): return TOKENS[self.name]
        def preprocess(data): return Kind.CAT.token()
    """,
    "a decorator that is a class": """
        class Prepared:
            def __init__(self, function): self.function = function
            def __call__(self, data): return self.function(TOKENS[data])
        @Prepared
        def clean(data): return data
        def preprocess(data): return clean(data)
    """,
    "a hook's decorator that is a class": """
        class Prepared:
            def __init__(self, function): self.function = function
            def __call__(self, data): return self.function(TOKENS[data])
        @Prepared
        def preprocess(data): return data
    """,
    "a hook's decorator that is an object": """
        class Prepared:
            def __call__(self, function):
                def prepared(data): return function(TOKENS[data])
                return prepared
        @Prepared()
        def preprocess(data): return data
    """,
}


@pytest.mark.parametrize("text", CALLED.values(), ids=CALLED)
def test_a_library_calls_back(text: str, tmp_path: Path) -> None:
    found = placed(tmp_path, functions(text) + LOAD)
    assert {reason.name for reason in found.reasons} == {"TOKENS"}, found.reasons
    assert all(reason.line and "load assigns" in reason.what for reason in found.reasons)


LOADS = {
    "a thread's method": """
        import threading
        TOKENS = None
        class Loader(threading.Thread):
            def run(self):
                global TOKENS
                TOKENS = {"a": 1}
        def load(context): Loader().start()
    """,
    "a decorator that is a class": """
        TOKENS = None
        class Kept:
            def __init__(self, function): self.function = function
            def __call__(self, context):
                global TOKENS
                TOKENS = self.function(context)
                return TOKENS
        @Kept
        def load(context): return {"a": 1}
    """,
}


@pytest.mark.parametrize("text", LOADS.values(), ids=LOADS)
def test_a_library_or_a_decorator_sets_it_while_load_runs(text: str, tmp_path: Path) -> None:
    found = placed(tmp_path, functions(text) + "def preprocess(data): return TOKENS[data]\n")
    assert [reason.name for reason in found.reasons] == ["TOKENS"]


def test_a_file_handed_to_a_library_cannot_be_followed(tmp_path: Path) -> None:
    text = "import operator, state\nTOKENS = operator.attrgetter('TOKENS')\ndef load(context): state.TOKENS = 1\n"
    files = {"state.py": "TOKENS = None\n"}
    (reason,) = placed(
        tmp_path, functions(text + "def preprocess(data): return TOKENS(state)\n"), files
    ).reasons
    assert (reason.line, reason.name) == (4, "state`, handed to TOKENS")


def test_what_nobody_calls_ties_nothing(tmp_path: Path) -> None:
    text = """
        import pydantic
        from torchvision import transforms
        class Request(pydantic.BaseModel):
            text: str
            @pydantic.field_validator("text")
            def known(cls, text): return text.lower()
            def tokens(self): return TOKENS[self.text]
        def scaled(x): return TOKENS[x]
        OTHER = transforms.Compose([scaled])
        PREPARE = transforms.Compose([transforms.Lambda(lambda x: x)])
        def preprocess(data): return PREPARE(Request(**data).text)
        def predict(inputs): return OTHER(inputs)
    """
    assert placed(tmp_path, functions(text) + LOAD).reasons == ()
