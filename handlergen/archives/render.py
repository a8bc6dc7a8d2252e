"""Contract and settings to the text of the generated handler. Pure: no files but the template are read."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import TYPE_CHECKING

from handlergen.project import templates
from handlergen.runtime.contract import Contract, Hook

if TYPE_CHECKING:
    from handlergen.project.settings import Settings

#: Roles in the order of a request's life, with what the handler's docstring says of each.
ROLES = (
    ("setup", "once per worker"),
    ("load", "once per copy of the model"),
    ("preprocess", ""),
    ("predict", ""),
    ("postprocess", ""),
    ("explain", ""),
    ("is_healthy", ""),
)

_KINDS = {"async": "async", "generator": "streams", "async_generator": "async, streams"}

_BATCH_LINES = {
    "each": "Several requests at once: predict is called for each of them, as soon as its inputs are ready.",
    "collate": "Several requests at once: their inputs are collated, predict runs once, its output is split.",
    "list": "Several requests at once: predict gets the list of their inputs and returns as many outputs.",
}

_LOCK_LINES = {
    "device": "One predict at a time on each device, whichever worker, model or server runs it.",
    "model": "One predict of this model at a time on each device.",
    "none": "Predictions are not serialized: this archive was made with lock: none.",
}

_WIDTH = 100
"""Columns of a docstring line; the generated handler is checked with a line length of 110."""


def render_handler(contract: Contract, settings: Settings, *, version: str) -> str:
    """The source of `handlergen_handler.py`: one `BaseHandler` subclass that calls `handlergen_runtime`.

    Args:
        contract: What the user's module offers.
        settings: Resolved settings; `name`, `batch` and `lock` are read.
        version: Version of handlergen that writes it.
    """
    return templates.render(
        "handler.py.j2",
        module=contract.module,
        version=version,
        class_name=class_name(settings.name),
        form=contract.form,
        hook_lines=list(hook_lines(contract)),
        batch_line=_BATCH_LINES[settings.batch],
        lock_line=_LOCK_LINES[settings.lock],
    )


def class_name(model_name: str) -> str:
    """`digits` → `DigitsHandler`, `resnet-50.v2` → `Resnet50V2Handler`, `3d_pose` → `Model3dPoseHandler`."""
    words = [word for word in re.split(r"[^A-Za-z0-9]+", model_name) if word]
    camel = "".join(word[0].upper() + word[1:] for word in words)
    return ("Model" if not camel or camel[0].isdigit() else "") + camel + "Handler"


@dataclass(frozen=True)
class Call:
    """One thing that runs for a request, or once a worker.

    Attributes:
        role: `preprocess`, `load`; `pre 2`, `predict 2` and `post 2` in a flow.
        hook: The user's function; None where a flow's stage runs a model of the archive.
        model: That model: `xgboost_classifier head.json`.
    """

    role: str
    hook: Hook | None
    model: str = ""

    @property
    def step(self) -> str:
        """The role as a hook of one stage has it: `predict` for `predict 2`."""
        step = self.role.partition(" ")[0]
        return {"pre": "preprocess", "post": "postprocess"}.get(step, step)


def calls(contract: Contract) -> list[Call]:
    """Everything that runs, in the order of a request's life."""
    hooks = contract.hooks
    found = [Call(role, hooks[role]) for role, _ in ROLES if role in hooks]
    for number, stage in enumerate(contract.details.get("stages", ()), 1):
        for role in (f"pre {number}", f"predict {number}", f"post {number}"):
            if role in hooks:
                found.append(Call(role, hooks[role]))
            elif role.startswith("predict"):
                found.append(Call(role, None, f"{stage['type']} {stage['shown']}"))
    return found


def ordered_hooks(contract: Contract) -> dict[str, Hook]:
    """The hooks by role, in the order of a request's life."""
    return {call.role: call.hook for call in calls(contract) if call.hook is not None}


def hook_lines(contract: Contract) -> list[str]:
    """A line a call: role, function with its parameters, and when it runs if that is not every request."""
    owner = contract.class_name or contract.module.rpartition(".")[2]
    when = dict(ROLES)
    found = calls(contract)
    width = max((len(call.role) for call in found), default=0)
    lines = []
    for call in found:
        text, notes = call.model, [when.get(call.role, "")]
        if call.hook is not None:
            text, notes = f"{owner}.{signature(call.hook)}", [_KINDS.get(call.hook.kind, ""), *notes]
        note = ", ".join(filter(None, notes))
        note = f"  ({note})" if note else ""
        lines.append(_shortened(f"    {call.role:<{width}}  {text}", _WIDTH - len(note)) + note)
    return lines or ["    No function of its own for predict: the weights are executed."]


def signature(hook: Hook) -> str:
    """`predict(inputs, *, model)`: the hook as a reader of its source would call it."""
    names = []
    for parameter in hook.parameters:
        if parameter.keyword_only and "*" not in names:
            names.append("*")
        names.append(parameter.name + ("" if parameter.required else "=..."))
    return f"{hook.name}({', '.join(names)})"


def _shortened(line: str, width: int) -> str:
    return line if len(line) <= width else line[: width - 4] + "...)"
