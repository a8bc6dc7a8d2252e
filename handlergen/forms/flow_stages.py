"""The types of a flow's stages, and what the second part of a stage may be for each."""

from __future__ import annotations

import ast
import difflib
from collections.abc import Callable
from typing import Any

from handlergen.findings import Findings, Source
from handlergen.settings import archive_path
from handlergen.source_module import base_names
from handlergen.weights_file import pickled_class, weights_format

STAGE_TYPES = (
    "torch",
    "sklearn",
    "sklearn_classifier",
    "sklearn_preprocessor",
    "xgboost_classifier",
    "xgboost_regressor",
    "onnx",
    "spacy",
    "huggingface_pipeline",
    "python",
)

Note = Callable[[ast.AST, str, str], None]
"""Notes a problem: where, what, and what to write instead."""

# What people call a type elsewhere, that no spelling distance would find.
_OTHER_NAMES = {
    "pytorch": "torch",
    "torchscript": "torch",
    "scikit-learn": "sklearn",
    "xgboost": "xgboost_classifier",
    "xgb": "xgboost_classifier",
    "transformers": "huggingface_pipeline",
    "huggingface": "huggingface_pipeline",
    "hf": "huggingface_pipeline",
    "onnxruntime": "onnx",
    "function": "python",
    "sklearn_transformer": "sklearn_preprocessor",
}


def stage_type(source: Source, node: ast.expr, note: Note) -> str | None:
    """The type of a stage; None after noting that there is no such type."""
    if isinstance(node, ast.Attribute):  # model_type.TORCH, as Cerebrium's own module has it
        near = _nearest(node.attr.lower())
        note(node, f"the type `{ast.unparse(node)}` is no string", f'Write "{near or "torch"}".')
        return None
    name = _text(source, node)
    if name is None:
        note(node, f"the type `{ast.unparse(node)}` is no string", f"It may be: {', '.join(STAGE_TYPES)}.")
        return None
    if name in STAGE_TYPES:
        return name
    near = _nearest(name.lower())
    hint = f'Did you mean "{near}"?' if near else f"It may be: {', '.join(STAGE_TYPES)}."
    note(node, f"there is no stage type {name!r}", hint)
    return None


def read_model(source: Source, kind: str, node: ast.expr, note: Note, findings: Findings) -> dict[str, Any]:
    """The second part of a stage that has a model: its file, or what names it.

    Returns:
        `type`, `file` (its place in the archive, or empty), `shown` (for messages), and what only some types have:
        `format` and `class` (torch), `options` (huggingface_pipeline).
    """
    described: dict[str, Any] = {
        "type": kind, "file": "", "shown": "", "format": None, "class": None, "options": {},
    }  # fmt: skip
    if kind == "huggingface_pipeline":
        return _pipeline(source, described, node, note, findings)
    name = _text(source, node)
    if name is None:
        note(node, f"the file `{ast.unparse(node)}` is no string", 'Write its name: "models/encoder.pt".')
        return described
    described["shown"] = name
    path = source.root / name
    if path.exists() and (path.is_file() or kind == "spacy"):
        described["file"] = archive_path(name)
    elif kind == "spacy" and "/" not in name:
        findings.warnings.append(
            f"{source.module.file}:{node.lineno}: there is no directory {name} here: the worker looks for an "
            f"installed spaCy package of that name"
        )
    else:
        what = "is a directory" if path.is_dir() else "does not exist"
        note(node, f"the file {name} {what}", "Write its path relative to the project's directory.")
        return described
    if kind == "torch":
        _torch(source, described, node, note)
    return described


def _torch(source: Source, described: dict[str, Any], node: ast.expr, note: Note) -> None:
    name = described["shown"]
    path = source.root / name
    held = weights_format(path)
    described["format"] = held
    if held in ("torchscript", "exported"):
        return
    if held not in ("state_dict", "safetensors"):
        fix = "Export it: torch.jit.script(model).save(...) or torch.export.save(...)."
        note(node, f"{name} holds no torch model", fix)
        return
    pickled = pickled_class(path)
    if pickled:
        note(
            node,
            f"{name} is a pickle of a whole object ({pickled}), which runs code when it is loaded",
            f'Export TorchScript, torch.jit.script(model).save("{name}"), or a state dict: '
            f'torch.save(model.state_dict(), "{name}").',
        )
        return
    kinds = [item.name for item in _networks(source)]
    if len(kinds) == 1:
        described["class"] = kinds[0]
        return
    found = f"it has {' and '.join(kinds)}" if kinds else "there is none"
    note(
        node,
        f"{name} is a state dict, which needs the one nn.Module class of this module; {found}",
        f'Define it here, or export TorchScript: torch.jit.script(model).save("{name}").',
    )


def _networks(source: Source) -> list[ast.ClassDef]:
    """nn.Module classes of the file that are no other's base or building block by inheritance."""
    found = [
        node
        for node in source.module.classes()
        if any(name.startswith(("torch.nn.", "nn.")) for name in base_names(source.module, node))
    ]
    bases = {base.id for node in found for base in node.bases if isinstance(base, ast.Name)}
    return [node for node in found if node.name not in bases]


def _pipeline(
    source: Source, described: dict[str, Any], node: ast.expr, note: Note, findings: Findings
) -> dict[str, Any]:
    """`{"task": ..., "model": ..., ...}`: the arguments of transformers.pipeline."""
    try:
        options = ast.literal_eval(node)
    except ValueError:
        options = None
    if not isinstance(options, dict) or not isinstance(options.get("task"), str):
        note(
            node,
            "a huggingface_pipeline needs the arguments of transformers.pipeline",
            'Write {"task": "text-classification", "model": "models/sentiment"}.',
        )
        return described
    described["options"] = options
    model = options.get("model")
    described["shown"] = str(model or options["task"])
    if isinstance(model, str) and (source.root / model).is_dir():
        described["file"] = archive_path(model)
    else:
        findings.warnings.append(
            f"{source.module.file}:{node.lineno}: there is no directory {model} here: each worker downloads the "
            f"model when it starts"
        )
    return described


def _text(source: Source, node: ast.expr) -> str | None:
    """A string, written out or as the name of a constant of the module."""
    if isinstance(node, ast.Name) and node.id in source.module.bindings:
        bound = source.module.bindings[node.id].node
        node = bound if isinstance(bound, ast.expr) else node
    return node.value if isinstance(node, ast.Constant) and isinstance(node.value, str) else None


def _nearest(name: str) -> str | None:
    if name in STAGE_TYPES:
        return name
    near = difflib.get_close_matches(name, STAGE_TYPES, n=1, cutoff=0.6)
    return _OTHER_NAMES.get(name) or (near[0] if near else None)
