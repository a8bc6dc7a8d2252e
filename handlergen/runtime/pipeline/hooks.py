"""Binding a hook: from the parameters that inspection recorded to a call with one argument, the request's item."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Awaitable, Callable, Collection, Coroutine, Mapping
from dataclasses import dataclass
from operator import attrgetter
from typing import Any, NamedTuple

import torch

from ..codec.errors import Failure
from ..contract import Contract, Hook, Parameter
from ..forms.table import FORMS
from ..request import BadRequest, Files, HttpRequest


class Item:
    """One request on its way through the pipeline. Each stage reads what the one before it left.

    Attributes:
        index: Its place in TorchServe's batch.
        request: What hooks see as `request`.
        entry, properties: What came on the wire, as TorchServe hands it over.
        data, files: The same, decoded.
        stage: Which of the model's stages it is in.
        inputs: What `preprocess` returned.
        wrap: Makes the answer that is encoded of what the hooks returned (`kserve`); None: it is that itself.
        outputs: What `predict` returned for it.
        failure: Why it has no answer; the stages after the failing one skip it.
        reply: The encoded answer.
        outlet: Where chunks of its answer can be sent before it has ended (`streaming.Outlet`); None: nowhere.
        sent: At least one chunk has been sent.
        http: What the model-class form's hooks see as `Request`, once one of them asked for it.
        ready_ns: When it was ready for the device (`time.monotonic_ns()`).
    """

    __slots__ = (
        "data",
        "entry",
        "failure",
        "files",
        "http",
        "index",
        "inputs",
        "outlet",
        "outputs",
        "properties",
        "ready_ns",
        "reply",
        "request",
        "sent",
        "stage",
        "wrap",
    )

    def __init__(
        self, index: int, entry: Mapping[str, Any], properties: Mapping[str, Any], request: Any
    ) -> None:
        self.index = index
        self.entry = entry
        self.properties = properties
        self.request = request
        self.data: Any = None
        self.files: Files | None = None
        self.stage = 0
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
        call: Takes the item, returns what the hook returns: a value, or a coroutine to be awaited.
        function: The user's own, whose annotations say what it takes and returns; None where there is none.
        parameters: Its signature, as inspection found it.
    """

    name: str
    call: Callable[[Item], Any]
    function: Callable[..., Any] | None = None
    parameters: tuple[Parameter, ...] = ()


@dataclass(frozen=True)
class Stage:
    """One visit to the device with what surrounds it; None where the value passes through.

    Every form has one stage, its three hooks, but the flow, which has one for each of its models.

    Attributes:
        collate: Several requests' inputs to one batch (`batch: collate`); None for torch's default.
        one_by_one: Inputs that cannot be collated are predicted one by one; else that is an error.
        explain: Takes the place of `predict` for a request for an explanation; only a form with one stage has it.
        name: For messages, where there may be several: `stage 2, torch encoder.pt`.
    """

    preprocess: BoundHook | None
    predict: BoundHook
    postprocess: BoundHook | None = None
    collate: Callable[[list[Any]], Any] | None = None
    one_by_one: bool = False
    explain: BoundHook | None = None
    name: str = ""


Hooks = tuple[Stage, ...]
"""The stages of a model, one at least."""


def http_request(item: Item) -> HttpRequest:
    """The same object for every hook of a request."""
    if item.http is None:
        item.http = HttpRequest(item.request, item.entry)
    return item.http


_ITEM_SOURCES: dict[str, Callable[[Item], Any]] = {
    "data": attrgetter("data"),
    "files": attrgetter("files"),
    "inputs": attrgetter("inputs"),
    "outputs": attrgetter("outputs"),
    "input_data": attrgetter("data"),
    "request": attrgetter("request"),
    "http_request": http_request,
}


def bind(function: Callable[..., Any], hook: Hook, constants: Mapping[str, Any]) -> BoundHook:
    """Make a hook callable with an item.

    Args:
        function: The user's function or bound method.
        hook: Its signature, as inspection found it.
        constants: Values for `context`, `model` and `device`, the same for every request.

    Raises:
        ValueError: The contract names a source that this runtime does not have.
    """
    return BoundHook(hook.name, _caller(function, hook, constants), function, hook.parameters)


def call_once(function: Callable[..., Any], hook: Hook, constants: Mapping[str, Any]) -> Any:
    """Call a hook that has no request: `setup`, `load`, `is_healthy`. Awaits it when it is async."""
    positional = [
        constants[p.source] for p in hook.parameters if not p.keyword_only and p.source in constants
    ]
    named = {p.name: constants[p.source] for p in hook.parameters if p.keyword_only and p.source in constants}
    result = function(*positional, **named)
    return asyncio.run(_awaited(result)) if hook.is_async else result


async def _awaited(value: Awaitable[Any]) -> Any:
    return await value


def _caller(function: Callable[..., Any], hook: Hook, constants: Mapping[str, Any]) -> Callable[[Item], Any]:
    if any(parameter.source == "key" for parameter in hook.parameters):
        return _keyword_caller(function, hook, constants)
    positional = [
        _getter(parameter.source, constants) for parameter in hook.parameters if not parameter.keyword_only
    ]
    named = {
        parameter.name: _getter(parameter.source, constants)
        for parameter in hook.parameters
        if parameter.keyword_only
    }
    if not named and len(positional) == 1:  # nearly every hook; spares the packing of arguments
        (only,) = positional
        return lambda item: function(only(item))
    if not named:
        return lambda item: function(*[get(item) for get in positional])
    return lambda item: function(
        *[get(item) for get in positional], **{name: get(item) for name, get in named.items()}
    )


def _getter(source: str, constants: Mapping[str, Any]) -> Callable[[Item], Any]:
    if source in constants:
        value = constants[source]
        return lambda _item: value
    try:
        return _ITEM_SOURCES[source]
    except KeyError:
        raise ValueError(f"this runtime has nothing to pass for {source!r}") from None


def _keyword_caller(
    function: Callable[..., Any], hook: Hook, constants: Mapping[str, Any]
) -> Callable[[Item], Any]:
    """`call: keywords`: the JSON object's keys are the keyword arguments."""
    keys = {p.name: p.required for p in hook.parameters if p.source == "key"}
    others = {p.name: _getter(p.source, constants) for p in hook.parameters if p.source != "key"}

    def call(item: Item) -> Any:
        given = item.inputs
        if not isinstance(given, Mapping):
            raise BadRequest(
                f"{hook.name} takes a JSON object with the keys {', '.join(keys)}, not {type(given).__name__}"
            )
        unknown = [str(key) for key in given if key not in keys]
        missing = [name for name, required in keys.items() if required and name not in given]
        if unknown or missing:
            findings = (
                [f"missing key{'s' if len(missing) > 1 else ''}: {', '.join(missing)}"] if missing else []
            )
            findings += (
                [f"unknown key{'s' if len(unknown) > 1 else ''}: {', '.join(unknown)}"] if unknown else []
            )
            raise BadRequest(f"{'; '.join(findings)} (keys: {', '.join(keys)})")
        return function(**given, **{name: get(item) for name, get in others.items()})

    return call


class EventLoopThread:
    """One event loop in a thread of its own, on which the async preprocess and postprocess hooks run.

    It is never the thread that predicts, so an `await` in one request's hook neither waits for the device nor
    delays it.
    """

    def __init__(self) -> None:
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._run, name="handlergen-async", daemon=True)
        self._thread.start()

    def _run(self) -> None:
        # The mode belongs to a thread, and tasks of several requests alternate in this one: it is set for all.
        with torch.inference_mode():
            self._loop.run_forever()

    def submit(
        self, coroutine: Coroutine[Any, Any, Any], done: Callable[[Any, BaseException | None], None]
    ) -> None:
        """Run a coroutine; `done(value, error)` is called on the loop's thread when it ends."""

        async def run() -> None:
            try:
                value = await coroutine
            except BaseException as error:
                done(None, error)
            else:
                done(value, None)

        asyncio.run_coroutine_threadsafe(run(), self._loop)

    def result(self, coroutine: Coroutine[Any, Any, Any]) -> Any:
        """Run a coroutine and wait for what it returns or raises."""
        return asyncio.run_coroutine_threadsafe(coroutine, self._loop).result()

    def close(self) -> None:
        """Stop the loop; pending coroutines are abandoned."""
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join(timeout=5)
        if not self._thread.is_alive():
            self._loop.close()


class ItemParts(NamedTuple):
    """What hooks may ask for besides `inputs` and `outputs`; None for what no hook asks for."""

    data: Any
    files: Files | None
    entry: Mapping[str, Any] | None
    http: Any


@dataclass(frozen=True)
class HookInputs:
    """What hooks read of a request besides `inputs` and `outputs`.

    Attributes:
        data, files, http: `data`, `files` and `http_request` of their parameters.
    """

    data: bool
    files: bool
    http: bool

    @classmethod
    def of(cls, contract: Contract, roles: Collection[str]) -> HookInputs:
        """Read it from the parameters of the hooks with these roles; a flow's hooks have roles of their own."""
        if FORMS[contract.form].several_models:
            return cls(data=True, files=True, http=True)
        hooks = [hook for role, hook in contract.hooks.items() if role in roles]
        sources = {parameter.source for hook in hooks for parameter in hook.parameters}
        return cls(bool(sources & {"data", "input_data"}), "files" in sources, "http_request" in sources)

    def of_item(self, item: Item) -> ItemParts:
        """Return the parts of an item that are sent."""
        return ItemParts(
            item.data if self.data else None,
            item.files if self.files else None,
            item.entry if self.http else None,
            item.http if self.http else None,
        )
