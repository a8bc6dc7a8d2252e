"""transformers: pipelines, models, and pairs of a model and its tokenizer (or processor)."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from handlergen.creation.draft import Draft
from handlergen.creation.kinds import Options, Sketch, family
from handlergen.creation.requirements import requirement_of
from handlergen.creation.source_code import write
from handlergen.errors import HandlergenError

_DIRECTORY = "pretrained"
_PLAIN = (str, int, float, bool, type(None))


def sketch_transformers(model: Any, options: Options) -> Sketch:
    """Return the sketch of `transformers.pipeline(...)`, a model, or `(model, tokenizer)`.

    Everything is written by `save_pretrained`: weights as safetensors, configuration and vocabulary as text.

    Raises:
        HandlergenError: A class is the user's own, or an argument of the pipeline cannot be written down.
    """
    if family(model) & {"sentence_transformers"}:
        return _sentences(model)
    import transformers

    if isinstance(model, transformers.Pipeline):
        return _pipeline(model)
    network, tokenizer = model if isinstance(model, tuple) else (model, None)
    if not isinstance(network, transformers.PreTrainedModel):
        raise HandlergenError(
            f"a {type(network).__name__} of transformers is no model",
            hint="Give a pipeline, a model, or (model, tokenizer): the model comes first.",
        )
    return _network(network, tokenizer, options)


def _draft() -> Draft:
    draft = Draft(write)
    draft.settings["requirements"] = [requirement_of("transformers"), requirement_of("safetensors")]
    return draft


def _pipeline(model: Any) -> Sketch:
    given = {**model._preprocess_params, **model._forward_params, **model._postprocess_params}
    arguments = {name: value for name, value in given.items() if not name.startswith("_")}
    for name, value in arguments.items():
        if not _is_plain(value):
            raise HandlergenError(
                f"the pipeline's argument {name} is a {type(value).__name__}, which cannot be written down",
                hint="Make the pipeline without it, and let predict=, a function predict(model, inputs), pass it.",
            )
    draft = _draft()
    draft.imports.append("from transformers import pipeline")
    draft.files[_DIRECTORY] = model.save_pretrained
    dtype = model.model.dtype
    shown = {**arguments, **({} if str(dtype) == "torch.float32" else {"dtype": "auto"})}
    lines = [
        f'        "{model.task}",',
        f'        model=str(context.model_dir / "{_DIRECTORY}"),',
        *(f"        {name}={value!r}," for name, value in shown.items()),
        "        device=context.device,",
    ]
    draft.hooks["load"] = "\n".join(["def load(context):", "    return pipeline(", *lines, "    )", ""])
    draft.hooks["predict"] = "def predict(model, inputs):\n    return model(inputs)\n"
    return Sketch(f"A transformers pipeline for {model.task}.", draft, {"load": lambda: model})


def _sentences(model: Any) -> Sketch:
    draft = _draft()
    draft.settings["requirements"].append(requirement_of("sentence_transformers"))
    draft.imports.append("from sentence_transformers import SentenceTransformer")
    draft.files[_DIRECTORY] = model.save_pretrained
    draft.hooks["load"] = (
        "def load(context):\n"
        f'    return SentenceTransformer(str(context.model_dir / "{_DIRECTORY}"), device=str(context.device))\n'
    )
    draft.hooks["predict"] = "def predict(model, inputs):\n    return model.encode(inputs)\n"
    return Sketch("A SentenceTransformer: texts to vectors.", draft, {"load": lambda: model})


def _network(network: Any, tokenizer: Any, options: Options) -> Sketch:
    draft = _draft()
    name = _public_name(network)
    draft.imports.append(f"from transformers import {name}")
    draft.files[_DIRECTORY] = lambda path: _save(path, network, tokenizer)
    dtype = "" if str(network.dtype) == "torch.float32" else ', dtype="auto"'
    draft.hooks["load"] = (
        "def load(context):\n"
        f'    model = {name}.from_pretrained(context.model_dir / "{_DIRECTORY}"{dtype})\n'
        "    return model.to(context.device).eval()\n"
    )
    live = {"load": lambda: network}
    if tokenizer is not None and "preprocess" not in options.hooks:
        live |= _with_tokenizer(draft, tokenizer)
    generate = network.can_generate() and "postprocess" not in options.hooks and hasattr(tokenizer, "batch_decode")
    if generate:
        draft.hooks["predict"] = (
            "def predict(model, inputs):\n"
            '    """The token ids of the generated texts, by the model\'s own generation settings."""\n'
            "    return model.generate(**inputs)\n"
        )
        if "preprocess" not in options.hooks:
            draft.hooks["postprocess"] = (
                "def postprocess(outputs):\n    return tokenizer.batch_decode(outputs, skip_special_tokens=True)\n"
            )
    else:
        draft.hooks["predict"] = (
            "def predict(model, inputs):\n"
            "    outputs = model(**inputs)\n"
            "    return {name: value for name, value in outputs.items() if value is not None}\n"
        )
    pair = "" if tokenizer is None else f", with its {type(tokenizer).__name__}"
    return Sketch(f"A {name} of transformers{pair}.", draft, live)


def _with_tokenizer(draft: Draft, tokenizer: Any) -> dict[str, Any]:
    """Add a preprocess that tokenizes, in each worker; return its live counterparts."""
    kind = _public_name(tokenizer)
    draft.imports += ["from pathlib import Path", f"from transformers import {kind}"]
    draft.definitions.append(f'tokenizer = {kind}.from_pretrained(Path(__file__).parent / "{_DIRECTORY}")')
    padding = ", padding=True" if getattr(tokenizer, "pad_token", None) else ""
    draft.hooks["preprocess"] = (
        "def preprocess(data):\n"
        '    """A text, or a list of texts, to token ids."""\n'
        f'    return dict(tokenizer(data, return_tensors="pt"{padding}, truncation=True))\n'
    )
    return {"tokenizer": tokenizer}


def _public_name(model: Any) -> str:
    import transformers

    name = type(model).__name__
    if getattr(transformers, name, None) is not type(model):
        raise HandlergenError(
            f"{name} is a class that transformers itself does not have",
            hint="Give functions load(context) and predict(model, inputs) that use it, or an nn.Module around it.",
        )
    return name


def _save(path: Path, network: Any, tokenizer: Any) -> None:
    network.save_pretrained(path)
    if tokenizer is not None:
        tokenizer.save_pretrained(path)


def _is_plain(value: Any) -> bool:
    if isinstance(value, list | tuple):
        return all(map(_is_plain, value))
    if isinstance(value, dict):
        return all(isinstance(name, str) and _is_plain(item) for name, item in value.items())
    return isinstance(value, _PLAIN)
