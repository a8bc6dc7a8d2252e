"""Train the models of both flows on scikit-learn's breast cancer data: no download, a few seconds.

Writes `scaler.joblib`, `encoder.pt2` and `head.json` (cancer.py), `regression.joblib` (linear.py), and
`held-out.jsonl`: measurements that no model has seen, each with its true diagnosis.

    python examples/cancer/train.py
"""

from __future__ import annotations

import json
from pathlib import Path

import joblib
import numpy as np
import torch
from sklearn.datasets import load_breast_cancer
from sklearn.linear_model import LogisticRegression
from sklearn.model_selection import train_test_split
from sklearn.preprocessing import StandardScaler
from torch import nn
from xgboost import XGBClassifier

HERE = Path(__file__).resolve().parent
EPOCHS = 60
CODES = 8


def train_encoder(x: torch.Tensor) -> nn.Module:
    """The encoder of an autoencoder: (N, 30) standardised measurements to (N, 8) codes."""
    encoder = nn.Sequential(nn.Linear(x.shape[1], 16), nn.Tanh(), nn.Linear(16, CODES), nn.Tanh())
    decoder = nn.Sequential(nn.Linear(CODES, 16), nn.Tanh(), nn.Linear(16, x.shape[1]))
    optimizer = torch.optim.Adam([*encoder.parameters(), *decoder.parameters()], lr=1e-2)
    for _ in range(EPOCHS):
        for chosen in torch.randperm(len(x)).split(32):
            optimizer.zero_grad()
            nn.functional.mse_loss(decoder(encoder(x[chosen])), x[chosen]).backward()
            optimizer.step()
    return encoder.eval()


def main() -> None:
    torch.manual_seed(0)
    torch.set_num_threads(1)
    data = load_breast_cancer()
    x, held_x, y, held_y = train_test_split(data.data, data.target, test_size=0.2, random_state=0, stratify=data.target)
    scaler = StandardScaler().fit(x)
    scaled, held = (scaler.transform(rows).astype(np.float32) for rows in (x, held_x))
    encoder = train_encoder(torch.from_numpy(scaled))
    with torch.no_grad():
        codes, held_codes = (encoder(torch.from_numpy(rows)).numpy() for rows in (scaled, held))
    head = XGBClassifier(n_estimators=60, max_depth=3, learning_rate=0.2, n_jobs=1, random_state=0).fit(codes, y)
    regression = LogisticRegression(max_iter=1000).fit(scaled, y)

    joblib.dump(scaler, HERE / "scaler.joblib")
    batch = {0: torch.export.Dim("batch")}
    program = torch.export.export(encoder, (torch.from_numpy(scaled[:2]),), dynamic_shapes=(batch,))
    torch.export.save(program, HERE / "encoder.pt2")
    head.save_model(HERE / "head.json")
    joblib.dump(regression, HERE / "regression.joblib")
    names = [str(name) for name in data.target_names]
    rows = [{"data": row.tolist(), "diagnosis": names[label]} for row, label in zip(held_x, held_y, strict=True)]
    (HERE / "held-out.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    print(f"encoder and XGBoost: right on {head.score(held_codes, held_y):.1%} of {len(held_y)} held-out tumours")
    print(f"logistic regression: right on {regression.score(held, held_y):.1%}")


if __name__ == "__main__":
    main()
