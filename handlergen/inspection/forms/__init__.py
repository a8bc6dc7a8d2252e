"""The forms, one module each: how a source is recognised, and how its hooks become a contract.

Each module has a `FORM`. Which forms there are is said by the table in `handlergen.runtime.forms.table`.
"""

from __future__ import annotations

import importlib

from handlergen.inspection.forms.form import Form
from handlergen.runtime.forms import table as form_table

__all__ = ["FORMS", "Form", "form_named"]

FORMS: tuple[Form, ...] = tuple(
    importlib.import_module(f"{__name__}.{row.module}").FORM for row in form_table.FORMS.values()
)
"""In the order of the table."""


def form_named(name: str) -> Form:
    """Return the form with that name; the setting `form` allows no other."""
    return next(form for form in FORMS if form.name == name)
