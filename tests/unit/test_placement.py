"""Where the stages run: what ties preprocess or postprocess to the process that has the model."""

from __future__ import annotations

import itertools
from pathlib import Path
from typing import Any

import pytest

from handlergen.errors import ContractError
from tests.placing import functions, placed

PREDICT = "\ndef predict(inputs, model):\n    return model\n"
LOAD = "\ndef load(context):\n    return object()\n"


FREE = {
    "no other hooks": "def predict(x): return x",
    "plain hooks": "def preprocess(d): return d\ndef predict(x): return x\ndef postprocess(o): return o",
    "constants": """
        LABELS = ["a", "b"]
        def load(context): return len(LABELS)
        def postprocess(outputs): return LABELS[int(outputs)]
    """,
    "a configuration that load reads": """
        CONFIG = {"hidden": 64}
        def load(context): return make(CONFIG["hidden"], CONFIG.get("x", 1))
        def make(hidden, x): return hidden * x
        def preprocess(data): return data / CONFIG["hidden"]
    """,
    "a configuration handed to a library": """
        from somewhere import Network
        CONFIG = {"hidden": 64}
        def load(context):
            model = Network(CONFIG)
            model.load_state_dict({})
            model.config = 1
            return model.eval()
        def preprocess(data): return data / CONFIG["hidden"]
    """,
    "setup builds": """
        TOKENIZER = None
        def setup(context):
            global TOKENIZER
            TOKENIZER = dict(a=1)
        def load(context): return 1
        def preprocess(data): return TOKENIZER[data]
    """,
    "setup builds what load reads": """
        STATE = {}
        def setup(context): STATE["labels"] = ["a"]
        def load(context): return len(STATE["labels"])
        def postprocess(outputs): return STATE["labels"][0]
    """,
    "load shadows the name": """
        LABELS = ["a"]
        def load(context):
            LABELS = []
            LABELS.append(1)
            return LABELS
        def postprocess(outputs): return LABELS[0]
    """,
    "a local of the same name": """
        def load(context):
            global MODEL
            MODEL = 1
            return MODEL
        def preprocess(data):
            MODEL = data
            return MODEL
    """,
    "a parameter of the same name": """
        def load(context):
            global tokens
            tokens = 1
        def preprocess(data): return count(data)
        def count(tokens): return len(tokens)
    """,
    "what load binds is for predict": """
        model = None
        def load(context):
            global model
            model = 1
        def preprocess(data): return clean(data)
        def clean(data): return data.strip()
        def predict(inputs): return model
    """,
    "a library's tokenizer made at import, used everywhere": """
        from transformers import AutoTokenizer
        TOKENIZER = AutoTokenizer.from_pretrained("x")
        def load(context): return TOKENIZER.encode("warm up")
        def preprocess(data): return TOKENIZER(data)
        def postprocess(outputs): return TOKENIZER.decode(outputs)
    """,
    "loggers": """
        import logging
        logger = logging.getLogger(__name__)
        def load(context): logger.info("loading")
        def preprocess(data): logger.info("a request"); return data
        def predict(inputs): logger.warning("hm"); return inputs
    """,
    "a helper of load and preprocess": """
        from pathlib import Path
        def read(name): return Path(name).read_text().split()
        def load(context): return read("weights.txt")
        def preprocess(data): return read(data)
    """,
    "a helper that fills what it is given": """
        def fill(target, key, value): target[key] = value
        STATE = {}
        def load(context): fill(STATE, "model", 1)
        def preprocess(data):
            found = {}
            fill(found, "x", data)
            return found
        def predict(inputs): return STATE["model"]
    """,
    "preprocess and postprocess share": """
        SEEN = []
        def preprocess(data): SEEN.append(1); return data
        def postprocess(outputs): return len(SEEN)
    """,
    "asks for context and request": """
        def preprocess(data, context, request): return data * context.config["scale"]
        def postprocess(outputs, context): context.store.save("last", 1); return outputs
    """,
    "a class of its own, made anew": """
        class Reader:
            def __init__(self): self.rows = []
            def read(self, data): self.rows.append(data); return self.rows
        def load(context): return Reader().read(1)
        def preprocess(data): return Reader().read(data)
    """,
    "the CPU is no accelerator": """
        import torch
        def preprocess(data): return torch.tensor(data).to("cpu", torch.float32).to(torch.device("cpu"))
    """,
    "a device that only load uses": """
        import torch
        DEVICE = torch.device("cuda" if torch.cuda.is_available() else "cpu")
        def load(context): return torch.nn.Linear(1, 1).to(DEVICE)
        def preprocess(data): return data
    """,
    "a helper of another file": """
        from helpers import clean
        def preprocess(data): return clean(data)
    """,
    "getattr with a written name": """
        import math
        def preprocess(data): return getattr(math, "sqrt")(data)
    """,
    "a cached function that setup fills": """
        import functools
        @functools.lru_cache
        def vocabulary(): return {"a": 1}
        def setup(context): vocabulary()
        def load(context): return len(vocabulary())
        def preprocess(data): return vocabulary()[data]
    """,
    "explain and is_healthy have no influence": """
        def load(context): return 1
        def preprocess(data): return data
        def explain(inputs, model): return model
        def is_healthy(model): return True
    """,
    "a comprehension's own name": """
        def load(context):
            global words
            words = 1
        def preprocess(data): return [word.lower() for word in data]
    """,
    "deepest helpers": """
        def load(context):
            global MODEL
            MODEL = 1
        def preprocess(data): return a(data)
        def a(x): return b(x)
        def b(x): return c(x) if x else a(x)
        def c(x): return x
        def predict(inputs): return MODEL
    """,
}

HELPERS = {"helpers.py": "def clean(text): return text\n"}

TIED = {
    "global": (
        """
        def load(context):
            global TOKENIZER
            TOKENIZER = 1
        def preprocess(data): return TOKENIZER
        """,
        "TOKENIZER",
    ),
    "global through a helper": (
        """
        def load(context): init()
        def init():
            global TOKENIZER
            TOKENIZER = 1
        def preprocess(data): return tokenize(data)
        def tokenize(text): return TOKENIZER
        """,
        "TOKENIZER",
    ),
    "item": (
        """
        STATE = {}
        def load(context): STATE["labels"] = [1]
        def postprocess(outputs): return STATE["labels"]
        """,
        "STATE",
    ),
    "append": (
        """
        LABELS = []
        def load(context): LABELS.append("a")
        def postprocess(outputs): return LABELS[0]
        """,
        "LABELS",
    ),
    "attribute": (
        """
        class State: pass
        state = State()
        def load(context): state.labels = ["a"]
        def postprocess(outputs): return state.labels
        """,
        "state",
    ),
    "attribute of a class": (
        """
        class State:
            labels = None
        def load(context): State.labels = ["a"]
        def postprocess(outputs): return State.labels
        """,
        "State",
    ),
    "attribute of a function": (
        """
        def load(context): preprocess.scale = 2
        def preprocess(data): return data * preprocess.scale
        """,
        "preprocess",
    ),
    "a method that load calls": (
        """
        class Reader:
            def open(self): self.words = ["a"]
            def read(self, x): return self.words
        reader = Reader()
        def load(context): reader.open()
        def preprocess(data): return reader.read(data)
        """,
        "reader",
    ),
    "an alias": (
        """
        STATE = {}
        cache = STATE
        def load(context): STATE["x"] = 1
        def preprocess(data): return cache["x"]
        """,
        "cache",
    ),
    "a local alias in load": (
        """
        STATE = {}
        def load(context):
            mine = STATE
            mine["x"] = 1
        def preprocess(data): return STATE["x"]
        """,
        "STATE",
    ),
    "handed to a helper of load": (
        """
        STATE = {}
        def fill(target): target.update(x=1)
        def load(context): fill(STATE)
        def preprocess(data): return STATE["x"]
        """,
        "STATE",
    ),
    "inside another": (
        """
        INNER = {}
        OUTER = {"inner": INNER}
        def load(context): OUTER["inner"]["x"] = 1
        def preprocess(data): return INNER["x"]
        """,
        "INNER",
    ),
    "a tuple": (
        """
        def load(context):
            global A, B
            A, B = 1, 2
        def preprocess(data): return B
        """,
        "B",
    ),
    "with": (
        """
        def load(context):
            global FILE
            with open("x") as FILE: pass
        def preprocess(data): return FILE
        """,
        "FILE",
    ),
    "for": (
        """
        def load(context):
            global item
            for item in [1]: pass
        def preprocess(data): return item
        """,
        "item",
    ),
    "import": (
        """
        def load(context):
            global transformers
            import transformers
        def preprocess(data): return transformers.tokenize(data)
        """,
        "transformers",
    ),
    "a function that load defines": (
        """
        def load(context):
            global clean
            def clean(text): return text
        def preprocess(data): return clean(data)
        """,
        "clean",
    ),
    "walrus": (
        """
        def load(context):
            global N
            if (N := 3): pass
        def preprocess(data): return N
        """,
        "N",
    ),
    "augmented": (
        """
        WORDS = ["a"]
        def load(context):
            global WORDS
            WORDS += ["b"]
        def preprocess(data): return WORDS
        """,
        "WORDS",
    ),
    "deleted": (
        """
        WORDS = ["a"]
        def load(context):
            del WORDS[0]
        def preprocess(data): return WORDS[0]
        """,
        "WORDS",
    ),
    "both setup and load": (
        """
        def setup(context):
            global N
            N = 1
        def load(context):
            global N
            N = 2
        def preprocess(data): return N
        """,
        "N",
    ),
    "a nested function of load": (
        """
        def load(context):
            def later():
                global N
                N = 1
            later()
        def preprocess(data): return N
        """,
        "N",
    ),
    "a thread of load": (
        """
        import threading
        STATE = {}
        def work(): STATE["x"] = 1
        def load(context): threading.Thread(target=work).start()
        def preprocess(data): return STATE["x"]
        """,
        "STATE",
    ),
    "a lambda": (
        """
        def load(context):
            global N
            N = 1
        clean = lambda text: text * N
        def preprocess(data): return clean(data)
        """,
        "N",
    ),
    "map": (
        """
        def load(context):
            global N
            N = 1
        def scaled(x): return x * N
        def preprocess(data): return list(map(scaled, data))
        """,
        "N",
    ),
    "partial": (
        """
        from functools import partial
        def load(context):
            global N
            N = 1
        def scaled(x, y): return x * N
        once = partial(scaled, 1)
        def preprocess(data): return once(data)
        """,
        "N",
    ),
    "a table of functions": (
        """
        def load(context):
            global N
            N = 1
        def scaled(x): return x * N
        TABLE = {"scaled": scaled}
        def preprocess(data): return TABLE["scaled"](data)
        """,
        "N",
    ),
    "a decorator": (
        """
        def checked(function):
            def wrapper(*arguments):
                return function(*arguments) * N
            return wrapper
        def load(context):
            global N
            N = 1
        @checked
        def clean(data): return data
        def preprocess(data): return clean(data)
        """,
        "N",
    ),
    "a default": (
        """
        STATE = {}
        def load(context): STATE["x"] = 1
        def helper(data, state=STATE): return state["x"]
        def preprocess(data): return helper(data)
        """,
        "STATE",
    ),
    "a comprehension": (
        """
        def load(context):
            global N
            N = 1
        def preprocess(data): return [x * N for x in data]
        """,
        "N",
    ),
    "an f-string": (
        """
        def load(context):
            global N
            N = 1
        def postprocess(outputs): return f"{N:>{N}}"
        """,
        "N",
    ),
    "a property": (
        """
        class Words:
            @property
            def all(self): return WORDS
        words = Words()
        def load(context):
            global WORDS
            WORDS = ["a"]
        def preprocess(data): return words.all
        """,
        "WORDS",
    ),
    "an async hook": (
        """
        def load(context):
            global N
            N = 1
        async def preprocess(data): return await scaled(data)
        async def scaled(x): return x * N
        """,
        "N",
    ),
    "a lazy model": (
        """
        model = None
        def get():
            global model
            if model is None: model = 1
            return model
        def load(context): return get()
        def preprocess(data): return get()
        """,
        "model",
    ),
    "a cached function": (
        """
        import functools
        @functools.cache
        def network(): return object()
        def load(context): return network()
        def preprocess(data): return network()
        """,
        "network",
    ),
    "the model": ("def load(context): return 1\ndef preprocess(data, model): return data", "model"),
    "the device": ("def preprocess(data, device): return data", "device"),
    "the context's device": (
        "def preprocess(data, context): return data.to(context.device)",
        "context.device",
    ),
    "cuda": ("def preprocess(data): return data.cuda()", ".cuda()"),
    "to cuda": ("import torch\ndef preprocess(data): return torch.zeros(1).to('cuda:0')", ".to(...)"),
    "torch.device": ("import torch\ndef preprocess(data): return torch.device('cuda')", "torch.device(...)"),
    "a device of the module": (
        """
        import torch
        DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
        def preprocess(data): return torch.tensor(data, device=DEVICE)
        """,
        "DEVICE",
    ),
    "torch.cuda": ("import torch\ndef preprocess(data): torch.cuda.synchronize()", "torch.cuda.synchronize"),
    "a model on the device at import": (
        "import torch\nMODEL = torch.nn.Linear(1, 1).cuda()\ndef preprocess(data): return data",
        ".cuda()",
    ),
    "predict leaves something": (
        """
        LAST = {}
        def predict(inputs): LAST["x"] = inputs; return inputs
        def postprocess(outputs): return LAST["x"]
        """,
        "LAST",
    ),
    "preprocess leaves something": (
        """
        SHAPE = []
        def preprocess(data): SHAPE.append(len(data)); return data
        def predict(inputs): return SHAPE[-1]
        """,
        "SHAPE",
    ),
    "preprocess assigns": (
        """
        def preprocess(data):
            global SHAPE
            SHAPE = len(data)
        def predict(inputs): return SHAPE
        """,
        "SHAPE",
    ),
    "globals()": ("def preprocess(data): return globals()['x']", "globals()"),
    "eval": ("def preprocess(data): return eval('x')", "eval()"),
    "load binds by globals()": (
        "def load(c): globals().update(a=1)\ndef preprocess(d): return d",
        "globals()",
    ),
    "setattr in load": (
        """
        import helpers
        def load(context):
            for name in ("a", "b"): setattr(helpers, name, 1)
        def preprocess(data): return helpers.a
        """,
        "setattr",
    ),
    "a helper module's global": (
        """
        import helpers
        def load(context): helpers.clean = str.lower
        def preprocess(data): return helpers.clean(data)
        """,
        "clean",
    ),
    "another file": (
        """
        from stateful import init, clean
        def load(context): init()
        def preprocess(data): return clean(data)
        """,
        "TOKENIZER",
    ),
    "a star import": (
        """
        from stateful import *
        def load(context): init()
        def preprocess(data): return clean(data)
        """,
        "TOKENIZER",
    ),
    "an import inside the hook": (
        """
        def load(context):
            import stateful
            stateful.init()
        def preprocess(data):
            from stateful import clean
            return clean(data)
        """,
        "TOKENIZER",
    ),
    "a library's state": (
        """
        import nltk
        def load(context): nltk.data.path.append("here")
        def preprocess(data): return nltk.word_tokenize(data)
        """,
        "nltk.data.path",
    ),
    "the search path": (
        """
        import sys
        def load(context): sys.path.insert(0, "lib")
        def preprocess(data):
            import somewhere
            return somewhere.clean(data)
        """,
        "sys.path",
    ),
    "the environment": (
        """
        import os
        def load(context): os.environ["SCALE"] = "2"
        def preprocess(data): return os.environ["SCALE"]
        """,
        "os.environ",
    ),
    "a library's object that load may change": (
        """
        from transformers import AutoTokenizer
        TOKENIZER = AutoTokenizer.from_pretrained("x")
        def load(context): TOKENIZER.add_special_tokens({})
        def preprocess(data): return TOKENIZER(data)
        """,
        "TOKENIZER",
    ),
    "a closure": (
        """
        def make():
            state = None
            def put(value):
                nonlocal state
                state = value
            def get(): return state
            return put, get
        put, get = make()
        def load(context): put(1)
        def preprocess(data): return get()
        """,
        "get",
    ),
    "a closure's dict": (
        """
        def make():
            state = {}
            def put(value): state["x"] = value
            return put, lambda: state["x"]
        put, get = make()
        def load(context): put(1)
        def preprocess(data): return get()
        """,
        "get",
    ),
    "a default that is changed": (
        """
        def cache(state={}): return state
        def load(context): cache()["x"] = 1
        def preprocess(data): return cache()["x"]
        """,
        "cache",
    ),
    "an item of an object": (
        """
        class Words:
            def __getitem__(self, key): return WORDS[key]
        words = Words()
        def load(context):
            global WORDS
            WORDS = {"a": 1}
        def preprocess(data): return words[data]
        """,
        "WORDS",
    ),
    "in an object": (
        """
        class Words:
            def __contains__(self, key): return key in WORDS
        words = Words()
        def load(context):
            global WORDS
            WORDS = {"a": 1}
        def preprocess(data): return data in words
        """,
        "WORDS",
    ),
    "the length of an object": (
        """
        class Words:
            def __len__(self): return N
        words = Words()
        def load(context):
            global N
            N = 1
        def preprocess(data): return len(words)
        """,
        "N",
    ),
    "with an object": (
        """
        class Words:
            def __enter__(self): return N
            def __exit__(self, *error): pass
        def load(context):
            global N
            N = 1
        def preprocess(data):
            with Words() as words: return words
        """,
        "N",
    ),
    "an object handed to a library": (
        """
        import somewhere
        class Reader:
            def read(self): return N
        def load(context):
            global N
            N = 1
        def preprocess(data): return somewhere.run(Reader())
        """,
        "N",
    ),
    "after a dataclass is made": (
        """
        from dataclasses import dataclass
        @dataclass
        class Request:
            x: int
            def __post_init__(self): self.x *= N
        def load(context):
            global N
            N = 1
        def preprocess(data): return Request(data)
        """,
        "N",
    ),
    "dict.update": (
        """
        STATE = {}
        def load(context): dict.update(STATE, x=1)
        def preprocess(data): return STATE["x"]
        """,
        "STATE",
    ),
    "a heap": (
        """
        import heapq
        STATE = []
        def load(context): heapq.heappush(STATE, 1)
        def preprocess(data): return STATE[0]
        """,
        "STATE",
    ),
    "the context": (
        """
        def load(context): context.config["x"] = 1; context.words = 1
        def preprocess(data, context): return context.words
        """,
        "context.words",
    ),
    "a namespace package": (
        """
        import lib.stateful
        def load(context): lib.stateful.init()
        def preprocess(data): return lib.stateful.clean(data)
        """,
        "TOKENIZER",
    ),
    "a file of a namespace package": (
        """
        from lib import stateful
        def load(context): stateful.init()
        def preprocess(data): return stateful.clean(data)
        """,
        "TOKENIZER",
    ),
    "a package": (
        """
        from pack import init
        import pack.inner as inner
        def load(context): init()
        def preprocess(data): return inner.clean(data)
        """,
        "TOKENIZER",
    ),
    "a file that only a changed path finds": (
        """
        import sys
        sys.path.insert(0, "vendor")
        import vendored
        def load(context): vendored.init()
        def preprocess(data): return vendored.clean(data)
        """,
        "vendored",
    ),
}

STATEFUL = """
TOKENIZER = None
def init():
    global TOKENIZER
    TOKENIZER = dict
def clean(text): return TOKENIZER(text)
"""


@pytest.mark.parametrize("text", FREE.values(), ids=FREE)
def test_stages_that_run_in_the_workers(text: str, tmp_path: Path) -> None:
    found = placed(tmp_path, functions(text), HELPERS)
    assert found.reasons == ()
    assert (found.predictor, found.stages) == ("process", "worker")


@pytest.mark.parametrize(("text", "name"), TIED.values(), ids=TIED)
def test_stages_that_run_where_the_model_is(text: str, name: str, tmp_path: Path) -> None:
    files = {**HELPERS, **dict.fromkeys(("stateful.py", "lib/stateful.py", "vendor/vendored.py"), STATEFUL)}
    files |= {"pack/__init__.py": "from .inner import init", "pack/inner.py": STATEFUL}
    found = placed(tmp_path, functions(text), files)
    assert (found.predictor, found.stages) == ("process", "predictor")
    assert any(reason.name.startswith(name) for reason in found.reasons), found.reasons
    for reason in found.reasons:
        assert reason.line, reason
        assert reason.fix
        assert not reason.what.endswith(".")
        assert "{" not in str(reason) or "{" in text


CLASS_FREE = {
    "methods and class attributes": """
        class Model:
            labels = ["a"]
            def __init__(self): self.model = None
            def load(self): self.model = 1
            def preprocess(self, data): return self._clean(data)
            def _clean(self, text): return self.upper(text) + self.labels[0]
            @staticmethod
            def upper(text): return text.upper()
            def predict(self, inputs): return self.model
            def postprocess(self, outputs): return self.size
            @property
            def size(self): return len(self.labels)
    """,
    "a base of the file": """
        class Base:
            words = ("a",)
            def preprocess(self, data): return self.words
        class Model(Base):
            def __init__(self): self.model = 1
            def preprocess(self, data): return super().preprocess(data)
            def predict(self, inputs): return self.model
    """,
    "only for each other": """
        class Model:
            def preprocess(self, data): self.count = 1; return data
            def predict(self, inputs): return inputs
            def postprocess(self, outputs): return self.count
    """,
    "a classmethod": """
        class Model:
            words = ["a"]
            @classmethod
            def first(cls): return cls.words[0]
            def preprocess(self, data): return self.first()
            def predict(self, inputs): return inputs
    """,
}

CLASS_TIED = {
    "the constructor": (
        """
        class Model:
            def __init__(self, **kwargs): self.labels = kwargs["config"]
            def predict(self, inputs): return inputs
            def postprocess(self, outputs): return self.labels
        """,
        "self.labels",
    ),
    "load, through a method": (
        """
        class Model:
            tokenizer = None
            def load(self): self.tokenizer = 1
            def preprocess(self, data): return self._tokenize(data)
            def _tokenize(self, text): return self.tokenizer(text)
            def predict(self, inputs): return inputs
        """,
        "self.tokenizer",
    ),
    "through a function": (
        """
        def tokenize(model, text): return model.tokenizer(text)
        class Model:
            def load(self): self.tokenizer = 1
            def preprocess(self, data): return tokenize(self, data)
            def predict(self, inputs): return inputs
        """,
        "self.tokenizer",
    ),
    "through a property": (
        """
        class Model:
            def load(self): self._tokenizer = 1
            @property
            def tokenizer(self): return self._tokenizer
            def preprocess(self, data): return self.tokenizer
            def predict(self, inputs): return inputs
        """,
        "self._tokenizer",
    ),
    "another name of self": (
        """
        class Model:
            def load(self): self.tokenizer = 1
            def preprocess(self, data):
                this = self
                return this.tokenizer
            def predict(self, inputs): return inputs
        """,
        "self.tokenizer",
    ),
    "getattr": (
        """
        class Model:
            def load(self): self.tokenizer = 1
            def preprocess(self, data): return getattr(self, "tokenizer")
            def predict(self, inputs): return inputs
        """,
        "self.tokenizer",
    ),
    "a computed name": (
        """
        class Model:
            def preprocess(self, data): return getattr(self, data)
            def predict(self, inputs): return inputs
        """,
        "getattr",
    ),
    "vars": (
        """
        class Model:
            def preprocess(self, data): return vars(self)
            def predict(self, inputs): return inputs
        """,
        "vars()",
    ),
    "__dict__": (
        """
        class Model:
            def preprocess(self, data): return self.__dict__
            def predict(self, inputs): return inputs
        """,
        "__dict__",
    ),
    "handed to a library": (
        """
        import somewhere
        class Model:
            def preprocess(self, data): return somewhere.clean(self, data)
            def predict(self, inputs): return inputs
        """,
        "self",
    ),
    "a class attribute that load changes": (
        """
        class Model:
            cache = {}
            def load(self): self.cache["x"] = 1
            def preprocess(self, data): return self.cache["x"]
            def predict(self, inputs): return inputs
        """,
        "self.cache",
    ),
    "predict leaves something": (
        """
        class Model:
            def predict(self, inputs): self.last = inputs; return inputs
            def postprocess(self, outputs): return self.last
        """,
        "self.last",
    ),
    "preprocess leaves something": (
        """
        class Model:
            def preprocess(self, data): self.last = data; return data
            def predict(self, inputs): return self.last
        """,
        "self.last",
    ),
    "a global of load": (
        """
        class Model:
            def load(self):
                global N
                N = 1
            def preprocess(self, data): return N
            def predict(self, inputs): return inputs
        """,
        "N",
    ),
    "the class itself": (
        """
        class Model:
            words = None
            def load(self): type(self).words = ["a"]
            def preprocess(self, data): return self.words
            def predict(self, inputs): return inputs
        """,
        "self.words",
    ),
    "the class by name": (
        """
        class Model:
            words = None
            def load(self): Model.words = ["a"]
            def preprocess(self, data): return self.words
            def predict(self, inputs): return inputs
        """,
        "self.words",
    ),
    "an attrgetter": (
        """
        from operator import attrgetter
        class Model:
            def load(self): self.words = ["a"]
            def preprocess(self, data): return attrgetter("words")(self)
            def predict(self, inputs): return inputs
        """,
        "self",
    ),
    "a base that is not read": (
        """
        from somewhere import Base
        class Model(Base):
            def preprocess(self, data): return self.tokenizer(data)
            def predict(self, inputs): return inputs
        """,
        "self.tokenizer",
    ),
    "super of a base that is not read": (
        """
        from somewhere import Base
        class Model(Base):
            def preprocess(self, data): return super().clean(data)
            def predict(self, inputs): return inputs
        """,
        "self.clean",
    ),
    "a dataclass's field": (
        """
        from dataclasses import dataclass, field
        @dataclass
        class Model:
            words: list = field(default_factory=list)
            def preprocess(self, data): return self.words
            def predict(self, inputs): return inputs
        """,
        "self.words",
    ),
}


@pytest.mark.parametrize("text", CLASS_FREE.values(), ids=CLASS_FREE)
def test_a_class_whose_instance_is_not_needed(text: str, tmp_path: Path) -> None:
    found = placed(tmp_path, text)
    assert found.reasons == ()
    assert found.stages == "worker"


@pytest.mark.parametrize(("text", "name"), CLASS_TIED.values(), ids=CLASS_TIED)
def test_a_class_whose_instance_is_needed(text: str, name: str, tmp_path: Path) -> None:
    found = placed(tmp_path, text)
    assert found.stages == "predictor"
    assert any(reason.name.startswith(name) for reason in found.reasons), found.reasons


MODULE = """
import json, re, torch
from torch import nn

LABELS = ["a", "b"]

class Net(nn.Module):
    scale = 255
    def __init__(self, width=4, names=("x",)):
        super().__init__()
        self.layer = nn.Linear(width, 2)
        self.register_buffer("mean", torch.zeros(width))
        self.width = width * 2
        self.names = [name.lower() for name in names]
        self.table = {{"a": [1, 2], "b": json.loads("[1]")}}
        self.pattern = re.compile("x")
        {init}
    def forward(self, batch):
        return self.layer(batch)
    def helper(self, x):
        return x * self.scale + self.width
    def preprocess(self, x):
        {pre}
    def postprocess(self, output):
        return LABELS[int(output.argmax())]
"""

MODULE_HOOKS = {
    "self.helper(torch.tensor(x))": None,
    "self.table['a'], self.names, self.pattern.sub('', x)": None,
    "x * self.layer.weight": "self.layer",
    "x - self.mean": "self.mean",
    "self(x)": "self(...)",
    "self.forward(x)": "self.layer",
    "next(self.parameters()).device": "self.parameters",
    "x if self.training else None": "self.training",
    "self.state_dict()": "self.state_dict",
    "x.to(self.device)": "self.device",
    "self._modules": "self._modules",
}

MODULE_INITS = {
    "self.extra = len(names)": None,
    "self.extra = None": None,
    "self.extra = nn.Parameter(torch.zeros(1))": "self.extra",
    "self.extra = torch.arange(3) * 2": "self.extra",
    "self.extra = -torch.ones(1)": "self.extra",
    "self.extra = [nn.Linear(1, 1)]": "self.extra",
    "self.extra = self.layer": "self.extra",
    "import somewhere; self.extra = somewhere.Tokenizer()": "self.extra",
    "setattr(self, 'extra', nn.Linear(1, 1))": "self.extra",
    "self.add_module('extra', nn.Linear(1, 1))": "self.extra",
}


@pytest.mark.parametrize(("expression", "name"), MODULE_HOOKS.items(), ids=list(MODULE_HOOKS))
def test_what_the_hooks_of_an_nn_module_read(expression: str, name: str | None, tmp_path: Path) -> None:
    found = placed(tmp_path, MODULE.format(init="pass", pre=f"return {expression}"))
    names = [reason.name for reason in found.reasons]
    assert found.stages == ("predictor" if name else "worker"), names
    assert names == [] if name is None else name in names


@pytest.mark.parametrize(("statement", "name"), MODULE_INITS.items(), ids=list(MODULE_INITS))
def test_what_an_nn_module_is_made_of(statement: str, name: str | None, tmp_path: Path) -> None:
    found = placed(tmp_path, MODULE.format(init=statement, pre="return x, self.extra"))
    names = [reason.name for reason in found.reasons]
    assert found.stages == ("predictor" if name else "worker"), names
    assert names == [] if name is None else name in names


@pytest.mark.parametrize(
    ("statement", "name"),
    [
        (
            "import transformers; self.net = transformers.AutoModel.from_pretrained('x')",
            "transformers.AutoModel",
        ),
        ("self.net = nn.Linear(1, 1); self.net.load_state_dict(torch.load('x'))", "torch.load"),
        ("self.rates = [x.item() for x in torch.linspace(0, 1, 3)]", ".item"),
    ],
)
def test_a_constructor_that_needs_values_keeps_the_module_in_one_place(
    statement: str, name: str, tmp_path: Path
) -> None:
    found = placed(tmp_path, MODULE.format(init=statement, pre="return x"))
    assert found.stages == "predictor"
    assert found.reasons[0].name.startswith(name)


def test_with_a_load_of_its_own_an_instance_of_a_worker_has_no_attributes(tmp_path: Path) -> None:
    load = "\ndef load(context):\n    return Net()\n"
    found = placed(tmp_path, MODULE.format(init="pass", pre="return self.helper(x)") + load)
    assert [reason.name for reason in found.reasons] == ["self.width"]
    found = placed(tmp_path, MODULE.format(init="pass", pre="return x * self.scale") + load)
    assert found.reasons == ()


SAGEMAKER = """
def model_fn(model_dir):
    global LABELS
    LABELS = ["a"]
def input_fn(data, content_type): return data
def output_fn(prediction, accept): return {answer}
"""


def test_the_toolkits_functions(tmp_path: Path) -> None:
    assert placed(tmp_path, SAGEMAKER.format(answer="prediction")).stages == "worker"
    found = placed(tmp_path, SAGEMAKER.format(answer="LABELS[0]"))
    (reason,) = found.reasons
    assert (reason.hook, reason.name, reason.line) == ("output_fn", "LABELS", 6)
    assert "which model_fn assigns in line 4" in reason.what
    assert "pre_model_fn(model_dir)" in reason.fix


FLOW = "def double(x): return x * 2\nFLOW = [('python', double)]\n"


def test_a_packed_file_is_read_too(tmp_path: Path) -> None:
    (tmp_path / "common").mkdir()
    (tmp_path / "common" / "stateful.py").write_text(STATEFUL, encoding="utf-8")
    text = "import stateful\ndef load(c): stateful.init()\ndef preprocess(d): return stateful.clean(d)\n"
    project = tmp_path / "project"
    found = placed(project, functions(text), packages=["../common/stateful.py"])
    assert [reason.name for reason in found.reasons] == ["TOKENIZER"]


def test_a_flow_has_a_predictor_process_only_when_asked_for_and_only_as_a_whole(tmp_path: Path) -> None:
    found = placed(tmp_path, FLOW, predictor="auto")
    assert (found.predictor, found.stages) == ("worker", "worker")
    assert "several models" in found.why
    found = placed(tmp_path, FLOW, predictor="process")
    assert (found.predictor, found.stages) == ("process", "predictor")
    with pytest.raises(ContractError, match="stages: worker is not for the form flow"):
        placed(tmp_path, FLOW, predictor="process", stages="worker")


TOKENIZES = functions(TIED["global through a helper"][0])


def test_a_reason_says_where_through_what_and_how_to_free_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    (reason,) = placed(tmp_path, TOKENIZES).reasons
    assert (reason.hook, reason.line, reason.through) == ("preprocess", 7, ("tokenize",))
    assert str(reason) == (
        "digits.py:7: preprocess uses TOKENIZER (through tokenize), which load assigns in line 5 (through init). "
        "Make TOKENIZER in setup(context), which every worker runs, or where the module is imported."
    )


def test_auto_is_a_process_where_there_is_a_model_to_share(tmp_path: Path) -> None:
    loads = functions("def load(context): return 1")
    assert placed(tmp_path, loads, predictor="auto").predictor == "process"
    assert placed(tmp_path, functions(""), predictor="auto").predictor == "worker"
    assert placed(tmp_path, functions(""), predictor="process").predictor == "process"
    assert placed(tmp_path, loads, predictor="worker").predictor == "worker"


def test_a_preprocess_that_yields_stays_with_the_model(tmp_path: Path) -> None:
    model = (
        "class Model:\n    def preprocess(self, data):\n        yield data\n    def predict(self, inputs):\n"
    )
    found = placed(tmp_path, model + "        return list(inputs)")
    assert (found.stages, found.reasons[0].name, found.reasons[0].hook) == (
        "predictor",
        "yield",
        "preprocess",
    )


def test_stages_where_the_user_says(tmp_path: Path) -> None:
    assert placed(tmp_path, functions(""), stages="predictor").stages == "predictor"
    found = placed(tmp_path, TOKENIZES, stages="worker")
    assert (found.stages, len(found.reasons)) == ("worker", 1)
    assert found.warnings[0].endswith("as stages: worker says.")
    with pytest.raises(ContractError, match="asks for `model`"):
        placed(tmp_path, functions(TIED["the model"][0]), stages="worker")
    found = placed(tmp_path, TOKENIZES, predictor="worker", stages="predictor")
    assert (found.stages, found.reasons) == ("worker", ())
    assert "no effect with predictor: worker" in found.warnings[0]


def test_what_is_nested_too_deeply_stays_where_the_model_is(tmp_path: Path) -> None:
    text = functions("def preprocess(data): return " + "+".join(["data"] * 500))
    assert placed(tmp_path, text).stages == "predictor"


# What load does, and how preprocess comes at it: every pair is really run, with load and without.
BUILDS = {
    "assign": ("X = None", "global X\n    X = {'k': Box(1)}"),
    "new": ("", "global X\n    X = {'k': Box(1)}"),
    "item": ("X = {}", "X['k'] = Box(1)"),
    "update": ("X = {}", "X.update(k=Box(1))"),
    "helper": ("X = {}\ndef fill(target, value): target['k'] = value", "fill(X, Box(1))"),
    "alias": ("X = {}\nY = X", "Y['k'] = Box(1)"),
    "inner": ("X = {'k': Box(None)}", "X['k'].value = 1"),
    "local": ("X = {'k': Box(None)}", "box = X['k']\n    box.value = 1"),
    "method": ("X = {'k': Box(None)}", "X['k'].put(1)"),
    "loop": ("X = {'k': Box(None)}", "for box in X.values():\n        box.put(1)"),
    "comprehension": ("X = {'k': Box(None)}", "[box.put(1) for box in X.values()]"),
    "setattr": ("X = {'k': Box(None)}", "setattr(X['k'], 'value', 1)"),
    "bound": ("X = {'k': Box(None)}\nput = X['k'].put", "put(1)"),
    "class": ("X = {'k': Box(None)}", "Box.value = 1; del X['k'].value"),
    "exec": ("X = {}", "exec(\"X['k'] = Box(1)\")"),
    "globals": ("", "globals()['X'] = {'k': Box(1)}"),
    "nothing": ("X = {'k': Box(1)}", "return X['k'].value"),
    "its own": ("X = {'k': Box(1)}", "X = {}\n    X['k'] = Box(2)"),
}
READS = {
    "name": ("", "X['k'].value + 1"),
    "helper": ("def read(): return X['k'].value", "read() + 1"),
    "handed on": ("def read(x): return x['k'].value", "read(X) + 1"),
    "lambda": ("read = lambda: X['k'].value", "read() + 1"),
    "get": ("", "X.get('k').value + 1"),
    "sorted": ("", "sorted([2, 1], key=lambda n: n * X['k'].value)"),
    "unpacked": ("def read(k): return k.value", "read(**X) + 1"),
    "method": ("class Reader:\n    def read(self): return X['k'].get() + 1", "Reader().read()"),
    "kept": ("class Reader:\n    def __init__(self, x): self.x = x", "Reader(X).x['k'].value + 1"),
    "operator": ("class Reader:\n    def __add__(self, n): return X['k'].value + n", "Reader() + 1"),
    "generator": ("def read():\n    yield from X.values()", "next(read()).value + 1"),
    "decorated": (
        "def doubled(f):\n    def g(*a): return f(*a) * 2\n    return g\n@doubled\ndef read(): return X['k'].value",
        "read() + 1",
    ),
    "not at all": ("", "data"),
}
BOX = """
class Box:
    def __init__(self, value): self.value = value
    def put(self, value): self.value = value
    def get(self): return self.value
"""


def prepared(text: str, *, load: bool) -> Any:
    """What preprocess makes of 1; an exception where it fails."""
    names: dict[str, Any] = {}
    exec(compile(text, "generated", "exec"), names)
    try:
        if load:
            names["load"](None)
        return names["preprocess"](1)
    except (NameError, AttributeError, KeyError, TypeError, StopIteration) as error:
        return error


@pytest.mark.parametrize(("build", "read"), list(itertools.product(BUILDS, READS)))
def test_no_stage_runs_in_a_worker_that_would_do_something_else_there(
    build: str, read: str, tmp_path: Path
) -> None:
    (state, body), (helper, expression) = BUILDS[build], READS[read]
    text = "\n".join(
        (BOX, state, helper, f"def load(context):\n    {body}", f"def preprocess(data): return {expression}")
    )
    loaded, bare = prepared(text, load=True), prepared(text, load=False)
    assert not isinstance(loaded, Exception), text
    stages = placed(tmp_path, functions(text)).stages
    if loaded != bare:
        assert stages == "predictor", text
    if read == "not at all" and build not in ("exec", "globals"):
        assert stages == "worker", text
    if build in ("nothing", "its own"):
        assert stages == "worker", text
