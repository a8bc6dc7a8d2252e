"""What a `predict` that streams goes together with; for the forms that allow one."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Protocol

from handlergen.errors import Problem
from handlergen.source_module import Function, call_kind, first_yield

if TYPE_CHECKING:
    from handlergen.settings import Settings


class HasNode(Protocol):
    """A hook that was found (`Found`, `Method`)."""

    @property
    def node(self) -> Function: ...


def streams(hook: HasNode | None) -> bool:
    """Is it a generator function? One that returns a generator made elsewhere shows only when it runs."""
    return hook is not None and call_kind(hook.node) in ("generator", "async_generator")


def generator_problem(file: str, name: str, node: Function) -> Problem:
    """Of a hook whose value is returned, and that yields."""
    return Problem(
        file, first_yield(node), f"{name} is a generator", "Return the value instead of yielding it."
    )


def stream_problems(file: str, hooks: Mapping[str, HasNode], settings: Settings) -> list[Problem]:
    """A generator predict beside a postprocess, or where one call serves several requests."""
    predict = hooks.get("predict")
    if predict is None or not streams(predict):
        return []
    line = first_yield(predict.node)
    problems = []
    if "postprocess" in hooks:
        problems.append(
            Problem(
                file,
                line,
                "predict is a generator, whose chunks go out as they are made, and there is a postprocess "
                f"(line {hooks['postprocess'].node.lineno}) that would never see them",
                "Do the work of postprocess inside predict, or collect what predict yields and return it.",
            )
        )
    if settings.batch in ("list", "collate"):
        problems.append(
            Problem(
                file,
                line,
                f"predict is a generator, but with batch: {settings.batch} one call serves several requests",
                "Write batch: each.",
            )
        )
    return problems


def stream_warnings(file: str, hooks: Mapping[str, HasNode], settings: Settings) -> list[str]:
    """In a TorchServe batch, streams follow each other and end together."""
    if settings.batch_size < 2 or not streams(hooks.get("predict")):
        return []
    return [
        f"{file}:{first_yield(hooks['predict'].node)}: predict streams, and batch_size is {settings.batch_size}: the "
        f"streams of a batch are made one after the other, and none ends for its client before the batch has. "
        f"Write batch_size: 1."
    ]
