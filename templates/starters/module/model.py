"""A starter model: a torch.nn.Module that carries its own preprocess and postprocess. It doubles a list of numbers."""

import torch
from torch import nn


class Model(nn.Module):
    """Put your layers here."""

    def __init__(self, factor=2.0):
        super().__init__()
        self.register_buffer("factor", torch.tensor(factor))

    def preprocess(self, x):
        """A request's content (JSON arrives decoded, files as bytes) to one sample: a tensor, or a dict of them.

        Runs beside the predictions of other requests. A ValueError raised here is the client's 400.
        """
        return torch.tensor(x, dtype=torch.float32)

    def forward(self, batch):
        """A batch of samples to a batch of outputs. Only one at a time runs on a device."""
        return batch * self.factor

    def postprocess(self, output):
        """One sample's output, on the CPU, to the answer: numbers, lists, dicts, tensors, arrays, bytes."""
        return output


def load(context):
    """Once per worker: return the finished module; it is moved to the device and put in eval mode.

    With weights, delete this function and name them in handlergen.yaml: `weights: model.pt`, written with
    torch.save(model.state_dict(), "model.pt"); and the constructor's arguments: `model_kwargs: {factor: 2.0}`.
    """
    return Model()
