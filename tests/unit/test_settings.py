"""Settings: file < environment < flags, typed, frozen, and every problem at once."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, strategies
from hypothesis import settings as hypothesis_settings

from handlergen.archives.staging import make_bundle
from handlergen.errors import ContractError
from handlergen.inspection.project import open_project
from handlergen.project.contradictions import contradictions
from handlergen.project.settings import SETTINGS, Settings, archive_path, read_settings, to_runtime
from handlergen.project.starter import starter_yaml
from handlergen.runtime.contract import Bundle


def load_settings(path: Path | None, *, environ: dict[str, str], overrides: dict[str, Any] | None = None) -> Settings:
    settings, problems = read_settings(path, environ=environ, overrides=overrides or {})
    if problems:
        raise ContractError(sorted(problems))
    return settings


def load(text: str, tmp_path: Path, environ: dict[str, str] | None = None, **overrides: Any) -> Settings:
    path = tmp_path / "handlergen.yaml"
    path.write_text(text, encoding="utf-8")
    return load_settings(path, environ=environ or {}, overrides=overrides)


def refusals(text: str, tmp_path: Path) -> list[str]:
    with pytest.raises(ContractError) as refused:
        load(text, tmp_path)
    assert refused.value.exit_status == 3
    return [problem.message for problem in refused.value.problems]


def test_every_setting_has_help_and_a_default_that_it_accepts() -> None:
    for setting in SETTINGS.values():
        assert setting.help.endswith("."), setting.name
        assert setting.default in (None, "") or setting.kind.convert(setting.default) == setting.default


def test_the_environment_wins_over_the_file_and_a_flag_over_both(tmp_path: Path) -> None:
    text = "batch_size: 2\nqueue_size: 20\nworkers_per_device: 5\n"
    environ = {"HANDLERGEN_BATCH_SIZE": "4", "HANDLERGEN_QUEUE_SIZE": "40"}
    found = load(text, tmp_path, environ, batch_size=8, workers_per_device=None)  # None: the flag was not given
    assert (found.batch_size, found.queue_size, found.workers_per_device) == (8, 40, 5)


@pytest.mark.parametrize(
    ("text", "changes"),
    [
        ("", {}),
        ("# only a comment\n", {}),
        ("weights:\nnan: null\nbatch_size: ~\n", {}),
        ("version: 1.10\n", {"version": "1.10"}),
        ("version: 2\n", {"version": "2"}),
    ],
)
def test_what_a_file_says(text: str, changes: dict[str, Any], tmp_path: Path) -> None:
    assert load(text, tmp_path) == Settings(**changes)


@pytest.mark.parametrize(
    ("key", "raw", "value"),
    [
        ("devices", "cpu", "cpu"),
        ("devices", "0,2", (0, 2)),
        ("devices", "[1]", (1,)),
        ("extra_files", "a.txt,b/c", ("a.txt", "b/c")),
        ("extra_files", '["a,b.txt"]', ("a,b.txt",)),
        ("requirements", "torch>=2,<3", ("torch>=2,<3",)),
        ("requirements", "[a, b]", ("a", "b")),
        ("model_args", "[1, x]", (1, "x")),
        ("model_args", "3", (3,)),
        ("config", '{"a": [1, {"b": null}]}', {"a": [1, {"b": None}]}),
        ("config", "threshold=0.5", {"threshold": 0.5}),
        ("lock_timeout_s", "1.5", 1.5),
        ("version", "1.10", "1.10"),
        ("predict_timeout_s", "2", 2.0),
    ],
)
def test_text_of_the_environment(key: str, raw: str, value: Any) -> None:
    found = load_settings(None, environ={f"HANDLERGEN_{key.upper()}": raw}, overrides={})
    assert getattr(found, key) == value


def test_a_slip_in_a_variable_is_refused_and_a_stranger_is_not() -> None:
    with pytest.raises(ContractError, match=r"HANDLERGEN_BATCHSIZE(.|\n)*`batch_size`"):
        load_settings(None, environ={"HANDLERGEN_BATCHSIZE": "8"}, overrides={})
    other = {"HANDLERGEN_TRACE_DIR": "/t", "HANDLERGEN_STATE_DIR": "/s", "HANDLERGEN_HOME": "/h", "PATH": "/bin"}
    assert load_settings(None, environ=other, overrides={}) == Settings()


@pytest.mark.parametrize(
    ("key", "values", "expected"),
    [
        ("batch_size", "0 -1 1.5 '4' true [4] 2147483648", "a whole number from 1 to 65536"),
        ("lock_timeout_s", f"0 -0.1 .inf .nan true soon {10**350}", "a number of seconds above 0"),
    ],
)
def test_what_is_no_number_of_the_kind(key: str, values: str, expected: str, tmp_path: Path) -> None:
    for value in values.split():
        (message,) = refusals(f"{key}: {value}\n", tmp_path)
        assert f"`{key}`" in message
        assert f"expected {expected}" in message


def test_values_that_json_cannot_hold_are_named_with_their_place(tmp_path: Path) -> None:
    for value, place in (("{a: {when: 2026-01-01}}", "a.when"), ("{1: x}", "the key 1"), ("{a: [.nan]}", "a[0]")):
        (message,) = refusals(f"config: {value}\n", tmp_path)
        assert place in message


def test_the_settings_of_the_predictor_process(tmp_path: Path) -> None:
    text = "predictor: process\nstages: worker\nmax_batch: 8\nlinger_ms: 1.5\n"
    found = load(text, tmp_path)
    assert (found.predictor, found.stages, found.max_batch, found.linger_ms) == ("process", "worker", 8, 1.5)
    for wrong in ("predictor: thread", "stages: process", "max_batch: 0", "linger_ms: -1", "linger_ms: 1000000"):
        (message,) = refusals(wrong, tmp_path)
        assert "expected " in message


def test_a_refused_value_leaves_the_others_readable(tmp_path: Path) -> None:
    path = tmp_path / "handlergen.yaml"
    path.write_text("batch_size: x\nqueue_size: 7\n", encoding="utf-8")
    found, problems = read_settings(path, environ={}, overrides={"lock": "mine"})
    assert (found.batch_size, found.queue_size, found.lock) == (1, 7, "device")
    assert [(problem.line, problem.file.split()[0]) for problem in problems] == [(1, str(path)), (0, "option")]


def test_python_values_are_checked_like_any_other() -> None:
    found = load_settings(None, environ={}, overrides={"extra_files": [Path("a"), "b"], "devices": [0]})
    assert (found.extra_files, found.devices) == (("a", "b"), (0,))
    with pytest.raises(ContractError, match="there is no setting `batchsize`"):
        load_settings(None, environ={}, overrides={"batchsize": 1})


def test_the_starter_file_shows_every_setting_and_reads_back(tmp_path: Path) -> None:
    text = starter_yaml({"name": "digits", "batch_size": 8, "extra_files": ("a.txt",), "lock": "none"})
    assert load(text, tmp_path) == Settings(name="digits", batch_size=8, extra_files=("a.txt",), lock="none")
    for name in SETTINGS:
        assert f"\n{name}:" in text or f"\n# {name}:" in text


def test_the_starter_files_comments_are_valid_settings(tmp_path: Path) -> None:
    # What somebody gets who removes the `#` in front of a setting.
    for line in starter_yaml().splitlines():
        key = line.removeprefix("# ").partition(":")[0]
        if line.startswith("# ") and key in SETTINGS:
            load(line.removeprefix("# ") + "\n", tmp_path)


@pytest.mark.parametrize(
    "text",
    [
        "config: {a: 1, a: 2}\n",
        "just text\n",
        "name: [\n",
        "\tname: x\n",
        "config: {d: 2026-99-99}\n",
        "config: " + "{a: " * 3000 + "\n",
    ],
)
def test_documents_that_are_refused(text: str, tmp_path: Path) -> None:
    assert refusals(text, tmp_path)


def test_a_file_that_is_not_utf8_or_too_large_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "handlergen.yaml"
    path.write_bytes(b"name: x\nversion: \xff\n")
    with pytest.raises(ContractError, match=":2: the file is not UTF-8"):
        load_settings(path, environ={})
    path.write_bytes(b"#" * 1_000_001)
    with pytest.raises(ContractError, match="too many"):
        load_settings(path, environ={})
    path.write_bytes(b"\xef\xbb\xbfname: x\r\nbatch_size: 2\r\n")
    assert load_settings(path, environ={}).batch_size == 2


@hypothesis_settings(deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture], max_examples=150)
@given(strategies.text(alphabet="abcnamebatch_size:- \n\t[]{}&*!?|>'\"#,%@`0129.~", max_size=60))
def test_no_document_fails_in_another_way(tmp_path: Path, text: str) -> None:
    try:
        found = load(text, tmp_path)
    except ContractError as refused:
        assert refused.problems  # noqa: PT017 - either way out is right
    else:
        assert isinstance(found, Settings)


def test_an_archive_of_an_earlier_version_is_read(tmp_path: Path) -> None:
    model = tmp_path / "model.py"
    model.write_text("def predict(inputs):\n    return inputs\n")
    bundle = make_bundle(open_project(model, environ={}))
    older = json.loads(bundle.to_json())
    older["settings"]["stages_auto"] = True
    assert Bundle.from_json(json.dumps(older)) == bundle


def test_what_the_runtime_is_told() -> None:
    runtime = to_runtime(Settings(name="digits", batch="each", weights="models/digits.pt", secrets=("TOKEN",)))
    assert (runtime.name, runtime.batch, runtime.weights) == ("digits", "each", "models/digits.pt")
    assert (runtime.lock, runtime.lock_timeout_s, runtime.secrets) == ("device", 60.0, ("TOKEN",))
    assert to_runtime(Settings(weights="/elsewhere/digits.pt")).weights == "digits.pt"
    assert archive_path("a/./b.txt") == "a/b.txt"


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"lock_timeout_s": 120.0}, "lock_timeout_s (120) is not below response_timeout_s (120)"),
        ({"lock_timeout_s": 110.0}, "leaves 10 s"),
        ({"predict_timeout_s": 120.0}, "predict_timeout_s (120) is not below"),
        ({"predict_timeout_s": 30.0}, "4 workers on a device x predict_timeout_s (30) are 120 s"),
        ({"predict_timeout_s": 4.0, "batch_size": 8}, "x 8 requests of a batch"),
        ({"max_batch_delay_ms": 20}, "has no effect"),
        ({"batch": "list"}, "never receives more than one"),
        ({"batch_size": 200}, "no batch can fill"),
        ({"max_batch": 8}, "max_batch (8) has no effect with predictor: worker"),
        ({"linger_ms": 2.5}, "linger_ms (2.5) has no effect with predictor: worker"),
        ({"predictor": "process", "max_batch": 8}, "has no effect with batch: each"),
        ({"predictor": "process", "linger_ms": 1.0, "batch": "each"}, "has no effect with batch: each"),
        ({"predictor": "process", "linger_ms": 1.0, "batch": "list", "max_batch": 1}, "there is nothing to wait for"),
        ({"predictor": "process", "batch": "list", "batch_size": 16, "max_batch": 8}, "Write max_batch: 16"),
        (
            {"predictor": "process", "batch": "list", "max_batch": 30},
            "4 workers with 1 request each bring 4. Write batch_size: 8",
        ),
        (
            {"predictor": "process", "batch": "list", "batch_size": 32, "predict_timeout_s": 30.0},
            "4 batches x predict_timeout_s (30) are 120 s",
        ),
        (
            {"predictor": "process", "predict_timeout_s": 30.0, "lock": "none"},
            "4 workers on a device x predict_timeout_s (30) are 120 s",
        ),
    ],
)
def test_contradictions_say_what_to_write(changes: dict[str, Any], words: str) -> None:
    (warning,) = contradictions(Settings(**changes))
    assert words in warning


@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"batch_size": 8},
        {"lock": "none", "lock_timeout_s": 500.0, "predict_timeout_s": 100.0},  # it waits for nobody
        # Batches of several workers' requests.
        {"predictor": "process", "batch": "collate", "max_batch": 4, "linger_ms": 1.0, "predict_timeout_s": 30.0},
    ],
)
def test_settings_that_do_not_contradict_each_other(changes: dict[str, Any]) -> None:
    assert contradictions(Settings(**changes)) == []


def test_copies_of_the_weights_that_cannot_fit() -> None:
    gib = 2**30
    assert contradictions(Settings(), weights_bytes=4 * gib, device_bytes=16 * gib) == []
    (warning,) = contradictions(Settings(), weights_bytes=5 * gib, device_bytes=16 * gib)
    assert "4 copies of the weights, 20.0 GiB" in warning
    assert "Write predictor: process for one copy, or workers_per_device: 3" in warning
    (warning,) = contradictions(Settings(form="flow"), weights_bytes=5 * gib, device_bytes=16 * gib)
    assert "Write workers_per_device: 3" in warning
    shared = Settings(predictor="process")
    assert contradictions(shared, weights_bytes=5 * gib, device_bytes=16 * gib) == []
    (warning,) = contradictions(shared, weights_bytes=17 * gib, device_bytes=16 * gib)
    assert "the weights are 17.0 GiB, and the device has 16.0 GiB" in warning
    (warning,) = contradictions(Settings(workers_per_device=1), weights_bytes=17 * gib, device_bytes=16 * gib)
    assert "larger device" in warning
