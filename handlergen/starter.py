"""A starter project: a directory that `check` accepts and `archive` packs before anything is changed in it."""

from __future__ import annotations

from pathlib import Path

from handlergen.errors import HandlergenError
from handlergen.names import propose
from handlergen.settings import SETTINGS_FILE, starter_yaml
from handlergen.templates import template_dir

STARTER_FORMS = ("functions", "model-class", "module", "flow", "sagemaker")
"""Forms that have a starter project."""


def create_starter(directory: Path, *, form: str = "functions") -> tuple[str, tuple[Path, ...]]:
    """Write a starter project.

    Args:
        directory: Made when it does not exist; files of other names may be in it.
        form: One of `STARTER_FORMS`.

    Returns:
        The model's name (the directory's, made valid) and the files written.

    Raises:
        HandlergenError: A file is already there (then nothing is written), or the directory cannot be made.
    """
    if form not in STARTER_FORMS:
        raise HandlergenError(
            f"there is no starter project of the form {form} yet", hint=f"Take: {', '.join(STARTER_FORMS)}."
        )
    starter = template_dir() / "starters" / form
    texts = {
        path.name: path.read_text(encoding="utf-8") for path in sorted(starter.iterdir()) if path.is_file()
    }
    name = propose(directory.resolve().name)
    module = next(file for file in texts if file.endswith(".py"))
    texts[SETTINGS_FILE] = starter_yaml({"name": name, "source": module})
    if directory.exists() and not directory.is_dir():
        raise HandlergenError(f"{directory} is a file", hint="Name a directory, which may be new.")
    taken = [file for file in texts if (directory / file).exists() or (directory / file).is_symlink()]
    if taken:
        raise HandlergenError(
            f"{directory} already has {', '.join(taken)}; nothing was written",
            hint="Name another directory, or move these away.",
        )
    try:
        directory.mkdir(parents=True, exist_ok=True)
        for file, text in texts.items():
            with (directory / file).open("x", encoding="utf-8") as opened:
                opened.write(text)
    except OSError as error:
        raise HandlergenError(
            f"{error.filename or directory} cannot be written: {error.strerror}",
            hint="Name a directory that you may write to.",
        ) from error
    return name, tuple(directory / file for file in texts)
