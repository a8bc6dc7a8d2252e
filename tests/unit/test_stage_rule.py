"""Where the stages run: which of the five rules ties preprocess or postprocess to the process that has the model."""

from __future__ import annotations

import json
import textwrap
from pathlib import Path
from typing import Any

import pytest

from handlergen.errors import ContractError
from handlergen.inspection.project import open_project
from handlergen.inspection.stage_rule import Placement

STATEFUL = """
TOKENIZER = None
def init():
    global TOKENIZER
    TOKENIZER = dict
def clean(text): return TOKENIZER(text)
"""
FILES = {
    "lazy.py": "STATE = {}\ndef __getattr__(name): return STATE[name]\n",
    "helpers.py": "def clean(text): return text\n",
    "pack/__init__.py": "from .inner import init",
    **dict.fromkeys(("stateful.py", "lib/stateful.py", "pack/inner.py"), STATEFUL),
}


def placed(directory: Path, text: str, files: dict[str, str] | None = None, **settings: Any) -> Placement:
    """Where the stages of a module run; a predict is added to functions that have none."""
    text = textwrap.dedent(text)
    if not any(written in text for written in ("def predict", "nn.Module", "_fn(", "FLOW")):
        text += "\n\ndef predict(inputs):\n    return inputs\n"
    for name, content in {**FILES, "digits.py": text, **(files or {})}.items():
        path = directory / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(textwrap.dedent(content), encoding="utf-8")
    overrides = {"predictor": "process", **settings}
    return open_project(directory / "digits.py", overrides=overrides, environ={}).placement


# Modules that are plainly free.
FREE = {
    "a predict that changes a copy of its inputs": """
        def predict(inputs):
            inputs = [value * 2 for value in inputs]
            return inputs
        def postprocess(outputs, input_data): return outputs, input_data
    """,
    "constants, texts and patterns": """
        import re
        SIZE = 2 * 112
        NAMES = ["cat", "dog"]
        INDEX = {name: i for i, name in enumerate(NAMES)}
        PREFIX = "label: ".title() + "x" * 3
        WORD = re.compile(r"\\w+", re.I)
        def load(context):
            print(PREFIX.casefold(), WORD.fullmatch("a"), SIZE.bit_length(), max(NAMES))
            return {"size": SIZE, "names": sorted(NAMES), "count": len(INDEX), "first": NAMES[:1]}
        def preprocess(data): return WORD.findall(data), [SIZE, *NAMES]
        def postprocess(outputs): return PREFIX + NAMES[INDEX[outputs]]
    """,
    "a vocabulary and labels read at import": """
        import json
        from pathlib import Path
        HERE = Path(__file__).resolve().parent
        VOCABULARY = json.loads((HERE / "vocabulary.json").read_text())
        with open(HERE / "labels.txt", encoding="utf-8") as file:
            LABELS = file.read().splitlines()
        CONFIG = {**VOCABULARY.get("config", {}), "top": 5}
        def load(context): return len(VOCABULARY["words"]), CONFIG["top"], LABELS.index("a")
        def preprocess(data): return [VOCABULARY["words"].get(word, 0) for word in data.split()]
        def predict(inputs, model): return [0] * len(LABELS)
        def postprocess(outputs): return LABELS[outputs[0]], CONFIG["top"], HERE.name
    """,
    "transforms made at import": """
        import torch
        from torchvision import transforms
        MEAN = torch.tensor([0.5, 0.5])
        def to_rgb(image): return image.convert("RGB")
        PREPARE = transforms.Compose([transforms.Lambda(to_rgb), transforms.Lambda(lambda image: image - MEAN)])
        def load(context):
            network = torch.nn.Linear(2, 2).to(context.device)
            network.load_state_dict(torch.load(context.model_dir / "weights.pt"))
            network.mean = MEAN.to(context.device)
            PREPARE(torch.zeros(2))
            return network.eval()
        def preprocess(image): return PREPARE(image)
        def postprocess(outputs): return outputs.topk(3), MEAN.numel()
    """,
    "a tokenizer that setup makes": """
        from transformers import AutoModel, AutoTokenizer
        TOKENIZER = None
        LABELS = {}
        def setup(context):
            global TOKENIZER
            TOKENIZER = AutoTokenizer.from_pretrained(context.model_dir / "tokenizer")
            LABELS.update(context.config["labels"])
        def load(context):
            model = AutoModel.from_pretrained(context.model_dir / "model")
            model.config.pad_token_id = TOKENIZER.pad_token_id
            model.resize_token_embeddings(len(TOKENIZER))
            return model.to(context.device).eval()
        def preprocess(data): return TOKENIZER(data, return_tensors="pt")
        def predict(inputs, model): return model.generate(**inputs, pad_token_id=TOKENIZER.eos_token_id)
        def postprocess(outputs): return LABELS[int(outputs.argmax())], TOKENIZER.decode(outputs)
    """,
    "a network and a tokenizer of one's own": """
        import json, torch
        from torch import nn
        CONFIG = {"width": 64}
        LABELS = ["a", "b"]
        class Tokenizer:
            def __init__(self, path): self.words = json.loads(open(path).read())
            def encode(self, text): return [self.words.get(word, 0) for word in text.split()]
            def decode(self, ids): return " ".join(str(i) for i in ids)
        TOKENIZER = Tokenizer("vocabulary.json")
        class Encoder(nn.Module):
            def __init__(self, config):
                super().__init__()
                self.layer = nn.Linear(config["width"], 2)
            def forward(self, x): return self.layer(x)
        def label_of(index): return LABELS[index]
        def build(context): return Encoder(CONFIG).to(context.device)
        def load(context):
            torch.manual_seed(0)
            torch.set_num_threads(1)
            model = build(context)
            nn.init.trunc_normal_(model.layer.weight, std=0.02)
            model.load_state_dict(torch.load(context.model_dir / "weights.pt", map_location=context.device))
            return model.eval()
        def preprocess(data): return torch.tensor(TOKENIZER.encode(data)[: CONFIG["width"]])
        def predict(batch, model): return label_of(int(model(batch).argmax())), TOKENIZER.decode(batch)
        def postprocess(outputs): return label_of(outputs[0])
    """,
    "dataclasses and enumerations": """
        import enum
        from dataclasses import dataclass, field
        class Kind(enum.Enum):
            CAT = 1
            def label(self): return self.name.lower()
        @dataclass
        class Request:
            text: str
            words: list = field(default_factory=lambda: [])
            def split(self): self.words = self.text.split()
        def load(context): return Kind.CAT.label(), Request("warm up").split()
        def preprocess(data): return Request(data).split()
        def postprocess(outputs): return Kind(outputs).label()
    """,
    "output, warnings, files, threads and the CPU": """
        import logging, os, torch, warnings
        logger = logging.getLogger(__name__)
        DEVICE = torch.device("cuda" if torch.cuda.is_available() else "cpu")
        def load(context):
            logger.info("loading")
            warnings.filterwarnings("ignore")
            os.makedirs("cache", exist_ok=True)
            context.logger.info("loaded")
            context.store.save("loaded", True)
            return torch.nn.Linear(1, 1).to(DEVICE)
        def preprocess(data):
            from PIL import Image
            warnings.warn("hm")
            return Image.open(os.path.join(data)), torch.tensor(data).to("cpu", torch.float32)
    """,
    "a class with methods and constants": """
        class Base:
            words = ("a",)
            def preprocess(self, data): return self.words
        class Model(Base):
            def __init__(self, **kwargs): self.model = None
            def load(self): self.model = 1
            def preprocess(self, data): return self._clean(super().preprocess(data))
            def _clean(self, text): return self.upper(text) + self.words[0]
            @staticmethod
            def upper(text): return text.upper()
            def predict(self, inputs): return self.model
            def postprocess(self, outputs): return self.size
            @property
            def size(self): return len(self.first())
            @classmethod
            def first(cls): return cls.words[0]
    """,
}


@pytest.mark.parametrize("text", FREE.values(), ids=FREE)
def test_a_module_that_is_free(text: str, tmp_path: Path) -> None:
    found = placed(tmp_path, text)
    assert found.reasons == ()
    assert (found.predictor, found.stages) == ("process", "worker")


def test_the_starters_and_examples_are_free(tmp_path: Path) -> None:
    root = Path(__file__).parents[2]
    sources = [
        *root.glob("templates/starters/*/model.py"),
        root / "examples/digits/digits.py",
        root / "examples/iris/iris.py",
    ]
    for path in sources:
        settings = {"model_kwargs": {"hidden": 8}} if path.stem == "iris" else {}
        if path.parent.name != "flow":  # whose stages are always in the predictor process
            assert placed(tmp_path, path.read_text(encoding="utf-8"), **settings).reasons == (), path


def test_what_is_not_known_to_leave_a_value_alone_may_change_it(tmp_path: Path) -> None:
    """Here a person who follows the values sees that it does not."""
    text = "C = {'n': 1}\nclass Net:\n    def __init__(self, config): self.config = config\n"
    (reason,) = placed(tmp_path, f"{text}def load(c): return Net(C)\ndef preprocess(d): return C['n']").reasons
    assert (reason.rule, reason.name) == (3, "C")
    assert ", which load may change in line" in reason.what


# What load does to X, with what stands before it; preprocess returns X.
CHANGES = [
    ("", "global X; X = 1"),
    ("", "global X\n    for X in [1]: pass"),
    ("", "global X\n    with open('x') as X: pass"),
    ("", "global X\n    if (X := 3): pass"),
    ("", "global X\n    def X(text): return text"),
    ("", "def later():\n        global X\n        X = 1\n    later()"),
    ("X = {}", "X['a'] = 1"),
    ("X = {}", "X['a'] += 1"),
    ("X = {}", "del X['a']"),
    ("X = []", "X.append(1)"),
    ("X = []", "put = X.append; put(1)"),
    ("X = {}", "dict.update(X, a=1)"),
    ("X = {}", "mine = X\n    mine['a'] = 1"),
    ("X = {}\nS = X", "S['a'] = 1"),
    ("X = {}\nOUTER = {'x': X}", "OUTER['x']['a'] = 1"),
    ("X = {}\nALL = []\nALL.append(X)", "ALL[0]['a'] = 1"),
    ("X = {}\ndef fill(t): t.update(a=1)", "fill(X)"),
    ("X = {}\ndef f(t): t['x'] = 1\ng = f", "g(X)"),
    ("import functools\nX = {}\ndef f(t): t['x'] = 1\ng = functools.partial(f, X)", "g()"),
    ("import heapq\nX = []", "heapq.heappush(X, 1)"),
    ("import numpy as np\nX = np.zeros(3)", "y = np.add(1, 2, out=X)"),
    ("import torch\nX = torch.zeros(3)", "X.fill_(1)"),
    ("import torch\nX = torch.nn.Linear(1, 1)", "X.half()"),
    ("from somewhere import Reader\nX = Reader()", "X.open('x')"),
    ("class Reader:\n    def open(self): self.words = 1\nX = Reader()", "X.open()"),
    ("class X: a = None", "X.a = 1"),
    ("def X(): pass", "X.a = 1"),
    ("class X: a = None", "setattr(X, 'a', 1)"),
    ("X = {}", "for x in X.values(): x.put(1)"),
    ("X = {}", "(x := X)['a'] = 1"),
    ("X = 'a b'.split()", "X[0] = 1"),
    ("from pathlib import Path\nX = Path('x').read_text().splitlines()", "X[0] = 1"),
    ("def X(state={}): return state", "X()['a'] = 1"),
    ("X = {}", "get = lambda: X; get()['a'] = 1"),
    ("import threading\nX = {}\ndef work(): X['a'] = 1", "threading.Thread(target=work).start()"),
    ("X = {}\ndef a(): return X\ndef b(): return a()", "b()['x'] = 1"),
    ("X = {}\nclass R:\n    def get(self): return X", "R().get()['x'] = 1"),
    ("X = {}\nclass R:\n    def __enter__(self): return X", "with R() as x: x['x'] = 1"),
    ("X = {}\nclass R:\n    def __init__(self, x): self.x = x", "r = R(X)"),
    ("X = {}\ndef each(): yield X", "for x in each(): x['a'] = 1"),
    ("class X:\n    def __new__(cls): return cls.one", "X().tokens = 1"),
    ("from somewhere import single\n@single\nclass X: a = None", "X().a = 1"),
    ("import functools\n@functools.cache\ndef X(): return object()", "return X()"),
    ("def make():\n    s = {}\n    return s.update, s.get\nput, X = make()", "put(a=1)"),
    ("X = None\ndef get():\n    global X\n    X = X or 1\n    return X", "return get()"),
]


@pytest.mark.parametrize(("before", "body"), CHANGES)
def test_what_load_does_to_a_name(before: str, body: str, tmp_path: Path) -> None:
    text = f"{before}\ndef load(context):\n    {body}\ndef preprocess(data): return X\n"
    found = placed(tmp_path, text)
    assert found.stages == "predictor"
    assert (3, "X") in [(reason.rule, reason.name) for reason in found.reasons], found.reasons


# What preprocess does, with what stands before it; load assigns TOKENS.
READS_TOKENS = [
    ("def tokens(x): return TOKENS", "tokens(data)"),
    ("tokens = lambda x: TOKENS", "list(map(tokens, data))"),
    ("def t(x): return TOKENS\nT = {'t': t}", "T['t'](data)"),
    ("class X:\n    def __add__(self, n): return TOKENS", "X() + data"),
    ("from torchvision import transforms\nT = transforms.Lambda(lambda x: TOKENS[x])", "T(data)"),
    ("import json\nclass E(json.JSONEncoder):\n    def default(self, v): return TOKENS", "json.dumps(1, cls=E)"),
    ("def d(f): return lambda x: f(TOKENS[x])\n@d\ndef tokens(x): return x", "tokens(data)"),
]


@pytest.mark.parametrize(("before", "use"), READS_TOKENS)
def test_a_hook_is_followed_by_name(before: str, use: str, tmp_path: Path) -> None:
    text = "TOKENS = None\ndef load(context):\n    global TOKENS\n    TOKENS = {'a': 1}\n"
    found = placed(tmp_path, f"{text}{before}\ndef preprocess(data): return {use}\n")
    assert [(reason.rule, reason.name) for reason in found.reasons] == [(3, "TOKENS")]


PRE = "def preprocess(d): return d"
STATE = "def load(c): {}init()\ndef preprocess(d): return {}clean(d)"
CONFIG = "def load(context): context.config['x'] = 1\ndef preprocess(d, context): return context.config"
SETS = "import helpers\ndef load(c):\n    for n in 'ab': setattr(helpers, n, 1)"

# The rule, the name of a reason, and the source.
TIED: list[tuple[int, str, str]] = [
    (1, "model", "def load(context): return 1\ndef preprocess(data, model): return data"),
    (1, "device", "def preprocess(data, device): return data"),
    (1, "context.device", "def preprocess(d, context): return d.to(context.device)"),
    (1, ".cuda()", "def preprocess(data): return data.cuda()"),
    (1, "'cuda:0'", "import torch\ndef preprocess(d): return torch.zeros(1).to('cuda:0')"),
    (1, "torch.cuda.synchronize", "import torch\ndef preprocess(d): torch.cuda.synchronize()"),
    (1, "torch.device(...)", "import torch\ndef preprocess(d): return torch.device(d)"),
    (1, "'cuda'", "D = 'cuda'\ndef preprocess(data): return data.to(D)"),
    (1, "torch.nn.Linear(1, 1).cuda", f"import torch\nMODEL = torch.nn.Linear(1, 1).cuda()\n{PRE}"),
    (3, "context.config", CONFIG),
    (3, "TOKENIZER", f"from stateful import *\n{STATE.format('', '')}"),
    (3, "TOKENIZER", f"import lib.stateful as s\n{STATE.format('s.', 's.')}"),
    (3, "TOKENIZER", f"from pack import init\nimport pack.inner\n{STATE.format('', 'pack.inner.')}"),
    (3, "clean", "import helpers\ndef load(c): helpers.clean = 1\ndef preprocess(d): return helpers.clean"),
    (3, "X", "X = {}\ndef predict(i): X[1] = i\ndef postprocess(o): return X[1]"),
    (3, "X", "X = []\ndef preprocess(d): X.append(d)\ndef predict(i): return X[-1]"),
    (3, "STATE", "import lazy\ndef load(c): lazy.STATE[1] = 1\ndef preprocess(d): return lazy.x"),
    (4, "numpy", "def load(c):\n    global X\n    import numpy as X\ndef preprocess(d): return X"),
    (5, "globals()", "def preprocess(data): return globals()['x']"),
    (5, "eval()", "def preprocess(data): return eval('x')"),
    (5, "globals()", f"def load(c): globals().update(a=1)\n{PRE}"),
    (5, "setattr with a computed name", f"{SETS}\n{PRE}"),
    (5, "sys.modules", f"import sys\ndef load(c): sys.modules[1].X = 1\n{PRE}"),
    (5, "builtins.X", f"import builtins\ndef load(c): builtins.X = 1\n{PRE}"),
    (5, "__globals__", f"def load(c): load.__globals__['X'] = 1\n{PRE}"),
    (5, "helpers, handed on as a whole", "import helpers\ndef preprocess(d): return vars(helpers)"),
]

CLASS = "import functools\nclass Model:\n    words = None\n    {}\n    def preprocess(self, data): return {}\n"
CLASS += "    def predict(self, inputs): return inputs\n"
NET = """
from torch import nn
class Net(nn.Module):
    labels = ["a"]
    def __init__(self):
        super().__init__()
        self.layer, self.width = nn.Linear(1, 2), 4
    {}
    def forward(self, batch): return self.layer(batch)
    def preprocess(self, x): return {}
    def postprocess(self, output): return output
"""
# The class, one more of its methods, what preprocess returns, and the name of the reason.
OBJECTS = [
    (CLASS, "def __init__(self): self.labels = []", "self.labels", "self.labels"),
    (CLASS, "def load(self): self.words = 1", "self.words", "self.words"),
    (CLASS, "def load(self): type(self).words = 1", "self.words", "self.words"),
    (CLASS, "def load(self): Model.words = 1", "self.words[0]", "self.words"),
    (CLASS, "def load(self): self.words['x'] = 1", "self.words['x']", "self.words"),
    (CLASS, "def load(self): self.words.append(1)", "self.words[-1]", "self.words"),
    (CLASS, "def helper(self): return self.model", "self.helper()", "self.model"),
    (CLASS, "", "getattr(self, 'x')", "self"),
    (CLASS, "", "vars(self)", "self"),
    (CLASS, "@functools.cached_property\n    def tokens(self): return 1", "self.tokens", "self.tokens"),
    (CLASS, "", "super().clean(data)", "self.clean"),
    (CLASS, "", "somewhere(self, data)", "self"),
    (NET, "", "x * self.layer.weight", "self.layer"),
    (NET, "", "x * self.width", "self.width"),
    (NET, "", "self(x)", "self"),
    (NET, "", "self.forward(x)", "self.layer"),
    (NET, "", "next(self.parameters()).device", "self.parameters"),
    (NET, "", "x if self.training else None", "self.training"),
    (NET, "def set_extra_state(self, state): self.labels = state", "self.labels", "self.labels"),
]
INPUT_DATA = "def predict(inputs): {}\ndef postprocess(outputs, input_data): return input_data"
TIED += [
    (3, "input_data", INPUT_DATA.format(text)) for text in ("inputs[0] = 1", "inputs.update(x=1)", "inputs.mul_(2)")
]
TIED += [(2, name, text.format(method, use)) for text, method, use, name in OBJECTS]

# What load calls for its effect, what preprocess does, and the name of the reason; None: preprocess stays free.
EFFECTS: list[tuple[str, str, str | None]] = [
    ("locale.setlocale(locale.LC_ALL, 'de_DE')", "locale.str(data)", "locale.setlocale"),
    ("locale.setlocale(locale.LC_ALL, 'de_DE')", "time.strftime('%A')", "locale.setlocale"),
    ("np.seterr(all='raise')", "np.log(data)", "numpy.seterr"),
    ("old = np.seterr(all='raise')", "np.log(data)", "numpy.seterr"),
    ("np.set_printoptions(precision=2)", "pd.Series(data)", "numpy.set_printoptions"),
    ("pd.set_option('display.precision', 2)", "pd.Series(data).to_string()", "pandas.set_option"),
    ("pd.options.display.precision = 2", "pd.Series(data).to_string()", "pandas.options.display.precision"),
    ("decimal.getcontext().prec = 4", "decimal.Decimal(data) / 3", "decimal.getcontext.prec"),
    ("decimal.getcontext().prec = 4", "RATE * data", "decimal.getcontext.prec"),
    ("torch.manual_seed(0)", "torch.rand(1)", "torch.manual_seed"),
    ("_ = torch.manual_seed(0)", "torch.rand(1)", "torch.manual_seed"),
    ("torch.manual_seed(0)", "CROP(data)", "torch.manual_seed"),
    ("random.seed(0)", "random.random()", "random.seed"),
    ("np.random.seed(0)", "np.random.rand()", "numpy.random.seed"),
    ("transformers.set_seed(0)", "random.random()", "transformers.set_seed"),
    ("pillow_heif.register_heif_opener()", "Image.open(data)", "pillow_heif.register_heif_opener"),
    ("somewhere.register_reader()", "Image.open(data)", "somewhere.register_reader"),
    ("Image.MAX_IMAGE_PIXELS = None", "Image.open(data)", "PIL.Image.MAX_IMAGE_PIXELS"),
    ("nltk.data.path.append('here')", "nltk.word_tokenize(data)", "nltk.data.path.append"),
    ("mimetypes.add_type('image/x-scan', '.scan')", "mimetypes.guess_type(data)", "mimetypes.add_type"),
    ("sys.setrecursionlimit(4321)", "sys.getrecursionlimit()", "sys.setrecursionlimit"),
    ("os.environ['SCALE'] = '2'", "os.getenv('SCALE')", "os.environ"),
    ("os.chdir('x')", "open(data).read()", "os.chdir"),
    ("os.chdir('x')", "Path(data).read_text()", "os.chdir"),
    ("torch.set_default_dtype(torch.float64)", "torch.tensor(data)", "torch.set_default_dtype"),
    ("prepare()", "nltk.word_tokenize(data)", "nltk.download"),
    ("draws = np.random; draws.seed(0)", "np.random.rand()", "numpy.random.seed"),
    ("DRAWS.seed(0)", "np.random.rand()", "numpy.random.seed"),
    ("[seed(0) for seed in (random.seed,)]", "random.random()", "random.seed"),
    ("return torch.manual_seed(0)", "torch.rand(1)", "torch.manual_seed"),
    ("import pillow_avif", "Image.open(data)", "pillow_avif"),
    ("torch.manual_seed(0)", "torch.tensor(data)", None),
    ("torch.manual_seed(0)", "np.asarray(data)", None),
    ("np.random.seed(0)", "np.asarray(data)", None),
    ("torch.set_num_threads(1)", "torch.rand(1)", None),
    ("torch.backends.cudnn.benchmark = True", "torch.tensor(data)", None),
    ("os.environ['SCALE'] = '2'", "os.path.join(data)", None),
    ("os.chdir('x')", "data", None),
    ("locale.setlocale(locale.LC_ALL, 'de_DE')", "data + 1", None),
    ("pillow_heif.register_heif_opener()", "np.asarray(data)", None),
    ("model = torch.nn.Linear(1, 1); model.eval(); model.to(context.device)", "torch.rand(1)", None),
    ("model = torch.hub.load('x', 'y')", "torch.rand(1)", None),
]
IMPORTS = """
import decimal, locale, mimetypes, os, random, sys, time
from pathlib import Path
import nltk, pillow_heif, somewhere, torch, transformers
import numpy as np
import pandas as pd
from PIL import Image
from torchvision import transforms
RATE = decimal.Decimal("0.1")
CROP = transforms.RandomCrop(8)
DRAWS = np.random
def prepare(): nltk.download("punkt")
"""


@pytest.mark.parametrize(("rule", "name", "text"), TIED)
def test_a_module_that_is_tied(rule: int, name: str, text: str, tmp_path: Path) -> None:
    found = placed(tmp_path, text)
    assert (found.predictor, found.stages) == ("process", "predictor")
    assert (rule, name) in [(reason.rule, reason.name) for reason in found.reasons], found.reasons
    for reason in found.reasons:
        assert reason.line, reason
        assert reason.fix
        assert not reason.what.endswith(".")


@pytest.mark.parametrize(("effect", "use", "name"), EFFECTS)
def test_what_load_sets_in_a_library(effect: str, use: str, name: str | None, tmp_path: Path) -> None:
    found = placed(tmp_path, f"{IMPORTS}\ndef load(context): {effect}\ndef preprocess(data): return {use}\n")
    expected = [] if name is None else [(4, name)]
    assert [(reason.rule, reason.name) for reason in found.reasons] == expected
    every = placed(tmp_path, f"{IMPORTS}\ndef setup(context): {effect}\ndef preprocess(data): return {use}\n")
    assert every.reasons == () or "device" in effect


def test_the_toolkits_functions(tmp_path: Path) -> None:
    text = (
        "def model_fn(model_dir):\n    global LABELS\n    LABELS = ['a']\n"
        "def input_fn(data, content_type): return data\ndef output_fn(prediction, accept): return {}\n"
    )
    assert placed(tmp_path, text.format("prediction")).stages == "worker"
    (reason,) = placed(tmp_path, text.format("LABELS[0]")).reasons
    assert (reason.rule, reason.hook, reason.name, reason.line) == (3, "output_fn", "LABELS", 5)
    assert "which model_fn assigns in line 3" in reason.what
    assert "pre_model_fn(model_dir)" in reason.fix


def test_a_packed_file_is_read_too(tmp_path: Path) -> None:
    (tmp_path / "common").mkdir()
    (tmp_path / "common" / "packed.py").write_text(STATEFUL, encoding="utf-8")
    text = "import packed\ndef load(c): packed.init()\ndef preprocess(d): return packed.clean(d)\n"
    found = placed(tmp_path / "project", text, packages=["../common/packed.py"])
    assert [reason.name for reason in found.reasons] == ["TOKENIZER"]


def test_a_file_that_only_load_imports_and_that_sets_something(tmp_path: Path) -> None:
    files = {"state.py": "TOKENS = None\n", "other.py": "import state\nNAME = 1\nstate.TOKENS = 1\n"}
    for statement in ("import other", "from other import NAME"):
        text = f"import state\ndef load(c):\n    {statement}\ndef preprocess(d): return state.TOKENS\n"
        assert [reason.name for reason in placed(tmp_path, text, files).reasons] == ["TOKENS"]
        assert placed(tmp_path, f"{statement}\n{text}", files).reasons == ()


def test_a_flow_has_a_predictor_process_only_when_asked_for_and_only_as_a_whole(tmp_path: Path) -> None:
    flow = "def double(x): return x * 2\nFLOW = [('python', double)]\n"
    found = placed(tmp_path, flow, predictor="auto")
    assert (found.predictor, found.stages) == ("worker", "worker")
    assert "several models" in found.why
    assert placed(tmp_path, flow, predictor="process").stages == "predictor"
    with pytest.raises(ContractError, match="stages: worker is not for the form flow"):
        placed(tmp_path, flow, predictor="process", stages="worker")


TOKENIZES = """
def load(context): init()
def init():
    global TOKENIZER
    TOKENIZER = 1
def preprocess(data): return tokenize(data)
def tokenize(text): return TOKENIZER
"""


def test_a_reason_says_which_rule_where_through_what_and_how_to_free_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    found = placed(tmp_path, TOKENIZES)
    (reason,) = found.reasons
    assert (reason.rule, reason.hook, reason.line) == (3, "preprocess", 7)
    assert str(reason) == (
        "digits.py:7: rule 3: preprocess uses TOKENIZER (through tokenize), which load assigns in line 5 (through "
        "init). Make TOKENIZER in setup(context), which every worker runs, or where the module is imported."
    )
    (shown,) = json.loads(json.dumps(found.as_json()))["reasons"]
    assert (shown["rule"], shown["name"], shown["line"]) == (3, "TOKENIZER", 7)


def test_auto_is_a_process_where_there_is_a_model_to_share(tmp_path: Path) -> None:
    loads = "def load(context): return 1"
    assert placed(tmp_path, loads, predictor="auto").predictor == "process"
    assert placed(tmp_path, "", predictor="auto").predictor == "worker"
    assert placed(tmp_path, "", predictor="process").predictor == "process"
    assert placed(tmp_path, loads, predictor="worker").predictor == "worker"


def test_a_preprocess_that_yields_stays_with_the_model(tmp_path: Path) -> None:
    text = CLASS.format("", "data").replace("return data", "yield data").replace("return inputs", "return [*inputs]")
    (reason,) = placed(tmp_path, text).reasons
    assert (reason.rule, reason.hook, reason.name) == (5, "preprocess", "yield")


def test_stages_where_the_user_says(tmp_path: Path) -> None:
    assert placed(tmp_path, "", stages="predictor").stages == "predictor"
    found = placed(tmp_path, TOKENIZES, stages="worker")
    assert (found.stages, len(found.reasons)) == ("worker", 1)
    assert found.warnings[0].endswith("as stages: worker says.")
    with pytest.raises(ContractError, match="asks for `model`"):
        placed(tmp_path, TIED[0][2], stages="worker")
    found = placed(tmp_path, TOKENIZES, predictor="worker", stages="predictor")
    assert (found.stages, found.reasons) == ("worker", ())
    assert "no effect with predictor: worker" in found.warnings[0]
