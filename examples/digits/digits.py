"""A handwritten digit, as PNG bytes, in; which digit it is, and how sure the network is, out."""

from __future__ import annotations

from io import BytesIO
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image, UnidentifiedImageError
from torch import nn

SIDE = 8
"""Pixels a side of what the network sees; scikit-learn's handwriting comes in this size."""


def network() -> nn.Module:
    """Two small convolutions: (N, 1, 8, 8) images in 0..1 to (N, 10) logits."""
    return nn.Sequential(
        nn.Conv2d(1, 32, kernel_size=3, padding=1),
        nn.ReLU(),
        nn.Conv2d(32, 64, kernel_size=3, padding=1),
        nn.ReLU(),
        nn.MaxPool2d(2),
        nn.Flatten(),
        nn.Dropout(0.3),
        nn.Linear(64 * 4 * 4, 128),
        nn.ReLU(),
        nn.Linear(128, 10),
    )


def shifted(images: torch.Tensor) -> list[torch.Tensor]:
    """Nine views of (..., 8, 8) images: each moved by up to one pixel, empty pixels moving in."""
    padded = nn.functional.pad(images, (1, 1, 1, 1))
    return [padded[..., row : row + SIDE, column : column + SIDE] for row in range(3) for column in range(3)]


def load(context: Any) -> nn.Module:
    """Once per worker: the trained weights, on the device that this worker was given."""
    # On a CPU every further thread of a network this small waits for a core that preprocessing keeps busy.
    torch.set_num_threads(1)
    path = Path(context.model_dir) / "digits.pt"
    model = network()
    model.load_state_dict(torch.load(path, map_location=context.device, weights_only=True))
    return model.to(context.device).eval()


def preprocess(data: bytes) -> torch.Tensor:
    """PNG bytes of any size to one (1, 8, 8) image. Runs beside the predictions of other requests."""
    try:
        image = Image.open(BytesIO(data)).convert("L").resize((SIDE, SIDE), Image.Resampling.BOX)
    except (TypeError, UnidentifiedImageError) as error:
        raise ValueError("send the bytes of a PNG image of one digit") from error  # the client gets a 400
    return torch.from_numpy(np.asarray(image, dtype=np.float32) / 255).unsqueeze(0)


def predict(inputs: torch.Tensor, model: nn.Module) -> torch.Tensor:
    """(1, 8, 8) to (10,) probabilities, averaged over nine views. Only one at a time runs on the device."""
    return model(torch.stack(shifted(inputs))).softmax(dim=1).mean(dim=0)


def postprocess(outputs: torch.Tensor) -> dict[str, float]:
    """Ten probabilities to an answer; again beside the predictions of other requests."""
    return {"digit": int(outputs.argmax()), "probability": round(float(outputs.max()), 4)}
