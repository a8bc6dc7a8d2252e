"""A photograph (JPEG, 1024 x 768) decoded and made smaller, then a small convolutional network, on the CPU."""

import base64
import io

import numpy
import torch
from PIL import Image
from recording import loaded, predicting
from torch import nn


def load():
    loaded()
    torch.manual_seed(0)
    layers = []
    for inputs, outputs in ((3, 16), (16, 32), (32, 64)):
        layers += [nn.Conv2d(inputs, outputs, 3, padding=1), nn.ReLU(), nn.MaxPool2d(2)]
    return nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten(0), nn.Linear(64, 100)).eval()


def preprocess(data):
    image = Image.open(io.BytesIO(base64.b64decode(data["image"]))).convert("RGB").resize((128, 128))
    pixels = numpy.asarray(image, dtype="float32") / 255
    return torch.from_numpy(pixels).permute(2, 0, 1).contiguous()


def predict(pixels, model):
    with predicting(), torch.inference_mode():
        return model(pixels)


def postprocess(scores):
    return {"best": [round(100 * score, 3) for score in scores.topk(3).values.tolist()]}
