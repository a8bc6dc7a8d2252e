"""Writing config.properties and what it names; warnings about the archives in the store."""

from __future__ import annotations

import xml.etree.ElementTree as ET
from pathlib import Path

import pytest
import yaml

from handlergen.errors import HandlergenError
from handlergen.project.templates import template_dir
from handlergen.server.configuration import relative_to_config, write_configuration
from handlergen.server.lifecycle import serve
from handlergen.server.model_store import configuration_warnings
from handlergen.server.properties import ServerSettings, read_properties, server_settings
from tests.archives import write_mar


def mar(path: Path, *, requirements: str | None = None, max_response_bytes: int | None = None) -> Path:
    model = {"requirementsFile": requirements} if requirements else {}
    bundle = {"settings": {"max_response_bytes": max_response_bytes}}
    return write_mar(path, model, {} if max_response_bytes is None else {"handlergen.json": bundle})


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
    mar(tmp_path / "model-store" / "big.mar", max_response_bytes=10_000_000)
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
    with pytest.raises(HandlergenError, match="exists with different contents"):
        write_configuration(config, ServerSettings())


def test_serve_refuses_a_file_that_the_launcher_cannot_read(tmp_path: Path):
    config = tmp_path / "config.properties"
    config.write_bytes(b"model_store=model-store\n# caf\xe9\n")
    with pytest.raises(HandlergenError, match=r"config\.properties:2: this line is not UTF-8") as caught:
        serve(config)
    assert caught.value.hint == "write characters outside ASCII as \\uXXXX"
