"""The settings of the form `module` held against its class: constructor arguments and weights."""

from __future__ import annotations

import difflib

from handlergen.errors import Problem
from handlergen.findings import Source
from handlergen.forms.module_classes import ModelClass
from handlergen.hook_signatures import plain_parameters
from handlergen.methods import find_method
from handlergen.weights_file import pickled_class


def unused_settings(source: Source) -> list[str]:
    """Warnings: what only the constructor would read."""
    return [
        f"{source.module.file}: {name} has no effect: load(context) makes the module"
        for name in ("model_args", "model_kwargs")
        if getattr(source.settings, name)
    ]


def constructor_problems(source: Source, model: ModelClass) -> list[Problem]:
    """`model_args` and `model_kwargs` must fit `__init__`, where the source shows one."""
    init = find_method(model.module, model.node, "__init__")
    if init is None:
        return []
    settings, file, line = source.settings, model.module.file, init.node.lineno
    parameters = list(plain_parameters(init.node))
    positional = [parameter for parameter in parameters if not parameter.keyword_only]
    problems = []
    if len(settings.model_args) > len(positional) and init.node.args.vararg is None:
        problems.append(
            Problem(
                file,
                line,
                f"model_args has {len(settings.model_args)} values, but {model.name} takes {len(positional)}",
                "Leave the others out.",
            )
        )
    given = {parameter.name for parameter in positional[: len(settings.model_args)]}
    names = [parameter.name for parameter in parameters]
    for name in settings.model_kwargs:
        if name in given:
            fix = "Leave it out of one of them."
            problems.append(Problem(file, line, f"model_args and model_kwargs both give `{name}`", fix))
        elif name not in names and init.node.args.kwarg is None:
            near = difflib.get_close_matches(name, names, n=1)
            fix = f"Did you mean `{near[0]}`?" if near else f"It takes: {', '.join(names) or 'nothing'}."
            problems.append(
                Problem(file, line, f"{model.name} has no parameter `{name}` (model_kwargs)", fix)
            )
    missing = [p.name for p in parameters if p.required and p.name not in {*given, *settings.model_kwargs}]
    if missing:
        problems.append(
            Problem(
                file,
                line,
                f"{model.name} needs {', '.join(f'`{name}`' for name in missing)} to be made",
                f"Write model_kwargs: {{{', '.join(f'{name}: ...' for name in missing)}}}, or a load(context) that "
                f"returns the finished module.",
            )
        )
    return problems


def weights_problems(source: Source, model: ModelClass) -> list[Problem]:
    """Weights must be a state dict, or a pickle that was asked for."""
    weights, held = source.settings.weights, source.weights_format
    if not weights or held is None or held in ("safetensors", "pickle"):
        return []
    export = f'torch.save(model.state_dict(), "{weights}")'
    if held != "state_dict":
        return [
            Problem(
                source.module.file,
                0,
                f"the weights {weights} ({held}) are no state dict, which {model.name} could load",
                f"Write them with {export}, or write load(context).",
            )
        ]
    pickled = pickled_class(source.root / weights)
    if pickled is None:
        return []
    return [
        Problem(
            source.module.file,
            0,
            f"the weights {weights} are a pickle of a whole object ({pickled}), which runs code when it is loaded",
            f"Export a state dict: {export}. If you trust the file, say so: weights_format: pickle.",
        )
    ]
