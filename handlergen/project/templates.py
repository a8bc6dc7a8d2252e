"""Templates: where they are, and how one is filled in."""

from __future__ import annotations

from functools import cache
from pathlib import Path

import jinja2


def template_dir() -> Path:
    """Return the directory of the templates: in an installed handlergen, or `templates/` of a source checkout.

    A wheel carries the repository's top-level `templates/` as `handlergen/_templates`; an editable install
    has no such copy and reads the repository's own.

    Raises:
        FileNotFoundError: Neither exists; the installation is broken.
    """
    package = Path(__file__).resolve().parents[1]
    for candidate in (package / "_templates", package.parent / "templates"):
        if candidate.is_dir():
            return candidate
    raise FileNotFoundError(f"handlergen's templates are missing: neither _templates nor ../templates in {package}")


def render(name: str, **values: object) -> str:
    """Fill `values` into the template `name` (a file name in `template_dir()`).

    Raises:
        jinja2.UndefinedError: The template uses a value that is missing.
    """
    return _environment().get_template(name).render(**values)


@cache
def _environment() -> jinja2.Environment:
    return jinja2.Environment(
        loader=jinja2.FileSystemLoader(template_dir()),
        undefined=jinja2.StrictUndefined,
        autoescape=False,  # noqa: S701 - the output is Python and configuration text, never HTML
        keep_trailing_newline=True,
        trim_blocks=True,
        lstrip_blocks=True,
    )
