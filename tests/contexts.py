"""A module whose hooks set and read what lies in a context, and what its answers must be."""

from __future__ import annotations

import random
from typing import Any

MODULE = """
import contextvars
import decimal

import numpy

decimal.getcontext().prec = 6
USER = contextvars.ContextVar("user", default="nobody")


def load(context):
    USER.set("load")
    numpy.seterr(divide="ignore")


def change(data, hook):
    wanted = data.get(hook, {})
    if "user" in wanted:
        USER.set(wanted["user"])
    if "prec" in wanted:
        decimal.getcontext().prec = wanted["prec"]
    if "divide" in wanted:
        numpy.seterr(divide=wanted["divide"])
    return [USER.get(), str(decimal.Decimal(1) / 3), numpy.geterr()["divide"]]


def preprocess(data):
    return {"data": data, "seen": [change(data, "preprocess")]}


def predict(inputs):
    return {**inputs, "seen": [*inputs["seen"], change(inputs["data"], "predict")]}


def postprocess(outputs):
    return [*outputs["seen"], change(outputs["data"], "postprocess")]
"""

HOOKS = ("preprocess", "predict", "postprocess")


def requests(seed: int, count: int) -> list[dict[str, Any]]:
    """Requests that set something in some of their hooks, and some that set nothing."""
    chance = random.Random(seed)
    choices = {"user": ["ann", "bob", "eve"], "prec": [3, 9, 12], "divide": ["warn", "raise", "ignore"]}

    def wanted() -> dict[str, Any]:
        return {name: chance.choice(values) for name, values in choices.items() if chance.random() < 0.3}

    return [{hook: wanted() for hook in HOOKS} for _ in range(count)]


def answer(request: dict[str, Any], first: tuple[str, int, str] = ("load", 6, "ignore")) -> list[list[str]]:
    """What each hook of a request sees.

    Args:
        first: The user, the precision and the error state that import and load left.
    """
    user, precision, divide = first
    seen = []
    for hook in HOOKS:
        wanted = request[hook]
        user, precision = wanted.get("user", user), wanted.get("prec", precision)
        divide = wanted.get("divide", divide)
        seen.append([user, "0." + "3" * precision, divide])
    return seen
