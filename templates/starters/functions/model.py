"""A starter model: three functions. It doubles a list of numbers; put your model in its place."""

import torch

# def load(context):
#     """Once per worker: return the model; every hook may then ask for it by the name `model`."""
#     weights = torch.load(context.model_dir / "model.pt", map_location=context.device, weights_only=True)
#     model = MyNetwork()
#     model.load_state_dict(weights)
#     return model.to(context.device).eval()


def preprocess(data):
    """A request's content (JSON arrives decoded, files as bytes) to what predict takes.

    Runs beside the predictions of other requests. A ValueError raised here is the client's 400.
    """
    return data


def predict(inputs, device):
    """What preprocess returned to outputs. Only one predict at a time runs on a device."""
    return torch.tensor(inputs, dtype=torch.float32, device=device) * 2


def postprocess(outputs):
    """Outputs to the answer: numbers, lists, dicts, tensors, arrays, bytes.

    Runs beside the predictions of other requests, and sees the outputs on the CPU.
    """
    return outputs
