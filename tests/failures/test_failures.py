"""What a user sees for a bad source or bad settings, word for word.

Each file in `cases/` is one story: the files of a tiny project (`=== name`), the command (`=== $ handlergen …`),
and what it prints and its exit status (`=== expected`). To rewrite the expectations after a change of words, and
to read them in the diff: UPDATE_SNAPSHOTS=1 pytest tests/failures
"""

from __future__ import annotations

import os
import re
import shlex
from pathlib import Path

import pytest

from handlergen.cli import main

CASES = sorted((Path(__file__).parent / "cases").glob("*.txt"))
_HEADER = re.compile(r"^=== (.*)\n", re.MULTILINE)


def sections(text: str) -> dict[str, str]:
    """Header to body, in order."""
    parts = _HEADER.split(text)
    return dict(zip(parts[1::2], parts[2::2], strict=True))


@pytest.mark.parametrize("case", CASES, ids=lambda path: path.stem)
def test_what_a_user_sees(
    case: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    text = case.read_text(encoding="utf-8")
    found = sections(text)
    command = ""
    for header, body in found.items():
        if header.startswith("$ handlergen "):
            command = header.removeprefix("$ handlergen ")
        elif header != "expected":
            path = tmp_path / header
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(body, encoding="utf-8")
    assert command, f"{case.name} has no command"
    monkeypatch.chdir(tmp_path)
    with pytest.raises(SystemExit) as ended:
        main(shlex.split(command))
    printed = capsys.readouterr()
    seen = f"{printed.out}{printed.err}(exit status {ended.value.code})\n"
    if os.environ.get("UPDATE_SNAPSHOTS"):
        case.write_text(text.partition("=== expected\n")[0] + "=== expected\n" + seen, encoding="utf-8")
    assert seen == sections(case.read_text(encoding="utf-8"))["expected"]


def test_there_are_cases() -> None:
    assert len(CASES) > 20
