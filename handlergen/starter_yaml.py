"""The commented `handlergen.yaml` of a starter project, made from the settings' own metadata."""

from __future__ import annotations

import textwrap
from collections.abc import Mapping
from typing import Any

import yaml

from handlergen.setting_fields import SETTINGS, SettingInfo

_WIDTH = 96
_HEADING = "Settings of this model. A line that is commented out shows the default, or else an example."


def starter_yaml(values: Mapping[str, Any] | None = None, *, heading: str = "") -> str:
    """The text of a `handlergen.yaml` that explains every setting.

    Args:
        values: Settings to write out; all others stand as comments with their defaults.
        heading: The first comment line, without `#`.

    Returns:
        YAML that `load_settings` reads back as `values`.
    """
    written = dict(values or {})
    lines = [f"# {heading or _HEADING}"]
    lines += [
        "# An environment variable wins over this file (HANDLERGEN_BATCH_SIZE=8), a flag over both "
        "(--batch-size 8).",
    ]
    group = ""
    for setting in SETTINGS.values():
        if setting.group != group:
            group = setting.group
            lines += ["", f"# ---- {group} ".ljust(_WIDTH, "-")]
        lines += ["", *(f"# {line}" for line in textwrap.wrap(setting.help, _WIDTH))]
        lines.append(_line(setting, written))
    return "\n".join(lines) + "\n"


def _line(setting: SettingInfo, written: Mapping[str, Any]) -> str:
    if setting.name in written:
        return f"{setting.name}: {_yaml(written[setting.name])}"
    if setting.example:
        return f"# {setting.name}: {setting.example}"
    shown = "" if setting.default is None else f" {_yaml(setting.default)}"
    return f"# {setting.name}:{shown}"


def _yaml(value: Any) -> str:
    """A value in YAML's flow style, on one line."""
    plain = list(value) if isinstance(value, tuple) else value
    text: str = yaml.safe_dump(plain, default_flow_style=True, width=10_000, allow_unicode=True)
    return text.removesuffix("\n").removesuffix("\n...")
