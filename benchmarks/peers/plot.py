"""Requests per second of every subject, a panel a workload, as an SVG that needs nothing else."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from html import escape
from typing import Any

from peers.figures import medians
from peers.report import turns_of
from peers.subject import Subject

_WIDTH, _LABEL, _ROW, _HEAD = 860, 330, 20, 46
_STYLE = """
text { font: 13px system-ui, sans-serif; fill: #24292f }
.head { font-weight: 600 }
.bar { fill: #8c959f }
.ours { fill: #0969da }
.free { fill: none; stroke: #8c959f; stroke-dasharray: 3 2 }
@media (prefers-color-scheme: dark) { text { fill: #e6edf3 } .ours { fill: #4493f8 } }
"""


def svg(workloads: Sequence[Mapping[str, Any]], subjects: Mapping[str, Subject], *, clients: int) -> str:
    """The plot. Filled: predictions one at a time; blue: handlergen; dashed: nothing keeps them apart."""
    parts: list[str] = []
    top = 10
    for workload in workloads:
        panel = list(_panel(workload, subjects, clients=clients, top=top))
        parts += panel
        top += _HEAD + _ROW * (len(panel) // 3)
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {_WIDTH} {top}" width="{_WIDTH}" role="img" '
        f'aria-label="Requests per second of each server">\n<style>{_STYLE}</style>\n' + "\n".join(parts) + "\n</svg>\n"
    )


def _panel(workload: Mapping[str, Any], subjects: Mapping[str, Subject], *, clients: int, top: int) -> Iterator[str]:
    """A heading, then three elements a subject."""
    found = medians(turns_of(workload))
    rates = {key: figures["requests_per_s"] for (key, n), figures in found.items() if n == clients}
    yield (
        f'<text class="head" x="0" y="{top + 18}">{escape(workload["title"])}: requests/s with {clients} clients</text>'
    )
    scale = (_WIDTH - _LABEL - 70) / max(rates.values(), default=1.0)
    for index, key in enumerate(sorted(rates, key=lambda key: -rates[key])):
        y = top + 28 + index * _ROW
        kind = "ours" if key.startswith("handlergen") else "bar" if subjects[key].serializes else "free"
        width = max(1.0, rates[key] * scale)
        title = escape(re.sub("[*`]", "", subjects[key].title))
        yield f'<text x="{_LABEL - 8}" y="{y + 12}" text-anchor="end">{title}</text>'
        yield f'<rect class="{kind}" x="{_LABEL}" y="{y + 1}" width="{width:.1f}" height="14" rx="2"/>'
        yield f'<text x="{_LABEL + width + 6:.1f}" y="{y + 12}">{rates[key]:,.0f}</text>'
