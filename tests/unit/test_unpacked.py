"""What works where it was written and would fail where it is served is said beforehand."""

from __future__ import annotations

from pathlib import Path

import pytest

from handlergen.archives.collecting import named_but_not_packed
from handlergen.cli.printing import writable
from handlergen.errors import HandlergenError

MODULE = '''
"""weights.bin is read by load."""
HIDDEN = "secrets/key.pem"

def load(context):
    return open(context.model_dir / "weights.bin"), open("labels.txt"), "helper.py", "no/such.file"
'''


def test_a_named_file_that_is_not_packed_is_warned_about(tmp_path: Path) -> None:
    (tmp_path / "secrets").mkdir()
    for name in ("weights.bin", "labels.txt", "helper.py", "secrets/key.pem"):
        (tmp_path / name).write_text("x")
    module = tmp_path / "model.py"
    module.write_text(MODULE)
    warnings = named_but_not_packed({"model.py": module, "labels.txt": tmp_path / "labels.txt"}, tmp_path)
    assert [warning.split(" is named")[0] for warning in warnings] == [
        "model.py:3: 'secrets/key.pem'",
        "model.py:6: 'weights.bin'",
    ]
    assert "--extra-file secrets/key.pem" in warnings[0]


def test_files_elsewhere_and_broken_modules_are_no_concern(tmp_path: Path) -> None:
    module = tmp_path / "model.py"
    module.write_text("path = '../outside.txt'\nother = '/etc/hosts.conf'\n")
    (tmp_path.parent / "outside.txt").write_text("x")
    broken = tmp_path / "broken.py"
    broken.write_text("def (")
    assert named_but_not_packed({"model.py": module, "broken.py": broken}, tmp_path) == []


def test_output_that_cannot_be_written_is_told_first(tmp_path: Path) -> None:
    assert writable(tmp_path / "x") == tmp_path / "x"
    with pytest.raises(HandlergenError, match="there is no directory"):
        writable(tmp_path / "no" / "x")
