"""Which class of a source is the model: an nn.Module with `preprocess` or `postprocess` of its own."""

from __future__ import annotations

import ast
from dataclasses import dataclass

from handlergen.findings import Source
from handlergen.methods import find_method
from handlergen.source_module import SourceModule, base_names, dotted

OWN_HOOKS = ("preprocess", "postprocess")
"""What makes an nn.Module a model of this form."""

_BASES = ("nn.Module", "pytorch_lightning.LightningModule", "lightning.LightningModule")


@dataclass(frozen=True)
class ModelClass:
    """A class that may be the model.

    Attributes:
        name: What the user's module calls it.
        node: Its definition.
        module: The file that defines it.
    """

    name: str
    node: ast.ClassDef
    module: SourceModule

    @property
    def hooks(self) -> list[str]:
        return [name for name in OWN_HOOKS if find_method(self.module, self.node, name)]

    @property
    def evidence(self) -> str:
        return f"class {self.name}, an nn.Module with {' and '.join(self.hooks)}, line {self.node.lineno}"


def candidates(source: Source) -> list[ModelClass]:
    """Classes with hooks of their own; a base of another one is not meant."""
    found = [
        candidate
        for node in source.module.classes()
        if (candidate := ModelClass(node.name, node, source.module)).hooks and is_module(source.module, node)
    ]
    if not found and "predict" not in source.module.bindings:
        found = _imported(source)
    bases = {
        dotted(base) for candidate in found for base in _all_bases(candidate.module, candidate.node, set())
    }
    return [candidate for candidate in found if candidate.name not in bases]


def _imported(source: Source) -> list[ModelClass]:
    """Classes from the project's other files: `from .network import Network` in an `__init__.py`."""
    found = []
    for binding in source.module.bindings.values():
        if not isinstance(binding.node, ast.ImportFrom) or not binding.imported:
            continue
        path = source.tree.local_file(source.module, binding.node)
        module = source.tree.open(path) if path else None
        if not isinstance(module, SourceModule):
            continue
        defined = module.bindings.get(binding.imported)
        if defined and isinstance(defined.node, ast.ClassDef) and is_module(module, defined.node):
            candidate = ModelClass(binding.name, defined.node, module)
            found += [candidate] if candidate.hooks else []
    return found


def is_module(module: SourceModule, node: ast.ClassDef) -> bool:
    """nn.Module itself, or one of torch's modules such as nn.Sequential."""
    return any(name.startswith("torch.nn.") or name in _BASES for name in base_names(module, node))


def _all_bases(module: SourceModule, node: ast.ClassDef, seen: set[str]) -> list[ast.expr]:
    bases = list(node.bases)
    for base in node.bases:
        name = dotted(base)
        binding = module.bindings.get(name)
        if binding and isinstance(binding.node, ast.ClassDef) and name not in seen:
            seen.add(name)
            bases += _all_bases(module, binding.node, seen)
    return bases
