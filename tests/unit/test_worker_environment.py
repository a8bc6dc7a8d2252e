"""What a worker's environment lacks, in one line, before anything of the runtime but the check is imported."""

from __future__ import annotations

import ast
import subprocess
import sys
from pathlib import Path

import pytest

from handlergen.runtime import environment
from tests.commands import pythons

RUNTIME = Path(environment.__file__).parent

PROGRAM = """
import sys
sys.path.insert(0, sys.argv[1])
from handlergen_runtime.environment import require_environment
try:
    require_environment()
except ImportError:
    sys.exit("an ImportError, which TorchServe takes for a missing handler")
except RuntimeError as error:
    print(error)
"""

SUITABLE = {"ts/__init__.py": "__version__ = '0.12.0'", "torch.py": "__version__ = '2.1.0+cpu'"}

LACKING = {
    "torch is not installed for Python": {"torch.py": None},
    "torch 1.13.1+cu117 is too old: the archive needs 2.1 or newer for Python": {
        "torch.py": "__version__ = '1.13.1+cu117'"
    },
    "torch cannot be imported by Python": {"torch.py": "raise OSError('libcudart.so.12: no such file')"},
    "the package typing_extensions is not installed for Python": {"torch.py": "import typing_extensions"},
    "TorchServe 0.8.2 is too old: the archive needs 0.9 or newer for Python": {
        "ts/__init__.py": "__version__ = '0.8.2'"
    },
}


def said(python: Path | str, directory: Path) -> list[str]:
    """What a worker prints that checks its environment: a Python without any installed package."""
    (directory / "handlergen_runtime").symlink_to(RUNTIME)
    command = [python, "-I", "-S", "-B", "-c", PROGRAM, directory]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout.splitlines()


@pytest.mark.parametrize("line", LACKING)
def test_what_is_missing_or_too_old_is_said_in_one_line(line: str, tmp_path: Path) -> None:
    for name, text in {**SUITABLE, **LACKING[line]}.items():
        if text is not None:
            (tmp_path / name).parent.mkdir(exist_ok=True)
            (tmp_path / name).write_text(text)
    printed, raised = said(sys.executable, tmp_path)
    assert printed == environment.REPORT + raised
    assert raised.startswith(line)
    assert sys.executable in raised


def test_older_pythons_compile_the_check_and_say_that_they_are_too_old(tmp_path: Path) -> None:
    ast.parse((RUNTIME / "environment.py").read_text("utf-8"), feature_version=(3, 7))
    found = pythons((7, 8))
    if not found:
        pytest.skip("neither Python 3.7 nor 3.8 on this machine")
    printed, raised = said(next(iter(found.values())), tmp_path)
    assert printed == environment.REPORT + raised
    assert raised.endswith("is too old: the archive needs Python 3.9 or newer")


def test_what_an_archive_lacks_when_its_module_fails(tmp_path: Path) -> None:
    (tmp_path / "newer.py").write_text("x = 1\nclass = 2\n")
    (tmp_path / "requirements.txt").write_text("scikit-nobody==1.0\n")

    def reason(code: str) -> str:
        try:
            exec(code, {"place": str(tmp_path)})
        except Exception as error:
            return environment.reason_of(error, tmp_path)
        raise AssertionError("nothing was raised")

    assert reason("import sys; sys.path.insert(0, place)\nimport newer").startswith(
        "newer.py, line 2, is no valid code"
    )
    sys.path.remove(str(tmp_path))
    assert "requirements.txt lists it, and TorchServe installs that only with" in reason("import scikit_nobody.part")
    assert "is not installed for Python 3." in reason("import a_package_that_nobody_has")
    assert reason("open(place + '/weights.pt')").startswith("the archive has no file weights.pt;")
    program = "import subprocess; subprocess.run(['a-program-that-nobody-has'])"
    assert reason(program) == "the program a-program-that-nobody-has is not on the PATH of this worker"
    assert reason("open('/nowhere/weights.pt')").startswith("FileNotFoundError: [Errno 2] No such file")
    assert reason("raise KeyError('two\\nlines')") == "KeyError: 'two\\nlines'"
    assert reason("raise ValueError('two\\nlines')") == "ValueError: two lines"


def test_a_worker_without_the_gpu_that_it_is_to_use(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("torch.cuda.is_available", lambda: False)
    environment.require_gpu(None, {"deviceType": "cpu"})
    with pytest.raises(environment.Unsuitable, match="TorchServe sees none on this machine"):
        environment.require_gpu(None, {"deviceType": "gpu"})
    with pytest.raises(environment.Unsuitable, match=r"has given this worker GPU 0, which torch .* cannot use"):
        environment.require_gpu(0, {})
