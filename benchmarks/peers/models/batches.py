"""A network whose predict gains from batches: 6 layers of 2048 x 2048 (100 MB), read from memory once a predict.

Without biases its output is proportional to its input, so the answer shows that the right row was computed.
"""

import torch
from recording import loaded, predicting
from torch import nn

WIDTH = 2048


class Network(nn.Module):
    def __init__(self):
        super().__init__()
        layers = []
        for _ in range(6):
            layers += [nn.Linear(WIDTH, WIDTH, bias=False), nn.ReLU()]
        self.layers = nn.Sequential(*layers)

    def forward(self, rows):
        return self.layers(rows).sum(-1)


def load():
    loaded()
    torch.manual_seed(0)
    model = Network().eval()
    with torch.inference_mode():
        model.register_buffer("unit", model(torch.ones(WIDTH)))
    return model


def preprocess(data):
    return torch.full((WIDTH,), float(data["number"]))


def predict(rows, model):
    """Rows (n, 2048), or one of them; a number for each."""
    with predicting(), torch.inference_mode():
        return model(rows) / model.unit


def postprocess(number):
    return {"answer": 2 * round(float(number)) + 1}
