"""Flags made from the settings' fields: one flag a setting, with its help and its default."""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Any, TypeVar

import click

from handlergen.settings import SETTINGS, SettingInfo

_Command = TypeVar("_Command", bound=Callable[..., Any])

#: The SOURCE argument says it already.
_NOT_FLAGS = ("source",)


def setting_options(*names: str) -> Callable[[_Command], _Command]:
    """A decorator that adds the flags of some settings, or of all.

    The command receives each under the setting's name, as a Python value, and None when it was not given: write
    `**overrides` and hand them to `open_project`. A flag wins over environment and file.

    Args:
        names: Settings; all that can be flags when there are none.
    """
    chosen = [SETTINGS[name] for name in names] or [s for s in SETTINGS.values() if s.name not in _NOT_FLAGS]

    def decorate(command: _Command) -> _Command:
        for setting in reversed(chosen):
            command = _option(setting)(command)
        return command

    return decorate


def _option(setting: SettingInfo) -> Callable[[_Command], _Command]:
    flags = [setting.flag]
    if setting.name == "devices":
        flags.append("--devices")  # `--devices cpu` reads better than its singular
    return click.option(
        *flags,
        setting.name,
        metavar=setting.kind.metavar,
        multiple=setting.kind.repeatable,
        default=None,
        callback=lambda _context, _parameter, value: _value(setting, value),
        help=_help(setting),
    )


def _value(setting: SettingInfo, raw: str | tuple[str, ...] | None) -> Any:
    """Flag text to the setting's value; a repeated list flag adds up.

    Raises:
        click.BadParameter: With the kind of value wanted.
    """
    if raw is None or raw == ():
        return None
    kind = setting.kind
    try:
        if isinstance(raw, str):
            return kind.convert(kind.parse(raw))
        parsed = [kind.parse(part) for part in raw]
        if all(isinstance(part, list) for part in parsed):
            return kind.convert([item for part in parsed for item in part])
        if all(isinstance(part, dict) for part in parsed):
            return kind.convert({key: item for part in parsed for key, item in part.items()})
        if len(parsed) == 1:
            return kind.convert(parsed[0])
        raise ValueError("it cannot be given together with others")
    except ValueError as error:
        given = raw if isinstance(raw, str) else " ".join(raw)
        reason = "" if type(error) is not ValueError or _pythonic(str(error)) else str(error)
        value = "" if reason.startswith(repr(given)) else repr(given)
        parts = (value, reason, f"expected {kind.wanted}")
        raise click.BadParameter("; ".join(part for part in parts if part)) from error


def _pythonic(message: str) -> bool:
    """What int() and float() say about text; the kind's own words are clearer."""
    return message.startswith(("invalid literal", "could not convert"))


def _help(setting: SettingInfo) -> str:
    """The first sentence; `handlergen.yaml` and the docs have the rest."""
    first = re.split(r"(?<=[.;]) ", setting.help, maxsplit=1)[0].rstrip(".;")
    default = setting.default
    shown = "" if default in (None, "", (), {}) else f"  [default: {default}]"
    repeat = " May be repeated." if setting.kind.repeatable else ""
    return f"{first}.{repeat}{shown}"
