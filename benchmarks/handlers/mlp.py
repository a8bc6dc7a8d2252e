"""A network whose predict gains from batches: `config["layers"]` layers of 2048 x 2048 (16.8 MB each).

The answer follows from the request, whatever the batch: rounding differs between batch sizes.
"""

import torch
from torch import nn

WIDTH = 2048


def load(context):
    torch.manual_seed(0)
    layers = []
    for _ in range(context.config["layers"]):
        layers += [nn.Linear(WIDTH, WIDTH, bias=False), nn.ReLU()]
    return nn.Sequential(*layers).eval().to(context.device)


def preprocess(data):
    number = data["number"]
    return {"x": torch.full((WIDTH,), number / 64), "number": torch.tensor(number)}


def predict(inputs, model):
    return {"y": model(inputs["x"]).sum(-1), "number": inputs["number"]}


def postprocess(outputs):
    assert outputs["y"].isfinite()
    return {"answer": 2 * int(outputs["number"]) + 1}
