"""A module-level `FLOW = [...]`: Cerebrium's multi-model flows. Recognised; not supported yet."""

from __future__ import annotations

from handlergen.findings import Source
from handlergen.forms.form import not_supported


def recognise(source: Source) -> str | None:
    """A module-level name `FLOW`."""
    binding = source.module.bindings.get("FLOW")
    return f"`FLOW`, line {binding.line}" if binding else None


FORM = not_supported("flow", recognise)
