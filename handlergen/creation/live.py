"""Ask the live object: through the pipeline of the created project, with the live functions and model in its module."""

from __future__ import annotations

import contextlib
import importlib
import logging
from collections.abc import Iterator, Mapping
from dataclasses import replace
from logging.handlers import BufferingHandler
from typing import Any

import torch

from handlergen.archives.staging import make_bundle
from handlergen.creation.kinds import Sketch
from handlergen.errors import ModuleFailed
from handlergen.inspection.project import Project
from handlergen.local.model import ask, directories_beside, error_message, open_worker
from handlergen.local.surroundings import Surroundings
from handlergen.runtime.contract import Bundle, Hook, Parameter
from handlergen.runtime.diagnostics import ROOT
from handlergen.runtime.examples import Example, RightAnswer

_PARAMETERS = {
    "setup": (),
    "load": (),
    "predict": (Parameter("model", "model"), Parameter("inputs", "inputs")),
}
"""Of the hooks that stand in for the created module's own."""


def with_answer(project: Project, sketch: Sketch, hooks: Mapping[str, Any], model: Any, example: Example) -> Example:
    """Return an example with the live object's answer.

    Args:
        project: The created project.
        hooks: The caller's functions by role.
        model: The live object.

    Raises:
        ModuleFailed: The live object itself fails on the example.
    """
    bundle = make_bundle(project)
    surroundings = Surroundings(bundle.contract.module, [project.root, *directories_beside(project)])
    with _at_rest(model):
        with surroundings.entered():
            module = importlib.import_module(bundle.contract.module)
            for name, value in {**sketch.live, **hooks}.items():
                setattr(module, name, value)
            if sketch.stages:
                setattr(module, "FLOW", list(sketch.stages))  # noqa: B010 - the checker knows no such attribute
        worker = open_worker(_with_live_hooks(bundle, sketch, hooks), project.root, surroundings, gpu_of(model))
        tracebacks = BufferingHandler(capacity=100)
        tracebacks.setLevel(logging.ERROR)
        ROOT.addHandler(tracebacks)
        try:
            answer = ask(worker, example)  # where the caller is: live functions find the files that they read there
        finally:
            ROOT.removeHandler(tracebacks)
            worker.close()
    if answer.status >= 400:
        traceback = "\n".join(record.getMessage() for record in tracebacks.buffer).rstrip()
        last = traceback.splitlines()[-1] if traceback else error_message(answer)
        raise ModuleFailed(
            f"the object itself fails on the example: {last}",
            traceback=traceback,
            hint="Give an example as a client would send it: preprocess gets its decoded content (bytes stay bytes, "
            "JSON becomes lists and dicts).",
        )
    return replace(example, answer=RightAnswer(answer.content_type, answer.body))


def _with_live_hooks(bundle: Bundle, sketch: Sketch, hooks: Mapping[str, Any]) -> Bundle:
    """Return the contract of the created module, with the live object's own hooks in it."""
    contract = bundle.contract
    own = {
        name: Hook(name, 0, "sync", parameters)
        for name, parameters in _PARAMETERS.items()
        if name in sketch.live and name not in hooks and not (name == "predict" and name in contract.hooks)
    }
    details = dict(contract.details)
    if sketch.stages:
        described = [{**stage, "type": live[0]} for stage, live in zip(details["stages"], sketch.stages, strict=True)]
        details["stages"] = described
        own |= {
            f"predict {number}": Hook("predict", 0, "sync", (Parameter("inputs", "inputs"),))
            for number, live in enumerate(sketch.stages, 1)
            if live[0] == "python" and f"predict {number}" not in contract.hooks
        }
    return replace(bundle, contract=replace(contract, hooks={**contract.hooks, **own}, details=details))


def gpu_of(model: Any) -> int | None:
    """Return the index of the GPU that an object's network is on; None for the CPU."""
    tensors = (next(network.parameters(), None) for network in _networks(model))
    device = next((tensor.device for tensor in tensors if tensor is not None), None)
    return device.index if device is not None and device.type == "cuda" else None


@contextlib.contextmanager
def _at_rest(model: Any) -> Iterator[None]:
    """Have the networks in an object in eval mode, and leave them as they were."""
    networks = _networks(model)
    training = [(part, part.training) for network in networks for part in network.modules()]
    for network in networks:
        network.eval()
    try:
        yield
    finally:
        for part, was in training:
            part.training = was


def _networks(model: Any) -> list[Any]:
    """Return the network that an object is or has, and those of the parts of a list (flow stages)."""
    if isinstance(model, list | tuple):
        return [network for part in model for network in _networks(part)]
    inner = getattr(model, "model", None)  # a transformers pipeline's
    return [each for each in (model, inner) if isinstance(each, torch.nn.Module)][:1]
