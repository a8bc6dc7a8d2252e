"""The forms, one module each: how a source is recognised, and how its hooks become a contract.

Each module has `recognise` and `inspect`, as in `Form`. Which forms there are is said by the table in
`handlergen.runtime.forms.table`.
"""

from __future__ import annotations

import importlib

from handlergen.inspection.forms.form import Form
from handlergen.runtime.forms import table

__all__ = ["FORMS", "Form", "form_named"]

_MODULES = {name: importlib.import_module(f"{__name__}.{row.module}") for name, row in table.FORMS.items()}

FORMS = tuple(Form(name, module.recognise, module.inspect) for name, module in _MODULES.items())
"""In the order of the table."""


def form_named(name: str) -> Form:
    """Return the form with that name; the setting `form` allows no other."""
    return next(form for form in FORMS if form.name == name)
