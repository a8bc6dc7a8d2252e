"""What the last server had is read from TorchServe's snapshots, and decides what the next one is started with."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

import pytest

from handlergen.errors import ServerError
from handlergen.server.properties import ServerSettings
from handlergen.server.remembered import (
    KEPT_SNAPSHOTS,
    LastServer,
    RememberedVersion,
    keep_until_ready,
    last_server,
    prepare_directory,
    record_ready,
)
from handlergen.server.starting_models import StartingModels, starting_models, version_key
from tests.archives import write_mar

# Written by TorchServe 0.12.0 after `PUT /models/tiny/1.0/set-default`, two workers for 1.0 and none for 2.0.
REAL = r"""#Saving snapshot
#Mon Nov 30 17:19:27 UTC 2026
grpc_inference_port=21136
allowed_urls=(?\!)
load_models=tiny-2.0.mar,tiny-1.0.mar
vmargs=-Dlog4j.configurationFile\=log4j2.xml
number_of_gpu=0
model_snapshot={\n  "name"\: "20261130171927371-snapshot.cfg",\n  "modelCount"\: 2,\n  "created"\: 1796059167373,\n  "models"\: {\n    "tiny"\: {\n      "1.0"\: {\n        "defaultVersion"\: true,\n        "marName"\: "tiny-1.0.mar",\n        "minWorkers"\: 2,\n        "maxWorkers"\: 2,\n        "batchSize"\: 1,\n        "maxBatchDelay"\: 1,\n        "responseTimeout"\: 120,\n        "startupTimeout"\: 300,\n        "runtimeType"\: "python"\n      },\n      "2.0"\: {\n        "defaultVersion"\: false,\n        "marName"\: "tiny-2.0.mar",\n        "minWorkers"\: 0,\n        "maxWorkers"\: 0,\n        "batchSize"\: 1,\n        "maxBatchDelay"\: 1,\n        "responseTimeout"\: 120,\n        "startupTimeout"\: 300,\n        "runtimeType"\: "python"\n      }\n    }\n  }\n}
tsConfigFile=config.properties
version=0.12.0
inference_address=http\://127.0.0.1\:10693
model_store=model-store
"""  # noqa: E501 - as it is
TAKEN = 1796059167.373
MODELS = {
    "tiny": {
        "1.0": RememberedVersion("tiny-1.0.mar", 2, True),
        "2.0": RememberedVersion("tiny-2.0.mar", 0, False),
    }
}


class Project:
    """A configuration with a model store and snapshots; archives and their modification times are set by hand."""

    def __init__(self, directory: Path) -> None:
        self.config = directory / "config.properties"
        self.store = directory / "model-store"
        self.logs = directory / "logs"
        self.store.mkdir()
        (directory / ".handlergen").mkdir()
        (self.logs / "config").mkdir(parents=True)

    def archive(
        self, file: str, version: str, *, model: str = "tiny", modified: float = TAKEN - 60, content: str = ""
    ) -> Path:
        path = write_mar(self.store / file, {"modelName": model, "modelVersion": version}, {"file": content})
        os.utime(path, (modified, modified))
        return path

    def snapshot(self, name: str = "20261130171927371-snapshot.cfg", *changes: tuple[str, str]) -> Path:
        text = REAL
        for old, new in changes:
            assert old in text
            text = text.replace(old, new)
        path = self.logs / "config" / name
        path.write_text(text)
        return path

    def last(self) -> LastServer | None:
        return last_server(self.config, self.logs)

    def starting(self, load_models: str = "all") -> StartingModels:
        return starting_models(self.config, ServerSettings(load_models=load_models), self.last())


@pytest.fixture
def project(tmp_path: Path) -> Project:
    return Project(tmp_path.resolve())


def workers(count: int) -> tuple[str, str]:
    """A change of the snapshot: the number of workers of 1.0."""
    return '"minWorkers"\\: 2', f'"minWorkers"\\: {count}'


def created(seconds: float) -> tuple[str, str]:
    """A change of the snapshot: when it was taken."""
    return "1796059167373", str(int(seconds * 1000))


def workers_of(last: LastServer | None) -> int:
    assert last is not None
    return last.models["tiny"]["1.0"].workers


def test_a_snapshot_of_a_real_server_is_read(project: Project) -> None:
    assert project.last() is None
    project.snapshot()
    assert project.last() == LastServer(TAKEN, MODELS, "tiny-2.0.mar,tiny-1.0.mar", {})


def test_the_newest_snapshot_of_this_configuration_that_can_be_read_counts(project: Project) -> None:
    project.snapshot("20261130171900000-startup.cfg", workers(1), created(TAKEN - 27))
    project.snapshot("20261130171927371-snapshot.cfg")
    assert workers_of(project.last()) == 2
    torn = project.snapshot("20261130171950000-snapshot.cfg", workers(3), created(TAKEN + 23))
    torn.write_text(torn.read_text()[:900])
    other = ("tsConfigFile=config.properties", "tsConfigFile=other.properties")
    project.snapshot("20261130171955000-snapshot.cfg", workers(4), created(TAKEN + 28), other)
    project.snapshot("mine.cfg", workers(5), created(TAKEN + 50))
    assert workers_of(project.last()) == 2


def test_of_two_snapshots_at_once_the_later_name_counts_else_the_later_time(project: Project) -> None:
    # The second was begun later, when both changes had been made, and was described first.
    project.snapshot("20261130171926400-snapshot.cfg", workers(1), created(1796059166.403))
    project.snapshot("20261130171926401-snapshot.cfg", workers(2), created(1796059166.402))
    assert workers_of(project.last()) == 2
    # An hour later, after the clock was set back for the winter.
    project.snapshot("20261130161930000-snapshot.cfg", workers(3), created(1796059166 + 3600))
    assert workers_of(project.last()) == 3


def test_what_a_start_has_to_restore_counts_until_it_is_ready(project: Project) -> None:
    project.snapshot()
    before = project.last()
    assert before is not None
    keep_until_ready(project.config, before)
    # The server starts with its archives' own numbers, and dies.
    project.snapshot("20261130172000000-startup.cfg", workers(1), created(TAKEN + 33))
    assert project.last() == before
    (record,) = (project.config.parent / ".handlergen").iterdir()
    assert record.stat().st_mode & 0o777 == 0o600
    project.snapshot("20261130172100000-snapshot.cfg", workers(4), created(TAKEN + 93))
    record_ready(project.config, project.logs, "all", {"tiny": {"1.0": "abc"}})
    after = project.last()
    assert workers_of(after) == 4
    assert after is not None
    assert (after.load_models, after.archives) == ("all", {"tiny": {"1.0": "abc"}})
    record.write_text(record.read_text()[:40])  # a file that somebody cut is none
    assert workers_of(project.last()) == 4


def test_the_newest_snapshots_are_kept_and_no_other_file_is_touched(project: Project) -> None:
    for number in range(KEPT_SNAPSHOTS + 5):
        project.snapshot(f"202611301800{number:02}000-snapshot.cfg", workers(number), created(TAKEN + number))
    other = ("tsConfigFile=config.properties", "tsConfigFile=other.properties")
    kept = [
        project.snapshot("20200101000000000-startup.cfg", other, created(1)),
        project.snapshot("mine.cfg", created(1)),
    ]
    record_ready(project.config, project.logs, "all", {})
    assert all(path.exists() for path in kept)
    assert len(list((project.logs / "config").iterdir())) == KEPT_SNAPSHOTS + len(kept)
    assert workers_of(project.last()) == KEPT_SNAPSHOTS + 4


def test_only_this_user_may_read_the_snapshots(project: Project) -> None:
    shutil.rmtree(project.logs)
    for _ in range(2):
        prepare_directory(project.logs)
        assert (project.logs / "config").stat().st_mode & 0o777 == 0o700
        (project.logs / "config").chmod(0o755)
    project.logs.rename(project.logs.with_name("moved"))
    project.logs.touch()
    prepare_directory(project.logs)  # TorchServe says what is wrong with it


@pytest.mark.parametrize("files", [("a.mar", "b.mar"), ("b.mar", "a.mar")])
def test_the_last_default_version_comes_first_whatever_order_the_store_has(
    project: Project, files: tuple[str, str]
) -> None:
    for file, version in zip(files, ("1.0", "2.0"), strict=True):
        project.archive(file, version)
    project.archive("other.mar", "7", model="other")
    project.snapshot()
    starting = project.starting()
    assert starting.arguments == ("other.mar", *files)
    assert list(starting.expected) == [("other", "7"), ("tiny", "1.0"), ("tiny", "2.0")]
    assert starting.undecided == starting.warnings == ()


@pytest.mark.parametrize("gone", [False, True])
def test_without_a_last_default_the_highest_version_is_taken_and_named(project: Project, gone: bool) -> None:
    project.archive("tiny-9.mar", "1.9")
    project.archive("tiny-10.mar", "1.10")
    if gone:
        project.snapshot()
    starting = project.starting()
    assert starting.arguments == ("tiny-10.mar", "tiny-9.mar")
    (undecided,) = starting.undecided
    assert (undecided.model, undecided.chosen) == ("tiny", "1.10")
    (warning,) = starting.warnings
    assert "tiny-9.mar (version 1.9), tiny-10.mar (version 1.10); the highest version, 1.10, is the default" in warning
    assert f"`handlergen update -c {project.config} tiny FILE`" in warning


@pytest.mark.parametrize(("low", "high"), [("1.9", "1.10"), ("9", "10"), ("1.0", "1.0.1"), ("a", "1"), ("v2", "v10")])
def test_versions_are_compared_by_their_numbers(low: str, high: str) -> None:
    assert version_key(low) < version_key(high)


def test_where_every_model_has_one_version_the_command_stays_as_it_is(project: Project) -> None:
    project.archive("tiny.mar", "1.0")
    project.archive("other.mar", "1.0", model="other")
    project.snapshot()
    assert project.starting().arguments == ()
    assert project.starting("tiny.mar").arguments == ()
    assert project.starting().expected == {("other", "1.0"): "other.mar", ("tiny", "1.0"): "tiny.mar"}


def test_a_list_in_place_of_all_has_everything_that_all_loads(project: Project) -> None:
    project.archive("tiny-1.mar", "1.0")
    project.archive("a=b.mar", "2.0")
    project.archive(".hidden.mar", "3.0")
    (project.store / "unpacked").mkdir()
    for name in ("old.model", "packed.tar.gz", "notes.txt", ".hidden.model"):
        (project.store / name).touch()
    arguments = project.starting().arguments
    assert arguments == ("tiny=a=b.mar", "tiny-1.mar", "old.model", "packed.tar.gz", "unpacked")


@pytest.mark.parametrize("name", ["a,b.mar", "a,b.model", "a=b.model"])
def test_a_file_that_the_list_cannot_name_is_refused(project: Project, name: str) -> None:
    project.archive("tiny-1.mar", "1.0")
    project.archive("tiny-2.mar", "2.0")
    if name.endswith(".mar"):
        project.archive(name, "1.0", model="other")
    else:
        (project.store / name).touch()
    with pytest.raises(ServerError, match="cannot be loaded beside a model with several versions") as caught:
        project.starting()
    assert caught.value.hint == "rename the file"


def test_workers_are_restored_unless_the_archive_was_replaced(project: Project) -> None:
    one, two = project.archive("tiny-1.0.mar", "1.0"), project.archive("tiny-2.0.mar", "2.0")
    project.snapshot()
    assert project.starting().workers == {("tiny", "1.0"): 2, ("tiny", "2.0"): 0}
    os.utime(one, (TAKEN + 1, TAKEN + 1))
    assert project.starting().workers == {("tiny", "2.0"): 0}
    renamed = two.rename(project.store / "renamed.mar")
    assert project.starting().workers == {}
    renamed.rename(two)
    # The record of the start tells them by their contents, whatever their times and names are.
    record_ready(project.config, project.logs, "all", project.starting().archives)
    assert project.starting().workers == {("tiny", "2.0"): 0, ("tiny", "1.0"): 2}
    project.archive("tiny-2.0.mar", "2.0", modified=TAKEN - 900, content="other")
    assert project.starting().workers == {("tiny", "1.0"): 2}
    one.rename(project.store / "renamed.mar")
    assert project.starting().workers == {("tiny", "1.0"): 2}


def updated(project: Project, load_models: str, models: Mapping[str, Mapping[str, RememberedVersion]]) -> None:
    """The last server was READY with this list, and ended with these models."""
    started = starting_models(project.config, ServerSettings(load_models=load_models), None)
    record_ready(project.config, project.logs, load_models, started.archives)
    last = project.last() or LastServer(TAKEN, {}, load_models, started.archives)
    keep_until_ready(project.config, replace(last, taken=TAKEN, load_models=load_models, models=models))


def test_an_update_under_a_fixed_list_stays(project: Project) -> None:
    project.archive("tiny-1.0.mar", "1.0")
    updated(project, "tiny-1.0.mar", {"tiny": {"2.0": RememberedVersion("tiny-2.0.mar", 3, True)}})
    project.archive("tiny-2.0.mar", "2.0")
    project.archive("unlisted.mar", "1.0", model="unlisted")
    starting = project.starting("tiny-1.0.mar")
    assert starting.expected == {("tiny", "2.0"): "tiny-2.0.mar"}
    assert starting.arguments == ("tiny-2.0.mar",)
    assert starting.workers == {("tiny", "2.0"): 3}
    (warning,) = starting.warnings
    assert "load_models lists tiny-1.0.mar; loaded is tiny-2.0.mar, because the last server ended with that" in warning
    # The start after that knows it, too.
    record_ready(project.config, project.logs, "tiny-1.0.mar", starting.archives)
    last = LastServer(TAKEN, {"tiny": {"2.0": MODELS["tiny"]["2.0"]}}, "tiny-1.0.mar", starting.archives)
    keep_until_ready(project.config, last)
    assert project.starting("tiny-1.0.mar").arguments == ("tiny-2.0.mar",)


def test_a_list_that_was_changed_is_loaded_as_it_stands(project: Project) -> None:
    project.archive("tiny-1.0.mar", "1.0")
    project.archive("tiny-2.0.mar", "2.0")
    updated(project, "tiny-2.0.mar", {"tiny": {"2.0": RememberedVersion("tiny-2.0.mar", 3, True)}})
    starting = project.starting("tiny-1.0.mar")
    assert (starting.expected, starting.arguments) == ({("tiny", "1.0"): "tiny-1.0.mar"}, ())
    assert starting.warnings == ()
    assert project.starting("tiny-1.0.mar, t=tiny-2.0.mar").expected == {
        ("tiny", "1.0"): "tiny-1.0.mar",
        ("t", "2.0"): "tiny-2.0.mar",
    }


def test_a_listed_archive_that_is_new_or_all_that_is_left_is_loaded(project: Project) -> None:
    project.archive("tiny-1.0.mar", "1.0")
    models = {"tiny": {"2.0": RememberedVersion("tiny-2.0.mar", 1, True)}}
    updated(project, "tiny-1.0.mar", models)
    assert project.starting("tiny-1.0.mar").expected == {("tiny", "1.0"): "tiny-1.0.mar"}  # no 2.0 in the store
    project.archive("tiny-2.0.mar", "3.0")  # another version by now
    assert project.starting("tiny-1.0.mar").expected == {("tiny", "1.0"): "tiny-1.0.mar"}
    project.archive("tiny-2.0.mar", "2.0")
    project.archive("tiny-1.0.mar", "1.0", content="other")
    starting = project.starting("tiny-1.0.mar")
    assert starting.arguments == ("tiny-2.0.mar", "tiny-1.0.mar")  # replaced since: loaded, but not the default


def test_an_unregistered_version_in_a_store_that_is_loaded_whole_comes_back_but_not_as_default(
    project: Project,
) -> None:
    project.archive("tiny-2.0.mar", "2.0")
    project.archive("tiny-3.0.mar", "3.0")
    project.archive("named.mar", "5.0", model="another")
    models = {
        "tiny": {
            "2.0": RememberedVersion("tiny-2.0.mar", 1, True),
            "5.0": RememberedVersion("named.mar", 1, False),  # registered at run time as model_name=tiny
        }
    }
    updated(project, "all", models)
    assert project.starting().arguments == ("named.mar", "tiny-2.0.mar", "tiny-3.0.mar", "tiny=named.mar")


def test_names_given_in_the_list_are_kept(project: Project) -> None:
    project.archive("tiny-1.0.mar", "1.0")
    project.archive("tiny-2.0.mar", "2.0")
    starting = project.starting("mine=tiny-1.0.mar,mine=tiny-2.0.mar,tiny-1.0.mar")
    assert starting.arguments == ("mine=tiny-2.0.mar", "mine=tiny-1.0.mar", "tiny-1.0.mar")


def test_a_record_is_json_that_any_program_can_read(project: Project) -> None:
    keep_until_ready(project.config, LastServer(TAKEN, MODELS, "all", {}))
    (path,) = (project.config.parent / ".handlergen").iterdir()
    assert json.loads(path.read_text())["models"]["tiny"]["1.0"] == {
        "archive": "tiny-1.0.mar",
        "workers": 2,
        "default": True,
    }
