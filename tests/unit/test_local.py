"""load(): the served pipeline in this process, from a source and from its archive."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

import handlergen

SOURCE = """
from pathlib import Path

labels = Path("labels.txt").read_text().split()

def preprocess(data, files):
    if files:
        return len(files[0].read())
    return data["n"]

def predict(inputs):
    return labels[inputs]

def postprocess(outputs, input_data):
    return {"label": outputs}
"""


@pytest.fixture
def project(tmp_path: Path) -> Path:
    (tmp_path / "labels.txt").write_text("zero one two")
    (tmp_path / "handlergen.yaml").write_text("name: labels\nsource: labeller.py\nextra_files: [labels.txt]\n")
    (tmp_path / "labeller.py").write_text(SOURCE)
    return tmp_path


def test_the_public_api_is_what_it_says() -> None:
    for name in handlergen.__all__:
        assert getattr(handlergen, name) is not None
    with pytest.raises(AttributeError):
        _ = handlergen.nothing_of_the_kind


def test_source_and_archive_answer_alike(project: Path, tmp_path: Path) -> None:
    mar = handlergen.archive(project, model_store=tmp_path / "store").path
    before = Path.cwd(), list(sys.path)
    for source in (project, mar):
        with handlergen.load(source) as model:
            assert model.predict({"n": 2}) == {"label": "two"}
            answer = model.request(fields={"image": b"x", "note": "y"})
            assert (answer.status, answer.body) == (200, b'{"label":"one"}')
            assert model.request({"n": 7}).status == 500
            with pytest.raises(handlergen.RequestFailed) as raised:
                model.predict({})
            assert raised.value.status == 500
    assert (Path.cwd(), list(sys.path)) == before
    assert "labeller" not in sys.modules


def test_two_modules_of_one_name_do_not_mix(tmp_path: Path) -> None:
    for number in (1, 2):
        directory = tmp_path / str(number)
        directory.mkdir()
        (directory / "same.py").write_text(f"def predict(inputs):\n    return {number}\n")
    one, other = tmp_path / "1" / "same.py", tmp_path / "2" / "same.py"
    with handlergen.load(one) as first, handlergen.load(other) as second:
        assert (first.predict(0), second.predict(0)) == (1, 2)


def test_a_module_that_fails_to_load_is_the_users_error(tmp_path: Path) -> None:
    (tmp_path / "bad.py").write_text("def load(context):\n    return 1 / 0\ndef predict(inputs):\n    return 1\n")
    with pytest.raises(handlergen.ModuleFailed, match="ZeroDivisionError") as raised:
        handlergen.load(tmp_path / "bad.py")
    assert "in load" in raised.value.traceback
    assert "user_module.py" not in raised.value.traceback


def test_settings_of_an_archive_cannot_be_changed(project: Path, tmp_path: Path) -> None:
    mar = handlergen.archive(project, model_store=tmp_path / "store").path
    with pytest.raises(handlergen.HandlergenError, match="batch"):
        handlergen.load(mar, batch="list")


def test_a_batch_is_answered_together_and_fails_apart(tmp_path: Path) -> None:
    (tmp_path / "sums.py").write_text(
        "def preprocess(data):\n    return data['n']\n"
        "def predict(inputs):\n    return [n + len(inputs) for n in inputs]\n"
    )
    with handlergen.load(tmp_path / "sums.py", batch="list") as model:
        answers = model.batch([{"n": 1}, {"n": 2}, {"m": 3}])
    assert [(answer.status, answer.value) for answer in answers[:2]] == [(200, 3), (200, 4)]
    assert answers[2].status == 500


HANDLERGEN = str(Path(sys.executable).with_name("handlergen"))


def predict(*arguments: str, stdin: bytes = b"") -> tuple[int, bytes, str]:
    done = subprocess.run([HANDLERGEN, "predict", *arguments], input=stdin, capture_output=True, check=False)
    return done.returncode, done.stdout, done.stderr.decode()


def test_predict_prints_the_answer_and_nothing_else(project: Path) -> None:
    source = project / "labeller.py"
    source.write_text(SOURCE.replace("def predict(inputs):", "def predict(inputs):\n    print('noise')"))
    assert predict(str(project), '{"n": 2}') == (0, b'{"label":"two"}\n', "noise\n")
    assert predict(str(project), "-", stdin=b'{"n": 0}')[:2] == (0, b'{"label":"zero"}\n')
    (project / "one.bin").write_bytes(b"x")
    assert predict(str(project), "--field", f"image=@{project / 'one.bin'}")[1] == b'{"label":"one"}\n'
    status, answers, _ = predict(str(project), '{"n": 1}', '{"n": 2}', '{"n": 9}')
    assert status == 6
    assert answers.splitlines()[:2] == [b'{"label":"one"}', b'{"label":"two"}']
    assert b'"code":500' in answers.splitlines()[2]


def test_an_error_is_what_a_client_gets_and_raise_shows_where(project: Path) -> None:
    status, answer, told = predict(str(project), '{"n": 7}')
    assert (status, answer) == (6, b"")
    assert told == "Error: 500: The model's predict failed\nHint: --raise shows the traceback\n"
    status, _, told = predict(str(project), '{"n": 7}', "--raise")
    assert status == 4
    assert "IndexError" in told
    assert "labeller.py" in told
    assert "pipeline.py" not in told


def test_raise_shows_where_a_request_was_refused_too(tmp_path: Path) -> None:
    """A ValueError in preprocess is the client's fault, or a slip of the author's."""
    (tmp_path / "strict.py").write_text(
        "def preprocess(data):\n    return int(data)\n\ndef predict(inputs):\n    return inputs\n"
    )
    source = str(tmp_path / "strict.py")
    refused = "400: invalid literal for int() with base 10: 'x'"
    assert predict(source, '"x"') == (6, b"", f"Error: {refused}\n")
    status, _, told = predict(source, '"x"', "--raise")
    assert status == 4
    assert refused in told
    assert "line 2, in preprocess" in told
    assert "pipeline.py" not in told


def test_an_answer_that_cannot_be_sent_names_the_hook_that_returned_it(tmp_path: Path) -> None:
    (tmp_path / "odd.py").write_text("def predict(inputs):\n    return {'a': object()}\n")
    for flags, expected in (((), 6), (("--raise",), 4)):
        status, _, told = predict(str(tmp_path / "odd.py"), "1", *flags)
        assert status == expected
        assert "is of type object" in told
        assert "predict (line 1) returned" in told
        assert "--raise shows" not in told


def test_no_failure_points_to_a_server_that_is_not_there(tmp_path: Path) -> None:
    (tmp_path / "bad.py").write_text("def predict(inputs):\n    return 1 / inputs\n")
    status, answers, told = predict(str(tmp_path / "bad.py"), "0", "1")
    assert status == 6
    assert json.loads(answers.splitlines()[0])["message"] == "The model's predict failed"
    assert "server" not in told
    with handlergen.load(tmp_path / "bad.py") as model:
        with pytest.raises(handlergen.RequestFailed, match=r"^The model's predict failed$"):
            model.predict(0)
        # What a client gets: byte for byte, so that a test of the local model is a test of the served one.
        assert b"the server's log" in model.request(0).body
        (row,) = model.map([0], workers=0)
        assert row.value["message"] == "The model's predict failed"


def test_json_that_the_shell_took_apart_is_explained(tmp_path: Path) -> None:
    (tmp_path / "echo.py").write_text("def predict(inputs):\n    return inputs\n")
    status, _, told = predict(str(tmp_path / "echo.py"), "text")
    assert status == 6
    assert """JSON text needs quotes of its own: '"text"'""" in told


def test_hooks_run_where_they_run_when_served(project: Path) -> None:
    source = SOURCE.replace("return labels[inputs]", "return Path('labels.txt').read_text().split()[inputs]")
    (project / "labeller.py").write_text(source)
    assert predict(str(project), '{"n": 2}')[1] == b'{"label":"two"}\n'


def test_a_breakpoint_in_a_hook_stops_there(project: Path) -> None:
    source = SOURCE.replace("    return labels[inputs]", "    breakpoint()\n    return labels[inputs]")
    (project / "labeller.py").write_text(source)
    status, answer, told = predict(str(project), '{"n": 2}', stdin=b"p inputs + 40\nc\n")
    assert (status, answer) == (0, b'{"label":"two"}\n')
    assert "42" in told


@pytest.mark.parametrize(
    "text", ["sys.exit(7)\n", "\ndef load(context):\n    sys.exit(7)\n"], ids=["at import", "in load"]
)
def test_a_module_that_ends_the_process_has_failed(tmp_path: Path, text: str) -> None:
    (tmp_path / "script.py").write_text(f"import sys\n{text}\ndef predict(inputs):\n    return inputs\n")
    with pytest.raises(handlergen.errors.ModuleFailed, match="script could not be loaded: SystemExit: 7") as caught:
        handlergen.load(tmp_path / "script.py")
    assert "sys.exit(7)" in caught.value.traceback
    assert caught.value.hint is not None
    assert "must not end the process" in caught.value.hint
