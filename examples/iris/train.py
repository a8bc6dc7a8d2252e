"""Train the network on scikit-learn's irises: no download, a second.

Writes `iris.pt` (a state dict) and `held-out.jsonl`: irises that the network has not seen, with their true species.

    python examples/iris/train.py
"""

from __future__ import annotations

import json
from pathlib import Path

import torch
from iris import FEATURES, SPECIES, Iris
from sklearn.datasets import load_iris
from sklearn.model_selection import train_test_split
from torch import nn

HERE = Path(__file__).resolve().parent
EPOCHS = 200


def main() -> None:
    torch.manual_seed(0)
    torch.set_num_threads(1)
    data = load_iris()
    x, held_x, y, held_y = (
        torch.from_numpy(part)
        for part in train_test_split(
            data.data.astype("float32"), data.target, test_size=0.2, random_state=0, stratify=data.target
        )
    )
    model = Iris(hidden=16)
    model.mean.copy_(x.mean(dim=0))
    model.deviation.copy_(x.std(dim=0))
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-2, weight_decay=1e-3)
    for _ in range(EPOCHS):
        optimizer.zero_grad()
        nn.functional.nll_loss(model(x).log(), y).backward()
        optimizer.step()
    torch.save(model.state_dict(), HERE / "iris.pt")
    with (HERE / "held-out.jsonl").open("w", encoding="utf-8") as file:
        for row, label in zip(held_x.double(), held_y, strict=True):
            numbers = [round(value, 1) for value in row.tolist()]
            entry = {"data": dict(zip(FEATURES, numbers, strict=True)), "species": SPECIES[int(label)]}
            file.write(json.dumps(entry) + "\n")
    right = int((model.eval()(held_x).argmax(dim=1) == held_y).sum())
    print(f"right on {right} of {len(held_y)} held-out irises ({right / len(held_y):.1%})")


if __name__ == "__main__":
    main()
