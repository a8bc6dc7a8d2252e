"""A starter flow: what one stage returns is the next one's input. It doubles a list of numbers."""

import torch


def pre(data):
    """What arrives at the stage to its model's input; at the first stage, the request's content.

    Runs beside the predictions of other requests.
    """
    return data


def double(data, device):
    """A stage that is a function of this module. Only one stage of one request at a time runs on a device."""
    return torch.tensor(data, dtype=torch.float32, device=device) * 2


def post(result, input_data):
    """The model's output to what the next stage gets, or to the answer; input_data is the request's content."""
    return result


# A stage is (type, file), with functions if it needs them: (type, file, post), (type, file, {"pre": ..., "post": ...}).
FLOW = [
    ("python", double, {"pre": pre, "post": post}),
    # ("torch", "encoder.pt"),
    # ("xgboost_classifier", "head.json", {"post": to_label}),
]
