"""`handlergen check`: exit statuses, JSON, and what is not imported."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

MODULE = "async def preprocess(data):\n    return data\n\n\ndef predict(x, *, device=None):\n    return x\n"


Check = Callable[..., tuple[int, str, str]]


@pytest.fixture
def check(run: Callable[..., tuple[int, str, str]]) -> Check:
    return lambda *arguments: run("check", *arguments)


@pytest.fixture
def source(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    path = tmp_path / "digits.py"
    path.write_text(MODULE, encoding="utf-8")
    return path


def test_a_good_source(source: Path, check: Check) -> None:
    status, out, err = check("digits.py")
    assert (status, err) == (0, "")
    assert out.splitlines() == [
        "digits.py: form functions, model digits 1.0",
        "  async preprocess(data)  line 1  beside other requests",
        "  predict(x, device)      line 5  one at a time on the device",
        "  every worker predicts for itself (neither load nor weights: no model to share)",
        "No problems.",
    ]


def test_keys_are_listed(source: Path, check: Check) -> None:
    source.write_text("def predict(prompt, temperature=0.7, *, context): ...\n", encoding="utf-8")
    status, out, _ = check("digits.py")
    assert status == 0
    assert "takes the keys of a JSON object: prompt, temperature (optional)\n" in out


def test_json_of_a_good_source(source: Path, check: Check) -> None:
    status, out, _ = check("digits.py", "--json", "--name", "other")
    report = json.loads(out)
    assert (status, report["ok"], report["problems"]) == (0, True, [])
    assert (report["name"], report["form"]) == ("other", "functions")
    assert report["hooks"]["predict"]["parameters"] == [
        {"name": "x", "receives": "inputs", "required": True},
        {"name": "device", "receives": "device", "required": False},
    ]
    assert report["hooks"]["preprocess"]["kind"] == "async"


def test_json_of_a_bad_source_holds_all_problems(source: Path, check: Check) -> None:
    source.write_text("def preprocess(): ...\ndef predict(*x): ...\n", encoding="utf-8")
    status, out, err = check("digits.py", "--json")
    report = json.loads(out)
    assert (status, err, report["ok"]) == (3, "", False)
    assert [problem["line"] for problem in report["problems"]] == [1, 2]


def test_files_that_cannot_be_packed_are_problems_too(source: Path, check: Check) -> None:
    status, _, said = check("digits.py", "--extra-file", "lost.txt", "--extra-file", "gone.txt")
    assert status == 3
    assert "lost.txt" in said
    assert "gone.txt" in said


def test_a_flag_that_makes_no_sense_is_a_usage_error(source: Path, check: Check) -> None:
    for flag, value, message in (
        ("--batch-size", "many", "expected a whole number from 1 to 65536"),
        ("--max-batch", "0", "expected a whole number from 1 to 65536"),
        ("--devices", "0,0", "a duplicate index"),
    ):
        status, _, said = check("digits.py", flag, value)
        assert status == 2
        assert message in said


def test_schemas_come_of_the_loaded_module(source: Path, check: Check) -> None:
    source.write_text(
        "from __future__ import annotations\nfrom dataclasses import dataclass\n\n"
        "@dataclass\nclass Query:\n    text: str\n\n"
        "def predict(query: Query) -> list[float]:\n    return [len(query.text)]\n",
        encoding="utf-8",
    )
    found = json.loads(check("digits.py", "--schema", "--json")[1])
    assert found["input"]["schema"]["properties"]["text"]["type"] == "string"
    assert found["output"]["schema"] == {"type": "array", "items": {"type": "number"}}
    assert '"title": "Query"' in check("digits.py", "--schema")[1]
    source.write_text("def predict(inputs): ...\nraise ValueError('no')\n", encoding="utf-8")
    status, _, said = check("digits.py", "--schema")
    assert status == 4
    assert "ValueError: no" in said


def test_lists_are_repeated_singular_flags(source: Path, check: Check) -> None:
    for name in ("a.txt", "b.txt"):
        (source.parent / name).touch()
    flags = ["--extra-file", "a.txt", "--extra-file", "b.txt", "--device", "0", "--device", "1"]
    assert check("digits.py", *flags, "--config", "a=1", "--config", "b=[x]", "--workers-per-device", "4")[0] == 0


def test_neither_the_module_nor_torch_is_imported(source: Path) -> None:
    source.write_text("raise SystemExit('imported')\n" + MODULE, encoding="utf-8")
    code = (
        "import sys\nfrom handlergen.cli import main\n"
        "try:\n    main(['check', 'digits.py'])\n"
        "except SystemExit as ended:\n    assert ended.code == 0, ended.code\n"
        "print(sorted({'torch', 'ts', 'grpc', 'digits', 'numpy'} & set(sys.modules)))\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.splitlines()[-1] == "[]"


def test_json_is_all_that_stands_on_standard_output(source: Path) -> None:
    source.write_text('print("imported")\n\ndef predict(inputs: dict) -> dict:\n    return inputs\n')
    command = [sys.executable, "-c", "from handlergen.cli import main; main()", "check", "digits.py"]
    done = subprocess.run([*command, "--json", "--schema"], capture_output=True, text=True, check=True)
    assert json.loads(done.stdout)["input"]["schema"]["type"] == "object"
    assert "imported" in done.stderr


@pytest.mark.parametrize("more", [("--schema",), ("--sample", "sample.json")])
def test_a_module_that_fails_is_reported_as_json(source: Path, check: Check, more: tuple[str, ...]) -> None:
    source.write_text("def load(context):\n    raise ValueError('boom')\n\n" + MODULE)
    (source.parent / "sample.json").write_text("1")
    status, out, _ = check("digits.py", "--json", *more)
    report = json.loads(out)
    assert (status, report["ok"]) == (4, False)
    (problem,) = report["problems"]
    assert "could not be loaded: ValueError: boom" in problem["message"]
    assert "line 2, in load" in report["traceback"]


def test_a_source_that_is_not_there_is_reported_as_json(source: Path, check: Check) -> None:
    status, out, _ = check("nothing.py", "--json")
    report = json.loads(out)
    assert (status, report["ok"], report["problems"][0]["message"]) == (1, False, "nothing.py does not exist")
