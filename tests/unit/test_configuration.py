"""Writing config.properties and what it names; warnings about the archives in the store."""

from __future__ import annotations

import json
import xml.etree.ElementTree as ET
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml

from handlergen.archives.build import archive
from handlergen.errors import HandlergenError
from handlergen.project.templates import template_dir
from handlergen.server.configuration import relative_to_config, write_configuration
from handlergen.server.lifecycle import serve
from handlergen.server.model_store import configuration_warnings
from handlergen.server.properties import ServerSettings, read_properties, server_settings
from tests.archives import write_mar
from tests.commands import handlergen
from tests.inspecting import PREDICT, write


def mar(path: Path, *, requirements: str | None = None) -> Path:
    return write_mar(path, {"requirementsFile": requirements} if requirements else {}, {})


def ours(store: Path, name: str, **settings: Any) -> None:
    archive(write(store.parent, PREDICT, f"{name}.py"), model_store=store, environ={}, devices="cpu", **settings)


def test_the_file_and_what_it_names_are_written(tmp_path: Path):
    written = write_configuration(tmp_path / "config.properties", ServerSettings())
    assert {path.name for path in written} == {"config.properties", "log4j2.xml", "metrics.yaml"}
    assert {path.name for path in tmp_path.iterdir()} == {path.name for path in written}
    assert read_properties(tmp_path / "config.properties") == ServerSettings()


def test_writing_twice_changes_nothing_and_other_words_need_force(tmp_path: Path):
    config = tmp_path / "config.properties"
    write_configuration(config, ServerSettings())
    write_configuration(config, ServerSettings())
    other = server_settings(inference_port=9080)
    with pytest.raises(HandlergenError, match="exists with different contents"):
        write_configuration(config, other)
    assert read_properties(config) == ServerSettings()
    write_configuration(config, other, force=True)
    assert read_properties(config) == other


def test_metrics_can_be_opened_to_a_scraper_with_a_warning_and_predictions_stay(tmp_path: Path):
    done = handlergen("config", "--metrics-host", "0.0.0.0", "--metrics-port", "9082", cwd=tmp_path)
    assert done.returncode == 0
    settings = read_properties(tmp_path / "config.properties")
    assert (settings.metrics_address, settings.inference_address) == ("http://0.0.0.0:9082", "http://127.0.0.1:8080")
    assert "Warning: metrics can be reached from other machines (metrics_address=http://0.0.0.0:9082)" in done.stderr
    assert "metrics need no token" in done.stderr
    refused = handlergen("config", "--metrics-host", "http://x", "--force", cwd=tmp_path)
    assert refused.returncode == 1
    assert "'http://x' is a URL" in refused.stderr
    assert read_properties(tmp_path / "config.properties") == settings


def test_edited_logging_and_metrics_stay_even_with_force(tmp_path: Path):
    (tmp_path / "log4j2.xml").write_text("mine")
    (tmp_path / "metrics.yaml").write_text("mine")
    written = write_configuration(tmp_path / "config.properties", ServerSettings(), force=True)
    assert [path.name for path in written] == ["config.properties"]
    assert (tmp_path / "log4j2.xml").read_text() == (tmp_path / "metrics.yaml").read_text() == "mine"


def test_a_file_that_cannot_be_written_is_named(tmp_path: Path):
    (tmp_path / "file").touch()
    with pytest.raises(HandlergenError, match=r"file/config\.properties cannot be written"):
        write_configuration(tmp_path / "file" / "config.properties", ServerSettings())


def test_the_store_is_named_as_seen_from_the_configuration(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.chdir(tmp_path)
    assert relative_to_config(Path("model-store"), Path("config.properties")) == "model-store"
    assert relative_to_config(Path("model-store"), Path("server/config.properties")) == "../model-store"
    assert relative_to_config(Path("/models"), Path("config.properties")) == "/models"


def test_requirements_that_nobody_installs_are_warned_about(tmp_path: Path):
    config = tmp_path / "config.properties"
    mar(tmp_path / "model-store" / "needy.mar", requirements="requirements.txt")
    mar(tmp_path / "model-store" / "plain.mar")
    (warning,) = configuration_warnings(config, ServerSettings())
    assert "needy.mar contains requirements.txt" in warning
    assert configuration_warnings(config, ServerSettings(install_requirements=True)) == []


def test_answers_larger_than_the_server_takes_are_warned_about(tmp_path: Path):
    ours(tmp_path / "model-store", "big", max_response_bytes=10_000_000)
    (warning,) = configuration_warnings(tmp_path / "config.properties", ServerSettings())
    assert "10000000" in warning
    roomy = ServerSettings(max_response_size=10_000_000)
    assert configuration_warnings(tmp_path / "config.properties", roomy) == []


def test_a_file_that_is_no_archive_does_not_stop_the_warnings(tmp_path: Path):
    (tmp_path / "model-store").mkdir()
    (tmp_path / "model-store" / "broken.mar").write_bytes(b"no zip")
    assert configuration_warnings(tmp_path / "config.properties", ServerSettings()) == []


def test_requests_are_not_logged_but_models_and_warnings_are():
    section = ET.parse(template_dir() / "log4j2.xml").getroot().find("Loggers")
    assert section is not None
    loggers = {logger.get("name", "root"): logger.get("level") for logger in section}
    assert loggers["root"] == "warn"
    assert loggers["ACCESS_LOG"] == "warn"
    assert loggers["MODEL_LOG"] == "info"


def test_torchserves_own_metrics_are_declared():
    """Every metric of TorchServe's stock file is in ours: a dashboard made for it keeps working."""
    from importlib.util import find_spec

    spec = find_spec("ts")
    assert spec is not None
    assert spec.submodule_search_locations
    stock = Path(spec.submodule_search_locations[0]) / "configs" / "metrics.yaml"

    def metrics(path: Path) -> set[tuple[str, str, tuple[str, ...]]]:
        text = yaml.safe_load(path.read_text())
        return {
            (kind, metric["name"], tuple(metric["dimensions"]))
            for section in ("ts_metrics", "model_metrics")
            for kind, listed in text[section].items()
            for metric in listed
        }

    assert metrics(stock) <= metrics(template_dir() / "metrics.yaml")


def test_a_file_in_the_encoding_that_java_reads(tmp_path: Path):
    config = tmp_path / "config.properties"
    write_configuration(config, ServerSettings())
    config.write_bytes(config.read_bytes() + b"# caf\xe9\n")
    assert read_properties(config) == ServerSettings()
    assert write_configuration(config, ServerSettings()) == []
    write_configuration(config, ServerSettings(job_queue_size=5), force=True)
    assert config.read_text("utf-8").endswith("# café\n")


KEPT = """\
# ours: do not touch
number_of_netty_threads = 4
inference_address=http://10.0.0.7:8085/
job_queue_size=7
job_queue_size : \\
    9
! the end, without a line break: \u00e9
vmargs=-Xmx2g -Dlog4j.configurationFile=mine.xml"""


def test_an_existing_file_keeps_all_that_is_not_told_to_change(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, run: Callable[..., Any]
):
    monkeypatch.chdir(tmp_path)
    config = tmp_path / "config.properties"
    config.write_text(KEPT, "utf-8")
    assert run("config")[:2] == (0, "config.properties stays as it is\n")
    assert config.read_text("utf-8") == KEPT
    status, _, said = run("config", "--queue-size", "20")
    assert status == 1
    assert "job_queue_size=9 would become 20" in said
    status, printed, _ = run("config", "--queue-size", "20", "--diff")
    assert [line for line in printed.splitlines() if line[0] in "+-"][2:] == [
        *("-job_queue_size=7", "-job_queue_size : \\", "-    9", "+job_queue_size=20"),
    ]
    printed = run("config", "--queue-size", "20", "--diff", "--json")[1]
    assert json.loads(printed)["changed"] == {"job_queue_size": {"from": "9", "to": "20"}}
    assert config.read_text("utf-8") == KEPT
    options = ("--queue-size", "20", "--inference-port", "9080", "--log-config", "log4j2.xml", "--model-api")
    status, printed, _ = run("config", *options, "--force")
    assert status == 0
    assert "enable_model_api: false -> true\n" in printed
    assert config.read_text("utf-8").splitlines() == [
        *("# ours: do not touch", "number_of_netty_threads = 4", "inference_address=http://10.0.0.7:9080"),
        *("job_queue_size=20", "! the end, without a line break: é"),
        *("vmargs=-Dlog4j.configurationFile=log4j2.xml -Xmx2g", "enable_model_api=true"),
    ]
    config.write_text("job_queue_size=none\n")
    assert run("config", "--queue-size", "20", "--force")[0] == 1
    assert config.read_text() == "job_queue_size=none\n"


def test_serve_refuses_a_file_that_the_launcher_cannot_read(tmp_path: Path):
    config = tmp_path / "config.properties"
    config.write_bytes(b"model_store=model-store\n# caf\xe9\n")
    with pytest.raises(HandlergenError, match=r"config\.properties:2: this line is not UTF-8") as caught:
        serve(config)
    assert caught.value.hint == "write characters outside ASCII as \\uXXXX"
