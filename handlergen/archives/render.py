"""The text of the generated handler, and the calls of a contract as its docstring and `check` show them."""

from __future__ import annotations

import re
from dataclasses import dataclass

from handlergen.project import templates
from handlergen.project.settings import Settings
from handlergen.runtime.contract import Contract, Hook, RuntimeSettings

#: Roles in the order in which they run, each with when it runs if that is not every request.
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
"""Maximum length of a docstring line; the generated handler is checked with a line length of 110."""


def render_handler(contract: Contract, settings: Settings | RuntimeSettings, *, version: str) -> str:
    """Return the source of `handlergen_handler.py`: one `BaseHandler` subclass that calls `handlergen_runtime`.

    The settings are resolved; `version` is that of the handlergen that writes it.
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
    """Return the class name: `digits` → `DigitsHandler`, `resnet-50.v2` → `Resnet50V2Handler`."""
    words = [word for word in re.split(r"[^A-Za-z0-9]+", model_name) if word]
    camel = "".join(word[0].upper() + word[1:] for word in words)
    return ("Model" if not camel or camel[0].isdigit() else "") + camel + "Handler"


@dataclass(frozen=True)
class HookCall:
    """A call of a hook, or of a flow's model, for each request or once in a worker.

    Attributes:
        role: `preprocess`, `load`; `pre 2`, `predict 2` and `post 2` in a flow.
        hook: The user's function; None if a model of a flow predicts.
        model: That model: `xgboost_classifier head.json`.
    """

    role: str
    hook: Hook | None
    model: str = ""

    @property
    def step(self) -> str:
        """Return the role without a flow's number: `predict` for `predict 2`, `preprocess` for `pre 2`."""
        step = self.role.partition(" ")[0]
        return {"pre": "preprocess", "post": "postprocess"}.get(step, step)


def calls(contract: Contract) -> list[HookCall]:
    """Return all calls in the order in which they run."""
    hooks = contract.hooks
    found = [HookCall(role, hooks[role]) for role, _ in ROLES if role in hooks]
    for number, stage in enumerate(contract.details.get("stages", ()), 1):
        for role in (f"pre {number}", f"predict {number}", f"post {number}"):
            if role in hooks:
                found.append(HookCall(role, hooks[role]))
            elif role.startswith("predict"):
                found.append(HookCall(role, None, f"{stage['type']} {stage['shown']}"))
    return found


def ordered_hooks(contract: Contract) -> dict[str, Hook]:
    """Return the hooks by role, in the order in which they run."""
    return {call.role: call.hook for call in calls(contract) if call.hook is not None}


def hook_lines(contract: Contract) -> list[str]:
    """Return a line for each call: role, function with its parameters, and when it runs if not for every request."""
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
        line = f"    {call.role:<{width}}  {text}"
        if len(line + note) > _WIDTH:
            line = line[: _WIDTH - len(note) - 4] + "...)"
        lines.append(line + note)
    return lines or ["    No function of its own for predict: the weights are executed."]


def signature(hook: Hook) -> str:
    """Return `predict(inputs, *, model)`: the hook with its parameters."""
    names = []
    for parameter in hook.parameters:
        if parameter.keyword_only and "*" not in names:
            names.append("*")
        names.append(parameter.name + ("" if parameter.required else "=..."))
    return f"{hook.name}({', '.join(names)})"
