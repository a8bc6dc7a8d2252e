"""Hooks and requests: a request's item, a hook bound to its parameters, the event loop of async hooks."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping
from contextvars import Context
from dataclasses import dataclass
from operator import attrgetter
from types import CoroutineType
from typing import Any

from ..codec.errors import Failure
from ..contract import Contract, Hook, Parameter
from ..forms.table import FORMS
from ..request import BadRequest, Files, HttpRequest
from .event_loop import EventLoop, run_here


class Item:
    """One request on its way through the pipeline. Each step reads what the one before it left.

    Attributes:
        index: Its position in TorchServe's batch.
        request: What hooks see as `request`.
        entry, properties: Its content and headers, as TorchServe delivers them.
        context: What its hooks run in (`contextvars`), from the first on.
        data, files: The decoded content.
        model_index: Which of the flow's models it has reached; 0 in every other form.
        inputs: What `preprocess` returned.
        wrap: Turns what the hooks returned into the value to encode (KServe); None where that is the value itself.
        outputs: What `predict` returned for it.
        failure: Why it has no answer; later steps skip a failed request.
        reply: The encoded answer.
        outlet: Sends chunks of its answer before the answer is complete (`streaming.Outlet`); None: not possible.
        sent: At least one chunk has been sent.
        http: What hooks of the model-class form see as `Request`, once one of them asked for it.
        ready_ns: When it was ready for the device (`time.monotonic_ns()`).
    """

    __slots__ = (
        *("context", "data", "entry", "failure", "files", "http", "index", "inputs", "model_index", "outlet"),
        *("outputs", "properties", "ready_ns", "reply", "request", "sent", "wrap"),
    )

    context: Context

    def __init__(self, index: int, entry: Mapping[str, Any], properties: Mapping[str, Any], request: Any) -> None:
        self.index = index
        self.entry = entry
        self.properties = properties
        self.request = request
        self.data: Any = None
        self.files: Files | None = None
        self.model_index = 0
        self.inputs: Any = None
        self.outputs: Any = None
        self.failure: Failure | None = None
        self.reply: Any = None
        self.outlet: Any = None
        self.sent = False
        self.http: HttpRequest | None = None
        self.wrap: Callable[[Any], Any] | None = None
        self.ready_ns = 0


@dataclass(frozen=True)
class BoundHook:
    """A hook that is ready to be called.

    Attributes:
        name: For error messages and the log.
        call: Takes the item and returns what the hook returns: a value, or a coroutine to await.
        function: The user's own function, for its annotations; None where handlergen provides the hook.
        parameters: Its signature, as inspection found it.
    """

    name: str
    call: Callable[[Item], Any]
    function: Callable[..., Any] | None = None
    parameters: tuple[Parameter, ...] = ()


@dataclass(frozen=True)
class ModelHooks:
    """One call of a model with the hooks around it; a hook is None where the value passes through unchanged.

    Attributes:
        collate: Joins the inputs of several requests to one batch (`batch: collate`); None for torch's default.
        one_by_one: Inputs that cannot be collated are predicted one by one; otherwise they are an error.
        explain: Replaces `predict` for a request for an explanation; only forms with one model have it.
        name: For messages of a flow, which has several models: `stage 2, torch encoder.pt`.
    """

    preprocess: BoundHook | None
    predict: BoundHook
    postprocess: BoundHook | None = None
    collate: Callable[[list[Any]], Any] | None = None
    one_by_one: bool = False
    explain: BoundHook | None = None
    name: str = ""


Hooks = tuple[ModelHooks, ...]
"""The hooks of each model that a request passes: several in a flow, one in every other form."""


def http_request(item: Item) -> HttpRequest:
    """Return what hooks see as `Request`: the same object for all hooks of a request."""
    if item.http is None:
        item.http = HttpRequest(item.request, item.entry)
    return item.http


def metadata(item: Item) -> Any:
    """Return the request's metadata; of a batch, a list of each request's."""
    return [each.metadata for each in item.request] if isinstance(item.request, list) else item.request.metadata


_ITEM_SOURCES: dict[str, Callable[[Item], Any]] = {
    "data": attrgetter("data"),
    "files": attrgetter("files"),
    "inputs": attrgetter("inputs"),
    "outputs": attrgetter("outputs"),
    "input_data": attrgetter("data"),
    "request": attrgetter("request"),
    "metadata": metadata,
    "http_request": http_request,
    "run_id": attrgetter("request.id"),
}


def bind(function: Callable[..., Any], hook: Hook, constants: Mapping[str, Any]) -> BoundHook:
    """Return a hook that can be called with an item.

    Args:
        constants: Values for `context`, `model` and `device`, the same for every request.

    Raises:
        ValueError: The contract names a parameter source that this runtime does not know.
    """
    return BoundHook(hook.name, _caller(function, hook, constants), function, hook.parameters)


def call_once(function: Callable[..., Any], hook: Hook, constants: Mapping[str, Any], loop: EventLoop) -> Any:
    """Call a hook that has no request (`setup`, `load`, `is_healthy`), and await it when it is async."""
    passed = [parameter for parameter in hook.parameters if parameter.source in constants]
    positional = [constants[each.source] for each in passed if not each.keyword_only]
    named = {each.name: constants[each.source] for each in passed if each.keyword_only}
    result = function(*positional, **named)
    return run_here(loop, result) if isinstance(result, CoroutineType) else result


def _caller(function: Callable[..., Any], hook: Hook, constants: Mapping[str, Any]) -> Callable[[Item], Any]:
    if any(parameter.source == "key" for parameter in hook.parameters):
        return _keyword_caller(function, hook, constants)
    positional = [_getter(each.source, constants) for each in hook.parameters if not each.keyword_only]
    named = {each.name: _getter(each.source, constants) for each in hook.parameters if each.keyword_only}
    if not named and len(positional) == 1:  # nearly every hook; spares the packing of arguments
        (only,) = positional
        return lambda item: function(only(item))
    return lambda item: function(*[get(item) for get in positional], **{name: get(item) for name, get in named.items()})


def _getter(source: str, constants: Mapping[str, Any]) -> Callable[[Item], Any]:
    if source in constants:
        value = constants[source]
        return lambda _item: value
    if source not in _ITEM_SOURCES:
        raise ValueError(f"this runtime cannot pass {source!r} to a hook")
    return _ITEM_SOURCES[source]


def _keyword_caller(function: Callable[..., Any], hook: Hook, constants: Mapping[str, Any]) -> Callable[[Item], Any]:
    """`call: keywords`: the JSON object's keys are the keyword arguments."""
    keys = {p.name: p.required for p in hook.parameters if p.source == "key"}
    others = {p.name: _getter(p.source, constants) for p in hook.parameters if p.source != "key"}

    def call(item: Item) -> Any:
        given = item.inputs
        if not isinstance(given, Mapping):
            raise BadRequest(
                f"{hook.name} takes a JSON object with the keys {', '.join(keys)}, not {type(given).__name__}"
            )
        missing = [name for name, required in keys.items() if required and name not in given]
        unknown = [str(key) for key in given if key not in keys]
        if missing or unknown:
            findings = [
                f"{what} key{'s' if len(names) > 1 else ''}: {', '.join(names)}"
                for what, names in (("missing", missing), ("unknown", unknown))
                if names
            ]
            raise BadRequest(f"{'; '.join(findings)} (keys: {', '.join(keys)})")
        return function(**given, **{name: get(item) for name, get in others.items()})

    return call


@dataclass(frozen=True)
class HookInputs:
    """Which of `data`, `files` and `http_request` some hooks ask for, to send only these to another process."""

    data: bool
    files: bool
    http: bool

    @classmethod
    def of(cls, contract: Contract, roles: Collection[str]) -> HookInputs:
        """Read it from the parameters of the hooks with these roles; everything for a flow, whose roles differ."""
        if FORMS[contract.form].several_models:
            return cls(data=True, files=True, http=True)
        hooks = [hook for role, hook in contract.hooks.items() if role in roles]
        sources = {parameter.source for hook in hooks for parameter in hook.parameters}
        return cls(bool(sources & {"data", "input_data"}), "files" in sources, "http_request" in sources)

    def of_item(self, item: Item) -> tuple[Any, Files | None, Mapping[str, Any] | None, HttpRequest | None]:
        """Return the item's `data`, `files`, `entry` and `http`; None for what is not sent."""
        data, files = item.data if self.data else None, item.files if self.files else None
        return (data, files, item.entry, item.http) if self.http else (data, files, None, None)
