"""The dashboard, docs/metrics.md and alerts.yaml: Grafana's own types read it; all metrics they ask for are there."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import promql_parser
import pytest
import yaml

from handlergen.project.templates import template_dir
from handlergen.runtime.telemetry.stages import STAGE_NAMES, label_of

DOCS = Path(__file__).resolve().parents[2] / "docs"
DASHBOARD: dict[str, Any] = json.loads((DOCS / "grafana-dashboard.json").read_text(encoding="utf-8"))
PANELS: list[dict[str, Any]] = DASHBOARD["panels"]
EXPRESSIONS = [target["expr"] for panel in PANELS for target in panel["targets"]]
PAGE = (DOCS / "metrics.md").read_text(encoding="utf-8")
ALERTS = [
    rule
    for group in yaml.safe_load((DOCS / "alerts.yaml").read_text(encoding="utf-8"))["groups"]
    for rule in group["rules"]
]


def documented() -> list[str]:
    """The expressions of the page and of the alerts."""
    (asked,) = re.findall(r"^```promql\n(.*?)^```$", PAGE, re.MULTILINE | re.DOTALL)
    return asked.split("\n\n") + [rule["expr"] for rule in ALERTS]


def lost(given: Any, kept: Any, place: str = "") -> Iterator[str]:
    """What of a JSON value is not in another one."""
    if isinstance(given, dict) and isinstance(kept, dict):
        for key, value in given.items():
            if key in kept:
                yield from lost(value, kept[key], f"{place}/{key}")
            else:
                yield f"{place}/{key}"
    elif isinstance(given, list) and isinstance(kept, list) and len(given) == len(kept):
        for index, pair in enumerate(zip(given, kept, strict=True)):
            yield from lost(*pair, f"{place}/{index}")
    elif given != kept:
        yield f"{place}: {given!r}, {kept!r}"


def test_grafanas_types_know_every_key() -> None:
    """They are generated from Grafana's schema, and drop what it does not have."""
    pytest.importorskip("grafana_foundation_sdk", reason="needs Python 3.11")
    from grafana_foundation_sdk.cog.encoder import JSONEncoder
    from grafana_foundation_sdk.cog.plugins import register_default_plugins
    from grafana_foundation_sdk.models.dashboard import Dashboard

    register_default_plugins()
    read = json.loads(JSONEncoder().encode(Dashboard.from_json(DASHBOARD)))
    assert list(lost(DASHBOARD, read)) == []
    wrong = json.loads(json.dumps(DASHBOARD))
    wrong["panels"][0]["fieldConfig"]["defaults"]["custom"]["drawStile"] = "bars"
    read = json.loads(JSONEncoder().encode(Dashboard.from_json(wrong)))
    assert list(lost(wrong, read)) == ["/panels/0/fieldConfig/defaults/custom/drawStile"]


def selectors(node: Any) -> Iterator[promql_parser.VectorSelector]:
    """Every selector of an expression."""
    if isinstance(node, promql_parser.VectorSelector):
        yield node
    for name in ("lhs", "rhs", "expr", "vector_selector", "vs", "args"):
        child = getattr(node, name, None)
        for each in child if isinstance(child, list) else [child]:
            if each is not None and not isinstance(node, promql_parser.VectorSelector):
                yield from selectors(each)


def declared() -> dict[str, set[str]]:
    """Metric -> labels, as Prometheus has them."""
    file = yaml.safe_load((template_dir() / "metrics.yaml").read_text(encoding="utf-8"))
    return {"up": {"instance", "job"}} | {
        metric["name"]: {*metric["dimensions"], "Hostname", "instance", "job"}
        for section in ("ts_metrics", "model_metrics")
        for metrics in file[section].values()
        for metric in metrics
    }


def test_expressions_ask_for_metrics_that_there_are() -> None:
    metrics = declared()
    wrong = []
    for expression in EXPRESSIONS + documented():
        found = list(selectors(promql_parser.parse(expression.replace("$__rate_interval", "1m"))))
        if not found:
            wrong.append((expression, "asks for nothing"))
        for selector in found:
            labels = {matcher.name for matcher in selector.matchers.matchers}
            if not labels <= metrics.get(selector.name, set()):
                wrong.append((expression, selector.name))
    assert wrong == []


def test_histograms_are_counted_by_their_bounds() -> None:
    quantiles = [text for text in EXPRESSIONS if text.startswith("histogram_quantile")]
    assert len(quantiles) == 2
    assert all("sum by (stage, le) (rate(handlergen_stage_seconds_bucket{" in text for text in quantiles)


def test_every_metric_of_handlergen_has_a_panel() -> None:
    shown = {
        selector.name
        for text in EXPRESSIONS
        for selector in selectors(promql_parser.parse(text.replace("$__rate_interval", "1m")))
    }
    left_out = {name for name in declared() if name.startswith("handlergen_")} - shown
    # The mean batch stands for its distribution, sums and buckets of stages for their count. The examples' gauge never
    # changes after the start.
    left = {"handlergen_batch_size_bucket", "handlergen_stage_seconds_count", "handlergen_examples_right"}
    assert left_out == left


def test_the_page_names_every_alert() -> None:
    page = (DOCS / "production.md").read_text(encoding="utf-8")
    assert [rule["alert"] for rule in ALERTS if f"`{rule['alert']}`" not in page] == []


def test_the_page_has_every_metric_and_label() -> None:
    assert len(documented()) == 11
    for name, labels in declared().items():
        if name.startswith("handlergen_"):
            base = re.sub("_(bucket|sum|count)$", "", name)
            assert f"| `{base}" in PAGE
            assert all(f"`{label}`" in PAGE for label in labels - {"instance", "job"})


def test_panels_have_a_place_and_the_chosen_source() -> None:
    taken: set[tuple[int, int]] = set()
    for panel in PANELS:
        at = panel["gridPos"]
        cells = {(x, y) for x in range(at["x"], at["x"] + at["w"]) for y in range(at["y"], at["y"] + at["h"])}
        assert not cells & taken
        assert max(x for x, _ in cells) < 24
        taken |= cells
        assert {target["datasource"]["uid"] for target in panel["targets"]} == {"${datasource}"}
        assert panel["title"]
        assert panel["description"].endswith(".")
    assert len({panel["id"] for panel in PANELS}) == len(PANELS)


def test_variables_stand_before_those_that_need_them() -> None:
    names = [variable["name"] for variable in DASHBOARD["templating"]["list"]]
    assert names == ["datasource", "model", "version", "device"]
    for index, variable in enumerate(DASHBOARD["templating"]["list"][1:], 1):
        asked = json.dumps(variable)
        assert not [name for name in names[index:] if f"${name}" in asked]


def test_a_stage_that_is_not_known_has_a_label_too() -> None:
    assert label_of("lock_wait") == "lock wait"
    assert label_of("some_other") == "some other"


def test_the_dashboard_asks_for_stages_that_there_are() -> None:
    choices = [found for text in EXPRESSIONS for found in re.findall(r'stage=~?"([^"]+)"', text)]
    named = {name for choice in choices for name in choice.split("|")}
    assert {"lock_wait", "predict"} <= named <= set(STAGE_NAMES)


def test_the_documents_explain_every_stage() -> None:
    table = PAGE.split("| stage | from, to |")[1].split("\n\n")[0]
    assert set(re.findall(r"`(\w+)`", "".join(line.split("|")[1] for line in table.splitlines()[2:]))) == set(
        STAGE_NAMES
    )


def test_the_metrics_file_names_every_stage() -> None:
    text = (template_dir() / "metrics.yaml").read_text("utf-8")
    listed = re.search(r"How long each stage took \(([^)]*)\)", text)
    assert listed is not None
    assert listed[1].split(", ") == list(STAGE_NAMES)
