"""Ordinary modules whose preprocess and postprocess must be found free: no false alarms."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.placing import functions, placed

ORDINARY = {
    "constants, texts and patterns": """
        import re
        SIZE = 2 * 112
        NAMES = ["cat", "dog"]
        INDEX = {name: i for i, name in enumerate(NAMES)}
        PREFIX = "label: ".title() + "x" * 3
        WORD = re.compile(r"\\w+", re.I)
        MEANS = (0.485, 0.456, 0.406)
        WHITE = [255] * 3
        def load(context):
            print(PREFIX.casefold(), WORD.fullmatch("a"), SIZE.bit_length(), max(MEANS), WHITE[0] + SIZE)
            size = SIZE
            size += 1
            return {"size": size, "names": sorted(NAMES), "count": len(INDEX), "first": WHITE[:1]}
        def preprocess(data): return WORD.findall(data), [SIZE, *MEANS], WHITE
        def postprocess(outputs): return PREFIX + NAMES[INDEX[outputs]]
    """,
    "a vocabulary read at import": """
        import json
        from pathlib import Path
        HERE = Path(__file__).resolve().parent
        VOCABULARY = json.loads((HERE / "vocabulary.json").read_text())
        with open(HERE / "labels.txt", encoding="utf-8") as file:
            LABELS = file.read().splitlines()
        STOP = frozenset(LABELS[:3])
        CONFIG = {**VOCABULARY.get("config", {}), "top": 5}
        def load(context):
            weights = HERE / "weights.bin"
            with (HERE / "more.json").open() as more:
                found = json.load(more)
            found["labels"] = list(LABELS)
            return found, weights.stat(), len(VOCABULARY["words"]), CONFIG["top"], LABELS.index("a")
        def preprocess(data): return [VOCABULARY["words"].get(word, 0) for word in data.split() if word not in STOP]
        def predict(inputs, model):
            scores = [0] * len(LABELS)
            scores[0] = model
            return scores
        def postprocess(outputs): return LABELS[outputs[0]], CONFIG["top"], HERE.name
    """,
    "transforms made at import": """
        import torch
        from torchvision import transforms
        MEAN = torch.tensor([0.5, 0.5])
        def to_rgb(image): return image.convert("RGB")
        PREPARE = transforms.Compose([
            transforms.Lambda(to_rgb),
            transforms.Resize(256),
            transforms.Lambda(lambda image: image - MEAN),
        ])
        def load(context):
            network = torch.nn.Linear(2, 2).to(context.device)
            network.load_state_dict(torch.load(context.model_dir / "weights.pt"))
            network.mean = MEAN.to(context.device)
            PREPARE(torch.zeros(2))
            return network.eval()
        def preprocess(image): return PREPARE(image)
        def predict(batch, model):
            with torch.inference_mode():
                return model(batch).softmax(dim=1)
        def postprocess(outputs): return outputs.topk(3), MEAN.numel()
    """,
    "a tokenizer that setup makes": """
        from transformers import AutoModel, AutoTokenizer
        TOKENIZER = None
        LABELS = {}
        def setup(context):
            global TOKENIZER
            TOKENIZER = AutoTokenizer.from_pretrained(context.model_dir / "tokenizer")
            TOKENIZER.add_special_tokens({"pad_token": "[PAD]"})
            LABELS.update(context.config["labels"])
        def load(context):
            model = AutoModel.from_pretrained(context.model_dir / "model")
            model.config.pad_token_id = TOKENIZER.pad_token_id
            model.resize_token_embeddings(len(TOKENIZER))
            return model.to(context.device).eval()
        def preprocess(data): return TOKENIZER(data, return_tensors="pt")
        def postprocess(outputs): return LABELS[int(outputs.argmax())], TOKENIZER.decode(outputs)
    """,
    "dataclasses, enumerations and errors": """
        import enum
        from dataclasses import dataclass, field
        class Kind(enum.Enum):
            CAT = 1
            DOG = 2
            def label(self): return self.name.lower()
        class Refused(ValueError):
            def __init__(self, code):
                super().__init__(code)
                self.code = code
        @dataclass
        class Request:
            text: str
            words: list = field(default_factory=lambda: [])
            order = lambda self, word: word
            def split(self):
                self.words = self.text.split()
                return sorted(self.words, key=self.order)
        def load(context): return Kind.CAT.label(), Request("warm up").split()
        def preprocess(data):
            if not data:
                raise Refused(400)
            return Request(data).split()
        def postprocess(outputs): return Kind(outputs).label()
    """,
    "numbers and arrays that load calculates with": """
        import json
        import numpy as np
        MEAN = np.array([0.5, 0.5])
        CONFIG = json.load(open("config.json"))
        def load(context):
            classes = CONFIG["classes"]
            classes += 1
            mean = MEAN.astype("float32") / MEAN.sum()
            mean /= 255
            return np.zeros((classes, 2)) - mean
        def preprocess(data): return (data - MEAN) * CONFIG["scale"]
    """,
    "a network of one's own": """
        import math
        import torch
        from torch import nn
        import torch.nn.functional as F
        LABELS = ["a", "b"]
        class Attention(nn.Module):
            def __init__(self, width, heads):
                super().__init__()
                self.heads, self.scale = heads, 1 / math.sqrt(width // heads)
                self.qkv, self.out = nn.Linear(width, 3 * width), nn.Linear(width, width)
                self.drop = nn.Dropout(0.1)
            def forward(self, x, mask=None):
                batch, length, width = x.shape
                q, k, v = self.qkv(x).chunk(3, dim=-1)
                q, k, v = (part.view(batch, length, self.heads, -1).transpose(1, 2) for part in (q, k, v))
                scores = q @ k.transpose(-2, -1) * self.scale
                if mask is not None:
                    scores = scores.masked_fill(mask == 0, float("-inf"))
                return self.out(self.drop(F.softmax(scores, dim=-1)) @ v)
        class Block(nn.Module):
            def __init__(self, width, heads):
                super().__init__()
                self.first, self.second = nn.LayerNorm(width), nn.LayerNorm(width)
                self.attention = Attention(width, heads)
                self.mlp = nn.Sequential(nn.Linear(width, 4 * width), nn.GELU(), nn.Linear(4 * width, width))
            def forward(self, x, mask=None):
                x = x + self.attention(self.first(x), mask)
                return x + self.mlp(self.second(x))
        class Encoder(nn.Module):
            def __init__(self, config):
                super().__init__()
                self.embed = nn.Embedding(config["words"], config["width"])
                self.position = nn.Parameter(torch.zeros(1, 512, config["width"]))
                self.blocks = nn.ModuleList([Block(config["width"], config["heads"]) for _ in range(config["depth"])])
                self.head = nn.Linear(config["width"], len(LABELS))
                self.apply(self._init)
            def _init(self, module):
                if isinstance(module, nn.Linear):
                    nn.init.trunc_normal_(module.weight, std=0.02)
                    if module.bias is not None:
                        nn.init.zeros_(module.bias)
            def forward(self, tokens, mask=None):
                x = self.embed(tokens) + self.position[:, : tokens.shape[1]]
                for block in self.blocks:
                    x = block(x, mask)
                return self.head(x.mean(dim=1))
        CONFIG = {"words": 1000, "width": 64, "heads": 4, "depth": 2}
        WORDS = {word: i for i, word in enumerate("a b c".split())}
        def load(context):
            model = Encoder(CONFIG)
            model.load_state_dict(torch.load(context.model_dir / "weights.pt", map_location="cpu"))
            return model.to(context.device).eval()
        def preprocess(data):
            return torch.tensor([WORDS.get(word, 0) for word in data.split()][: CONFIG["width"]])
        @torch.inference_mode()
        def predict(batch, model):
            return model(batch).softmax(dim=-1)
        def postprocess(outputs):
            best = outputs.argmax()
            return {"label": LABELS[int(best)], "score": float(outputs[best])}
    """,
    "a helper in load and in preprocess": """
        import csv
        from pathlib import Path
        def rows(path):
            with open(path) as file:
                found = [row for row in csv.reader(file)]
            found.append(["end"])
            return found
        def load(context):
            table = rows(context.model_dir / "table.csv")
            table[0] = None
            return table
        def preprocess(data): return rows(data)
    """,
}


@pytest.mark.parametrize("text", ORDINARY.values(), ids=ORDINARY)
def test_an_ordinary_module_is_free(text: str, tmp_path: Path) -> None:
    found = placed(tmp_path, functions(text))
    assert found.reasons == ()
    assert (found.predictor, found.stages) == ("process", "worker")


TRANSFORMER = """
    import math
    import torch
    from torch import nn
    class Attention(nn.Module):
        def __init__(self, dim, heads):
            super().__init__()
            self.heads = heads
            self.qkv = nn.Linear(dim, 3 * dim)
            self.out = nn.Linear(dim, dim)
        def split(self, x):
            b, t, d = x.shape
            return x.view(b, t, self.heads, d // self.heads).transpose(1, 2)
        def forward(self, x, mask=None):
            q, k, v = self.qkv(x).chunk(3, dim=-1)
            q, k, v = self.split(q), self.split(k), self.split(v)
            score = q @ k.transpose(-2, -1) / math.sqrt(q.size(-1))
            if mask is not None:
                score = score.masked_fill(mask == 0, float("-inf"))
            x = score.softmax(-1) @ v
            b, h, t, d = x.shape
            return self.out(x.transpose(1, 2).reshape(b, t, h * d))
    class Feed(nn.Module):
        def __init__(self, dim):
            super().__init__()
            self.net = nn.Sequential(nn.Linear(dim, 4 * dim), nn.GELU(), nn.Linear(4 * dim, dim))
        def forward(self, x):
            return self.net(x)
    class Block(nn.Module):
        def __init__(self, dim, heads):
            super().__init__()
            self.a, self.f = Attention(dim, heads), Feed(dim)
            self.n1, self.n2 = nn.LayerNorm(dim), nn.LayerNorm(dim)
        def forward(self, x, mask=None):
            x = x + self.a(self.n1(x), mask)
            return x + self.f(self.n2(x))
    class GPT(nn.Module):
        def __init__(self, vocab=256, dim=64, depth=4, heads=4, length=128):
            super().__init__()
            self.tok = nn.Embedding(vocab, dim)
            self.pos = nn.Embedding(length, dim)
            self.blocks = nn.ModuleList([Block(dim, heads) for _ in range(depth)])
            self.norm = nn.LayerNorm(dim)
            self.head = nn.Linear(dim, vocab)
        def forward(self, ids):
            t = ids.size(1)
            x = self.tok(ids) + self.pos(torch.arange(t, device=ids.device))
            mask = torch.tril(torch.ones(t, t, device=ids.device))
            for block in self.blocks:
                x = block(x, mask)
            return self.head(self.norm(x))
    def load(context):
        torch.manual_seed(0)
        return GPT().to(context.device).eval()
    def preprocess(data):
        return torch.tensor(list(data["text"].encode()))
    def predict(inputs, model):
        return model(inputs[None])[0, -1].softmax(-1)
    def postprocess(outputs):
        return {"next": chr(int(outputs.argmax()))}
"""


def test_a_transformer_takes_little_effort(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What its layers return are tensors: they hold none of the objects that made them, through which to search."""
    monkeypatch.setattr("handlergen.placement.program._MOST_EFFORT", 2_000)
    found = placed(tmp_path, TRANSFORMER)
    assert found.reasons == ()
    assert found.stages == "worker"


def test_a_source_with_no_end_of_calls_stays_where_the_model_is(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("handlergen.placement.program._MOST_EFFORT", 3)
    text = "def a(x): return b(x)\ndef b(x): return c(x)\ndef c(x): return a(x)\ndef preprocess(d): return a(d)\n"
    (reason,) = placed(tmp_path, functions(text)).reasons
    assert reason.line
    assert "more calls than can be followed" in reason.what
    assert "stages: worker" in reason.fix


def test_functions_that_call_each_other_with_more_and_more_are_read_to_the_end(tmp_path: Path) -> None:
    text = """
        STATE = {}
        def even(found, n): return odd([found], n - 1) if n else found
        def odd(found, n): return even({"x": found}, n - 1) if n else found
        def load(context): return even(STATE, 9)
        def preprocess(data): return odd(data, 4)
        def postprocess(outputs): return even(STATE, 2)
    """
    assert placed(tmp_path, functions(text)).reasons == ()
