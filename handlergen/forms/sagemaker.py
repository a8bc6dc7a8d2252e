"""`model_fn`, `input_fn`, `predict_fn`, `output_fn`: SageMaker's PyTorch toolkit. Recognised; not supported yet."""

from __future__ import annotations

from handlergen.findings import Source
from handlergen.forms.form import not_supported

_HOOKS = ("model_fn", "input_fn", "predict_fn", "output_fn")


def recognise(source: Source) -> str | None:
    """Any of the toolkit's four functions."""
    for name in _HOOKS:
        binding = source.module.bindings.get(name)
        if binding:
            return f"`{name}`, line {binding.line}"
    return None


FORM = not_supported("sagemaker", recognise)
