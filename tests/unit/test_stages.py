"""The table of stages, and that whatever names a stage elsewhere names one of the table."""

from __future__ import annotations

import json
import re
from pathlib import Path

from handlergen.project.templates import template_dir
from handlergen.runtime.telemetry.stages import STAGE_NAMES, label_of

DOCS = Path(__file__).resolve().parents[2] / "docs"


def test_a_stage_that_is_not_known_has_a_label_too() -> None:
    assert label_of("lock_wait") == "lock wait"
    assert label_of("some_other") == "some other"


def test_the_dashboard_asks_for_stages_that_there_are() -> None:
    dashboard = json.loads((DOCS / "grafana-dashboard.json").read_text("utf-8"))
    asked = [target["expr"] for panel in dashboard["panels"] for target in panel["targets"]]
    named = {name for text in asked for found in re.findall(r'stage=~?"([^"]+)"', text) for name in found.split("|")}
    assert {"lock_wait", "predict"} <= named <= set(STAGE_NAMES)


def test_the_documents_explain_every_stage() -> None:
    page = (DOCS / "metrics.md").read_text("utf-8")
    table = page.split("| stage | from, to |")[1].split("\n\n")[0]
    assert set(re.findall(r"`(\w+)`", "".join(line.split("|")[1] for line in table.splitlines()[2:]))) == set(
        STAGE_NAMES
    )


def test_the_metrics_file_names_every_stage() -> None:
    text = (template_dir() / "metrics.yaml").read_text("utf-8")
    listed = re.search(r"How long each stage took \(([^)]*)\)", text)
    assert listed is not None
    assert listed[1].split(", ") == list(STAGE_NAMES)
