"""The user's code that `$PEERS_MODEL` names, called as the apps need it."""

import importlib
import inspect
import os

_module = importlib.import_module(os.environ["PEERS_MODEL"])
_takes_model = "model" in inspect.signature(_module.predict).parameters

BATCH_SIZE = int(os.environ.get("PEERS_BATCH_SIZE", "1"))
"""Most rows of one predict; 1 unless the network takes batches."""

preprocess = _module.preprocess
postprocess = _module.postprocess


def load():
    """Everything that is needed before the first request; the model."""
    getattr(_module, "setup", lambda: None)()
    return _module.load()


def predict(inputs, model):
    return _module.predict(inputs, model) if _takes_model else _module.predict(inputs)


def predict_rows(rows, model):
    """Several inputs in one predict, or one after the other where the network takes no batches."""
    if BATCH_SIZE == 1:
        return [predict(row, model) for row in rows]
    import torch

    return list(predict(torch.stack(list(rows)), model))
