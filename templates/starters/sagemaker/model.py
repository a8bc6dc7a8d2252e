"""A starter model in the functions of SageMaker's PyTorch toolkit. It doubles a list of numbers."""

import json

import torch


def model_fn(model_dir, context):
    """Once per worker: return the model. model_dir holds the files that handlergen.yaml names under `weights`."""
    # return torch.jit.load(f"{model_dir}/model.pth", map_location=context.device).eval()
    return lambda numbers: numbers * 2


def input_fn(data, content_type):
    """The request's body, text for JSON and CSV and else bytes, to what predict_fn takes.

    Runs beside the predictions of other requests. A ValueError raised here is the client's 400.
    """
    return torch.tensor(json.loads(data), dtype=torch.float32)


def predict_fn(data, model):
    """What input_fn returned to a prediction. Only one at a time runs on a device."""
    return model(data)


def output_fn(prediction, accept):
    """The prediction, on the CPU, to the answer's body."""
    return json.dumps(prediction.tolist())
