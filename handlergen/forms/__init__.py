"""The ways a module may be written, one small module each.

To add a form: write `forms/NAME.py` with a `FORM`, and put it into `FORMS`. What is served at run time is the
runtime's matter (`handlergen/runtime/user_module.py`).
"""

from __future__ import annotations

from handlergen.forms import flow, functions, model_class, module, sagemaker, torchserve_handler
from handlergen.forms.form import Form

__all__ = ["FORMS", "REFUSED", "Form", "form_named"]

FORMS: tuple[Form, ...] = (functions.FORM, model_class.FORM, module.FORM, flow.FORM, sagemaker.FORM)
"""In the order of the contract, section 1."""

REFUSED: tuple[Form, ...] = (torchserve_handler.FORM,)
"""What needs no handlergen; looked for first."""


def form_named(name: str) -> Form:
    """The form of that name; the setting `form` allows no other."""
    return next(form for form in FORMS if form.name == name)
