"""The table of forms: every row has its parts, and nothing else names a form."""

from __future__ import annotations

import ast
import importlib
from pathlib import Path

import handlergen
from handlergen.inspection.forms import FORMS as INSPECTED
from handlergen.project.templates import template_dir
from handlergen.runtime.forms.table import DEFAULT_FORM, FORMS

PACKAGE = Path(handlergen.__file__).resolve().parent

#: Besides the forms' own files: a Truss is of one form; where stages run depends on which functions load the model.
NAME_FORMS = ("project/truss.py", "inspection/stage_rule.py")


def test_every_row_has_its_parts() -> None:
    assert [form.name for form in INSPECTED] == list(FORMS)
    for name, row in FORMS.items():
        module = importlib.import_module(f"handlergen.runtime.forms.{row.module}")
        for method in ("setup", "load", "load_without_model", "hooks", "is_healthy"):
            assert callable(getattr(module.USER_MODULE, method)), (name, method)
        assert list((template_dir() / "starters" / name).glob("*.py")), name
    assert DEFAULT_FORM in FORMS


def test_nothing_else_names_a_form() -> None:
    names = {"model-class", "sagemaker"}  # the others are words that mean something else as well
    found = []
    for path in sorted(PACKAGE.rglob("*.py")):
        place = path.relative_to(PACKAGE).as_posix()
        if place.startswith(("inspection/forms/", "runtime/forms/", *NAME_FORMS)):
            continue
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Constant) and isinstance(node.value, str) and node.value in names:
                found.append(f"{place}:{node.lineno}")
    assert not found
