"""Train the digit classifier on scikit-learn's bundled handwriting: no download, a few seconds.

Writes `digits.pt` (the weights that `digits.py` loads) and `held-out/`: PNG images of digits that the network
has not seen, named `TRUE-LABEL_NUMBER.png`.

    python examples/digits/train.py
"""

from __future__ import annotations

import random
import shutil
import time
from pathlib import Path

import numpy as np
import torch
from digits import network, shifted
from PIL import Image
from sklearn.datasets import load_digits
from sklearn.model_selection import train_test_split
from torch import nn

HERE = Path(__file__).resolve().parent
EPOCHS = 30
BATCH = 64
HELD_OUT_SHARE = 0.2
PNG_SIDE = 1024
"""Pixels a side of the written images: about what a scanner sends, so that there is something to decode."""


def train(images: torch.Tensor, labels: torch.Tensor) -> nn.Module:
    """Fit a fresh network to (N, 1, 8, 8) images in 0..1 and (N,) labels."""
    model = network()
    optimizer = torch.optim.Adam(model.parameters(), lr=2e-3)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, EPOCHS)
    for _ in range(EPOCHS):
        for chosen in torch.randperm(len(images)).split(BATCH):
            optimizer.zero_grad()
            logits = model(random.choice(shifted(images[chosen])))
            nn.functional.cross_entropy(logits, labels[chosen]).backward()
            optimizer.step()
        schedule.step()
    return model.eval()


def answer(model: nn.Module, images: torch.Tensor) -> torch.Tensor:
    """(N, 1, 8, 8) images to (N,) digits, as `digits.predict` decides: by the mean over nine views."""
    with torch.inference_mode():
        views = [model(view).softmax(dim=1) for view in shifted(images)]
    return torch.stack(views).mean(dim=0).argmax(dim=1)


def write_images(images: np.ndarray, labels: np.ndarray, directory: Path) -> None:
    """(N, 8, 8) images in 0..255 as PNG files that a person can look at; `digits.py` scales them back."""
    shutil.rmtree(directory, ignore_errors=True)
    directory.mkdir()
    for number, (image, label) in enumerate(zip(images, labels, strict=True)):
        enlarged = Image.fromarray(image).resize((PNG_SIDE, PNG_SIDE), Image.Resampling.NEAREST)
        enlarged.save(directory / f"{label}_{number:03d}.png")


def write_requests(held_out: Path, directory: Path) -> None:
    """Make three held-out images the examples; answers of weights trained before are removed."""
    shutil.rmtree(directory, ignore_errors=True)
    directory.mkdir()
    images = sorted(held_out.glob("*.png"))
    for image in (images[0], images[len(images) // 2], images[-1]):
        shutil.copy(image, directory / f"{image.stem}.request.png")


def main() -> None:
    torch.manual_seed(0)
    random.seed(0)
    torch.set_num_threads(1)  # the network is too small for more to help
    handwriting = load_digits()
    images = np.round(handwriting.images * (255 / 16)).astype(np.uint8)  # its pixels are 0..16
    train_images, test_images, train_labels, test_labels = train_test_split(
        images, handwriting.target, test_size=HELD_OUT_SHARE, random_state=0, stratify=handwriting.target
    )

    def tensor(pixels: np.ndarray) -> torch.Tensor:
        return torch.from_numpy(pixels[:, None] / np.float32(255))

    started = time.monotonic()
    model = train(tensor(train_images), torch.from_numpy(train_labels))
    seconds = time.monotonic() - started
    right = int((answer(model, tensor(test_images)) == torch.from_numpy(test_labels)).sum())

    torch.save(model.state_dict(), HERE / "digits.pt")
    write_images(test_images, test_labels, HERE / "held-out")
    write_requests(HERE / "held-out", HERE / "examples")
    print(f"trained on {len(train_images)} digits in {seconds:.1f} s")
    print(f"right on {right} of {len(test_images)} held-out digits ({right / len(test_images):.1%})")


if __name__ == "__main__":
    main()
