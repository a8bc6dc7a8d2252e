"""The same question answered by two models of scikit-learn: a scaler and a logistic regression."""

from __future__ import annotations

from cancer import diagnosis, measurements

FLOW = [
    ("sklearn_preprocessor", "scaler.joblib", {"pre": measurements}),
    ("sklearn_classifier", "regression.joblib", {"post": diagnosis}),
]
