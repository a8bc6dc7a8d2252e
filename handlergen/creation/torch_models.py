"""An `nn.Module`: its class as source, its weights as a state dict, its constructor's arguments, what else is on it."""

from __future__ import annotations

import inspect
from collections.abc import Mapping
from typing import Any

from handlergen.creation.draft import Draft
from handlergen.creation.kinds import Options, Sketch
from handlergen.creation.source_code import Writer, write_callable
from handlergen.creation.values import NotWritable, expression, own_source
from handlergen.errors import HandlergenError

WEIGHTS = "weights.pt"
_OF_EVERY_MODULE = ("training", "dump_patches")
_OWN_HOOKS = ("preprocess", "postprocess")
_NOT_ARGUMENTS = ("device", "dtype")


def sketch_network(model: Any, options: Options) -> Sketch:
    """Return the sketch of a network: a module that builds it, loads its weights and calls it.

    Raises:
        HandlergenError: Its class has no source, an argument of its constructor is not known, or what it has besides
            its weights cannot be written down.
    """
    import torch

    name = type(model).__name__
    draft = Draft()
    writer = Writer(draft)
    try:
        built, fresh = _construction(model, writer, options.arguments)
        attributes = _attributes(model, fresh, writer)
    except NotWritable as error:
        raise HandlergenError(f"the {name}: {error}", hint=error.advice or None) from error
    state = {key: value.detach().cpu() for key, value in model.state_dict().items()}
    _require_fit(fresh, state, name)
    draft.files[WEIGHTS] = lambda target: torch.save(state, target)
    draft.settings |= {"form": "functions", "weights": WEIGHTS}
    draft.imports.append("import torch")
    dtype = next((each.dtype for each in state.values() if each.is_floating_point()), torch.float32)
    cast = "" if dtype == torch.float32 else f".to({dtype})"
    lines = "".join(f"    model.{key} = {text}\n" for key, text in attributes.items())
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
    return Sketch(f"A network, {name}.", draft, {"load": lambda: model, "predict": call})


def _call(model: Any, dtype: Any) -> tuple[Any, str]:
    """Return how the live network is called, and the source of `predict`, which does the same."""
    import torch

    first = next((part for part in model.modules() if next(part.parameters(recurse=False), None) is not None), None)
    kind = torch.int64 if isinstance(first, torch.nn.Embedding | torch.nn.EmbeddingBag) else dtype
    parameters = inspect.signature(model.forward).parameters.values()
    several = len([each for each in parameters if each.kind is not each.VAR_KEYWORD]) > 1
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
            "    if isinstance(inputs, dict):\n"
            "        return model(**{name: tensor(value) for name, value in inputs.items()})\n"
            "    return model(*map(tensor, inputs)) if isinstance(inputs, tuple) else model(tensor(inputs))\n"
        )
    return predict, f"def predict(model, inputs, device):\n{body}"


def _construction(model: Any, writer: Writer, arguments: Mapping[str, Any] | None) -> tuple[str, Any]:
    """Return the expression that constructs such a network, and a network so constructed. Raises NotWritable."""
    import torch

    cls = type(model)
    if cls in (torch.nn.Sequential, torch.nn.ModuleList):
        parts = [_construction(part, writer, None) for part in model]
        texts = "".join(f"\n        {text}," for text, _ in parts)
        names = list(model._modules)
        fresh = [part for _, part in parts]
        writer.draft.imports.append("import torch")
        if names == [str(number) for number in range(len(names))]:
            inside = f"{texts}\n    " if cls is torch.nn.Sequential else f"[{texts}\n    ]"
            return f"torch.nn.{cls.__name__}({inside})", cls(*fresh) if cls is torch.nn.Sequential else cls(fresh)
        writer.draft.imports.append("from collections import OrderedDict")
        pairs = "".join(f"\n        ({name!r}, {text})," for name, (text, _) in zip(names, parts, strict=True))
        from collections import OrderedDict

        made = OrderedDict(zip(names, fresh, strict=True))
        return f"torch.nn.Sequential(OrderedDict([{pairs}\n    ]))", torch.nn.Sequential(made)
    given = _arguments(model, arguments)
    texts = ", ".join(f"{key}={expression(value, key, writer)}" for key, value in given.items())
    try:
        state = torch.random.get_rng_state()
        fresh_model = cls(**given)
        torch.random.set_rng_state(state)
    except Exception as error:
        raise NotWritable(
            f"{cls.__name__}({texts}) raises {type(error).__name__}: {error}",
            "give the arguments of its constructor: arguments={...}",
        ) from error
    if cls.__module__.startswith("torch.nn.") and repr(fresh_model) != repr(model):
        raise NotWritable(
            f"a torch.nn.{cls.__name__} that the arguments {texts or '()'} do not make again", _EXPORT_INSTEAD
        )
    return f"{_class_name(cls, writer)}({texts})", fresh_model


_EXPORT_INSTEAD = (
    "give a class of your own that builds it, or the exported program: torch.export.export(model, (example_tensor,))"
)


def _class_name(cls: type, writer: Writer) -> str:
    if cls.__module__.startswith("torch.nn."):
        writer.draft.imports.append("import torch")
        return f"torch.nn.{cls.__name__}"
    if cls.__module__ in ("__main__", "__mp_main__") or own_source(cls.__module__) is not None:
        write_callable(writer.draft, cls.__name__, cls)
        return cls.__name__
    return writer.reference(cls)


def _arguments(model: Any, given: Mapping[str, Any] | None) -> dict[str, Any]:
    """Return the arguments of a network's constructor: the caller's, then those that are attributes of these names.

    Raises:
        NotWritable: One without a default is neither.
    """
    found = dict(given or {})
    parameters = inspect.signature(type(model).__init__).parameters
    rest = any(each.kind is each.VAR_KEYWORD for each in parameters.values())
    if unknown := [name for name in found if name not in parameters and not rest]:
        raise NotWritable(
            f"its constructor has no parameter {unknown[0]}", f"it has {', '.join(list(parameters)[1:]) or 'none'}"
        )
    missing = []
    for name, each in list(parameters.items())[1:]:
        if name in found or each.kind in (each.VAR_POSITIONAL, each.VAR_KEYWORD) or name in _NOT_ARGUMENTS:
            continue
        value = getattr(model, name, each.empty)
        if name == "bias" and not isinstance(value, bool):
            value = value is not None and value is not each.empty
        is_part = hasattr(value, "parameters") or hasattr(value, "requires_grad") or inspect.ismethod(value)
        if value is not each.empty and not is_part:
            if value is not each.default and not _is_default(value, each.default):
                found[name] = value
        elif each.default is each.empty:
            missing.append(name)
    if missing:
        raise NotWritable(
            f"the argument{'s' if len(missing) > 1 else ''} {', '.join(missing)} of {type(model).__name__}(...) "
            f"{'are' if len(missing) > 1 else 'is'} not known: the object has no attribute of that name",
            "give it: arguments={" + ", ".join(f'"{name}": ...' for name in missing) + "}",
        )
    return found


def _is_default(value: Any, default: Any) -> bool:
    try:
        if isinstance(value, tuple) and not isinstance(default, tuple):  # a Conv2d's stride=1 becomes (1, 1)
            return bool(value) and all(each == default for each in value)
        return type(value) is type(default) and bool(value == default)
    except Exception:  # arrays compare element by element
        return False


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
        hint="its constructor got other arguments, or layers were changed since: give arguments={...}, or a class that "
        "builds what the object is now",
    )


def _attributes(model: Any, fresh: Any, writer: Writer) -> dict[str, str]:
    """Return what is on the object and not on a new one: attribute -> expression. Raises NotWritable.

    Labels, means and vocabularies that were put there by the constructor or since.
    """
    found = {}
    for path, owner in model.named_modules():
        other = fresh.get_submodule(path) if path else fresh
        for name, value in vars(owner).items():
            if name.startswith("_") or name in _OF_EVERY_MODULE:
                continue
            place = f"{path}.{name}" if path else name
            if name in vars(other) and _equal(vars(other)[name], value):
                continue
            try:
                found[place] = expression(value, place.replace(".", "_"), writer)
            except NotWritable as error:
                if name in vars(other) and type(vars(other)[name]) is type(value):
                    continue  # made by the constructor
                raise NotWritable(f"its attribute {place}: {error}", error.advice) from error
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
