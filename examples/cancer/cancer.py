"""Thirty measurements of a tumour's cells in; whether it is benign, and how likely, out.

Three models, one after the other: scikit-learn's scaler, a torch encoder and an XGBoost classifier. Each holds the
device by itself; `measurements` and `diagnosis` run beside the predictions of other requests.
"""

from __future__ import annotations

from typing import Any

import numpy as np

MEASUREMENTS = 30


def measurements(data: Any) -> np.ndarray:
    """A request's list of numbers to a (1, 30) matrix."""
    row = np.asarray(data, dtype=np.float64)
    if row.shape != (MEASUREMENTS,):
        raise ValueError(f"send a list of {MEASUREMENTS} numbers")  # the client gets a 400
    return row[None]


def diagnosis(result: np.ndarray) -> dict[str, Any]:
    """(1, 2) probabilities of malignant and benign to an answer."""
    benign = float(result[0, 1])
    return {"diagnosis": "benign" if benign >= 0.5 else "malignant", "benign": round(benign, 4)}


FLOW = [
    ("sklearn_preprocessor", "scaler.joblib", {"pre": measurements}),
    ("torch", "encoder.pt2"),
    ("xgboost_classifier", "head.json", {"post": diagnosis}),
]
