"""Sentences of the reasons."""

from __future__ import annotations

from handlergen.placement.result import Reason
from handlergen.placement.values import Site


def reason(hook: str, name: str, site: Site, what: str, fix: str) -> Reason:
    """A reason; `{name}` and `{through}` in `what` are filled in."""
    through = helpers(site)
    said = f" (through {' and '.join(through)})" if through else ""
    what = what.replace("{name}", name).replace("{through}", said)
    return Reason(site.file, site.line, hook, name, through, what, fix)


def helpers(site: Site) -> tuple[str, ...]:
    """The functions between the hook and the site, without the hook."""
    return tuple(dict.fromkeys(site.through[1:]))


def line(where: Site, seen_from: Site) -> str:
    """`line 12`, with the file when it is another one, and with the helpers."""
    place = f"line {where.line}" if where.file == seen_from.file else f"{where.file}:{where.line}"
    through = helpers(where)
    return f"{place} (through {' and '.join(through)})" if through else place
