"""An `nn.Module`: its class as source, its weights as a state dict, its constructor's arguments, what else is on it."""

from __future__ import annotations

import inspect
from collections import OrderedDict
from collections.abc import Mapping
from typing import Any

import torch

from handlergen.creation.draft import Draft
from handlergen.creation.kinds import Options, Sketch
from handlergen.creation.source_code import write
from handlergen.creation.values import MISSING, expression, found_arguments
from handlergen.errors import HandlergenError

WEIGHTS = "weights.pt"
_OF_EVERY_MODULE = {"training", *vars(torch.nn.Module())}
_OWN_HOOKS = ("preprocess", "postprocess")
_NOT_ARGUMENTS = ("device", "dtype")


def sketch_network(model: Any, options: Options) -> Sketch:
    """Return the sketch of a network: a module that builds it, loads its weights and calls it.

    Raises:
        HandlergenError: Its class has no source, an argument of its constructor is not known, or what it has besides
            its weights cannot be written down.
    """
    name = type(model).__name__
    draft = Draft(write)
    try:
        built, fresh = _construction(model, draft, options.arguments or {})
        attributes = _attributes(model, fresh, draft)
    except HandlergenError as error:
        raise HandlergenError(f"the {name}: {error.message}", hint=error.hint) from error
    state = {key: value.detach().cpu() for key, value in model.state_dict().items()}
    _require_fit(fresh, state, name)
    draft.files[WEIGHTS] = lambda target: torch.save(state, target)
    draft.settings |= {"form": "functions", "weights": WEIGHTS}
    draft.imports.append("import torch")
    dtype = next((each.dtype for each in state.values() if each.is_floating_point()), torch.float32)
    cast = "" if dtype == torch.float32 else f".to({dtype})"
    lines = "".join(f"    {key} = {text}\n" for key, text in attributes.items())
    draft.hooks["load"] = (
        "def load(context):\n"
        f"    model = {built}{cast}\n"
        f'    weights = torch.load(context.model_dir / "{WEIGHTS}", map_location=context.device, weights_only=True)\n'
        "    model.load_state_dict(weights)\n"
        f"{lines}"
        "    return model.to(context.device).eval()\n"
    )
    for role in _OWN_HOOKS:
        if callable(getattr(type(model), role, None)) and role not in options.hooks:
            argument = "data" if role == "preprocess" else "outputs"
            draft.hooks[role] = f"def {role}({argument}, model):\n    return model.{role}({argument})\n"
    call, text = _call(model, dtype)
    if "predict" not in options.hooks:
        draft.hooks["predict"] = text
        draft.imports += ["from collections.abc import Mapping"] if "Mapping" in text else []
    return Sketch(f"A network, {name}.", draft, {"load": lambda: model, "predict": call})


def _call(model: Any, dtype: Any) -> tuple[Any, str]:
    """Return how the live network is called, and the source of `predict`, which does the same."""
    first = next((part for part in model.modules() if next(part.parameters(recurse=False), None) is not None), None)
    kind = torch.int64 if isinstance(first, torch.nn.Embedding | torch.nn.EmbeddingBag) else dtype
    parameters = list(inspect.signature(model.forward).parameters.values())
    several = len(parameters) > 1 or any(each.kind is each.VAR_KEYWORD for each in parameters)
    device = next((each.device for each in model.parameters()), torch.device("cpu"))

    def tensor(value: Any) -> Any:
        return torch.as_tensor(value, dtype=None if isinstance(value, torch.Tensor) else kind).to(device)

    def called(inputs: Any) -> Any:
        if several and isinstance(inputs, Mapping):
            return model(**{key: tensor(value) for key, value in inputs.items()})
        return model(*map(tensor, inputs)) if several and isinstance(inputs, tuple) else model(tensor(inputs))

    def predict(_model: Any, inputs: Any, _device: Any) -> Any:
        return called(inputs)

    convert = f"inputs if isinstance(inputs, torch.Tensor) else torch.as_tensor(inputs, dtype={kind}, device=device)"
    if not several:
        body = f"    inputs = {convert}\n    return model(inputs)\n"
    else:
        body = (
            "    def tensor(inputs):\n"
            f"        return {convert}\n\n"
            "    if isinstance(inputs, Mapping):\n"
            "        return model(**{name: tensor(value) for name, value in inputs.items()})\n"
            "    return model(*map(tensor, inputs)) if isinstance(inputs, tuple) else model(tensor(inputs))\n"
        )
    return predict, f"def predict(model, inputs, device):\n{body}"


def _construction(model: Any, draft: Draft, arguments: Mapping[str, Any] | None) -> tuple[str, Any]:
    """Return the expression that constructs such a network, and a network so constructed. Raises HandlergenError."""
    cls = type(model)
    if cls in (torch.nn.Sequential, torch.nn.ModuleList):
        parts = [_construction(part, draft, None) for part in model]
        texts = "".join(f"\n        {text}," for text, _ in parts)
        names = list(model._modules)
        fresh = [part for _, part in parts]
        draft.imports.append("import torch")
        if names == [str(number) for number in range(len(names))]:
            inside = f"{texts}\n    " if cls is torch.nn.Sequential else f"[{texts}\n    ]"
            return f"torch.nn.{cls.__name__}({inside})", cls(*fresh) if cls is torch.nn.Sequential else cls(fresh)
        draft.imports.append("from collections import OrderedDict")
        pairs = "".join(f"\n        ({name!r}, {text})," for name, (text, _) in zip(names, parts, strict=True))
        return f"torch.nn.Sequential(OrderedDict([{pairs}\n    ]))", torch.nn.Sequential(
            OrderedDict(zip(names, fresh, strict=True))
        )
    if cls.__module__.startswith("transformers.") and hasattr(model, "config"):
        config = type(model.config)
        values = expression(draft, model.config.to_dict(), "config")
        made = f"{expression(draft, config, '')}.from_dict({values})"
        return f"{expression(draft, cls, '')}({made})", cls(config.from_dict(model.config.to_dict()))
    given = dict(found_arguments(model, arguments))
    _require_known(model, given, is_part=arguments is None)
    named = []
    for key, value in given.items():
        text = ""
        if isinstance(value, torch.nn.Module):  # a part that the caller made: an encoder, say
            text, given[key] = _construction(value, draft, None)
        named.append(f"{key}={text or expression(draft, value, key)}")
    texts = ", ".join(named)
    try:
        state = torch.random.get_rng_state()
        fresh_model = cls(**given)
        torch.random.set_rng_state(state)
    except Exception as error:
        raise HandlergenError(
            f"{cls.__name__}({texts}) raises {type(error).__name__}: {error}",
            hint="Give the arguments of its constructor: arguments={...}.",
        ) from error
    if cls.__module__.startswith("torch.nn.") and repr(fresh_model) != repr(model):
        raise HandlergenError(
            f"a torch.nn.{cls.__name__} that the arguments ({texts}) do not make again", hint=_EXPORT_INSTEAD
        )
    if cls.__module__.startswith("torch.nn."):
        draft.imports.append("import torch")
        return f"torch.nn.{cls.__name__}({texts})", fresh_model
    return f"{expression(draft, cls, cls.__name__)}({texts})", fresh_model


_OTHER_ARGUMENTS = (
    "Its constructor got other arguments, or layers were changed since: give arguments={...}, or a class that builds "
    "what the object is now."
)
_EXPORT_INSTEAD = (
    "Give a class of your own that builds it, or the exported program: torch.export.export(model, (example_tensor,))."
)


def _require_known(model: Any, arguments: Mapping[str, Any], *, is_part: bool) -> None:
    """Raise HandlergenError where an argument of the constructor is not known, or there is no such parameter."""
    name = type(model).__name__
    parameters = inspect.signature(type(model).__init__).parameters
    rest = any(each.kind is each.VAR_KEYWORD for each in parameters.values())
    if unknown := [key for key in arguments if key not in parameters and not rest]:
        own = ", ".join(list(parameters)[1:]) or "none"
        raise HandlergenError(f"its constructor has no parameter {unknown[0]}", hint=f"{name}(...) has: {own}.")
    if missing := [key for key, value in arguments.items() if value is MISSING]:
        example = ", ".join(f'"{key}": ...' for key in missing)
        raise HandlergenError(
            f"{', '.join(missing)} of {name}(...) {'are' if len(missing) > 1 else 'is'} not known: the object has no "
            "attribute of that name",
            hint=f"Keep it on the object (self.{missing[0]} = {missing[0]}), or give the exported program: "
            "torch.export.export(model, (example_tensor,))."
            if is_part
            else f"Give it: arguments={{{example}}}.",
        )


def _require_fit(fresh: Any, state: Mapping[str, Any], name: str) -> None:
    """Raise HandlergenError unless the weights fit a newly constructed network."""
    own = {key: tuple(value.shape) for key, value in fresh.state_dict().items()}
    other = {key: tuple(value.shape) for key, value in state.items()}
    if own == other:
        return
    places = [
        f"{key}: {other.get(key, 'missing')} in the object, {own.get(key, 'missing')} in a new one"
        for key in {**other, **own}
        if own.get(key) != other.get(key)
    ]
    raise HandlergenError(
        f"the weights of the {name} do not fit a new one:\n  " + "\n  ".join(places[:5]),
        hint=_OTHER_ARGUMENTS,
    )


def _attributes(model: Any, fresh: Any, draft: Draft) -> dict[str, str]:
    """Return what is on the object and not on a new one: attribute -> expression. Raises HandlergenError.

    Labels, means and vocabularies that were put there by the constructor or since.
    """
    found = {}
    for path, owner in model.named_modules():
        try:
            other = fresh.get_submodule(path)
        except AttributeError:
            other = None
        if type(other) is not type(owner):
            made = "nothing" if other is None else f"a {type(other).__name__}"
            raise HandlergenError(f"{path} is a {type(owner).__name__}, and {made} in a new one", hint=_OTHER_ARGUMENTS)
        if type(owner).__module__.startswith("transformers."):
            continue  # its configuration has them
        for name, value in vars(owner).items():
            private = name.startswith("_") and type(owner).__module__.startswith("torch.")
            if private or name in _OF_EVERY_MODULE:
                continue
            place = f"{path}.{name}" if path else name
            target = f'model.get_submodule("{path}").{name}' if path else f"model.{name}"
            if name in vars(other) and _equal(vars(other)[name], value):
                continue
            try:
                text = expression(draft, value, place.replace(".", "_"))
                found[target] = f"{text}.to(context.device)" if isinstance(value, torch.Tensor) else text
            except HandlergenError as error:
                if name in vars(other) and type(vars(other)[name]) is type(value):
                    continue  # made by the constructor
                raise HandlergenError(f"its attribute {place}: {error.message}", hint=error.hint) from error
    return found


def _equal(one: Any, other: Any) -> bool:
    if one is other:
        return True
    try:
        if hasattr(one, "shape") and hasattr(other, "shape"):
            return one.shape == other.shape and bool((one == other).all())
        return type(one) is type(other) and bool(one == other)
    except Exception:
        return False
