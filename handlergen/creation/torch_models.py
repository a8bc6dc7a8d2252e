"""An `nn.Module`: its class as source, its weights as a state dict, its constructor's arguments, what else is on it."""

from __future__ import annotations

import inspect
from collections import OrderedDict
from collections.abc import Mapping
from typing import Any

import torch
from torch.nn.parallel import DistributedDataParallel
from torch.nn.utils.parametrize import is_parametrized

from handlergen.creation.draft import Draft
from handlergen.creation.kinds import Options, Sketch
from handlergen.creation.objects import MISSING, differing, found_arguments, same
from handlergen.creation.source_code import write
from handlergen.creation.values import expression
from handlergen.errors import HandlergenError

WEIGHTS = "weights.pt"
_OF_EVERY_MODULE = {"training", *vars(torch.nn.Module())}
_FORWARD_HOOKS = ("_forward_hooks", "_forward_pre_hooks")
_OWN_HOOKS = ("preprocess", "postprocess")
_NOT_ARGUMENTS = ("device", "dtype")


def sketch_network(model: Any, options: Options) -> Sketch:
    """Return the sketch of a network: a module that builds it, loads its weights and calls it.

    Raises:
        HandlergenError: Its class has no source, an argument of its constructor is not known, or what it has besides
            its weights cannot be written down.
    """
    model = getattr(model, "_orig_mod", model)  # of torch.compile
    model = model.module if isinstance(model, torch.nn.DataParallel | DistributedDataParallel) else model
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
    dtypes = list(dict.fromkeys(each.dtype for each in state.values() if each.is_floating_point())) or [torch.float32]
    dtype = dtypes[0]
    cast = "" if dtype == torch.float32 or len(dtypes) > 1 else f".to({dtype})"
    assign = ", assign=True" if len(dtypes) > 1 else ""  # each keeps its own
    lines = "".join(f"    {key} = {text}\n" for key, text in attributes.items())
    draft.hooks["load"] = (
        "def load(context):\n"
        f"    model = {built}{cast}\n"
        f'    weights = torch.load(context.model_dir / "{WEIGHTS}", map_location=context.device, weights_only=True)\n'
        f"    model.load_state_dict(weights{assign})\n"
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
    if isinstance(model, torch.nn.RNNBase):  # LSTM and GRU give the mode themselves
        mode = given.pop("mode", "")
        given |= {"nonlinearity": "relu"} if mode == "RNN_RELU" else {}
    _require_known(model, given, is_part=arguments is None)
    written = {key: _argument(value, draft, key) for key, value in given.items()}
    texts = ", ".join(f"{key}={text}" for key, (text, _) in written.items())
    try:
        state = torch.random.get_rng_state()
        fresh_model = cls(**{key: value for key, (_, value) in written.items()})
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


def _argument(value: Any, draft: Draft, stem: str) -> tuple[str, Any]:
    """Return the expression of a constructor's argument, and the argument for a new network; networks in it are new."""
    if isinstance(value, torch.nn.Module):
        return _construction(value, draft, None)
    if type(value) is list and any(isinstance(each, torch.nn.Module) for each in value):
        parts = [_argument(each, draft, f"{stem}_{number}") for number, each in enumerate(value, 1)]
        return f"[{', '.join(text for text, _ in parts)}]", [part for _, part in parts]
    return expression(draft, value, stem), value


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
        hint = f"Give it: arguments={{{example}}}."
        if name in vars(torch.nn):
            hint = _EXPORT_INSTEAD
        elif is_part:  # `arguments` are those of the whole
            hint = f"Keep it on the object: self.{missing[0]} = {missing[0]}. {_EXPORT_INSTEAD}"
        raise HandlergenError(
            f"{', '.join(missing)} of {name}(...) {'are' if len(missing) > 1 else 'is'} not known: the object has no "
            "attribute of that name",
            hint=hint,
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
        alike = type(other) is type(owner) or (is_parametrized(owner) and type(other).__name__ == type(owner).__name__)
        if other is None or not alike:
            made = "nothing" if other is None else f"a {type(other).__name__}"
            raise HandlergenError(f"{path} is a {type(owner).__name__}, and {made} in a new one", hint=_OTHER_ARGUMENTS)
        if type(owner).__module__.startswith("transformers."):
            continue  # its configuration has them
        if any(len(vars(owner)[hooks]) != len(vars(other)[hooks]) for hooks in _FORWARD_HOOKS):
            raise HandlergenError(
                f"{path or 'it'} has hooks on its forward that its constructor does not register",
                hint="Write what they do into forward, or remove them (of pruning: torch.nn.utils.prune.remove).",
            )
        buffers = {name: owner._buffers[name] for name in owner._non_persistent_buffers_set}  # not in the state dict
        changed = {name: value for name, value in buffers.items() if not same(value, other._buffers.get(name))}
        for name, value in (*differing(owner, other), *changed.items()):
            private = name.startswith("_") and type(owner).__module__.startswith("torch.")
            if private or name in _OF_EVERY_MODULE:
                continue
            place = f"{path}.{name}" if path else name
            target = f'model.get_submodule("{path}").{name}' if path else f"model.{name}"
            try:
                text = expression(draft, value, place.replace(".", "_"))
                found[target] = f"{text}.to(context.device)" if isinstance(value, torch.Tensor) else text
            except HandlergenError as error:
                if name in vars(other) and type(vars(other)[name]) is type(value):
                    continue  # made by the constructor
                raise HandlergenError(f"its attribute {place}: {error.message}", hint=error.hint) from error
    return found
