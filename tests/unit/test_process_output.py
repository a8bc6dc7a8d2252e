"""What a predictor process prints, on its way into a worker's log."""

from __future__ import annotations

from pathlib import Path

import pytest

from handlergen.runtime.process.output import Forwarder


def test_one_worker_hands_the_output_on_and_another_goes_on_where_it_ended(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    output = tmp_path / "output"
    one, other = Forwarder(output), Forwarder(output)
    one.forward()  # nothing there yet
    output.write_text("first\nsecond\nhal")
    one.forward()
    other.forward()
    assert capsys.readouterr().out == "first\nsecond\n"
    with output.open("a") as file:
        file.write("f\n")
    one.close()
    other.forward()
    assert capsys.readouterr().out == "half\n"
    with output.open("a") as file:
        file.write("no end of line")
    other.forward()
    assert capsys.readouterr().out == "no end of line"
    other.close()


def test_output_of_a_process_in_a_new_directory_is_found(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    place = tmp_path / "home"
    forwarder = Forwarder(place / "output")
    for life in ("one", "two"):
        place.mkdir()
        (place / "output").write_text(f"life {life}\n")
        forwarder.forward()
        assert capsys.readouterr().out == f"life {life}\n"
        for file in place.iterdir():
            file.unlink()
        place.rmdir()
        forwarder.forward()
    forwarder.close()


def test_a_long_output_is_cut(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    output = tmp_path / "output"
    forwarder = Forwarder(output)
    with output.open("ab", buffering=0) as file:  # as the process writes: at the end, wherever that is
        for number in range(300):
            file.write(b"%04d" % number + b"x" * 9_995 + b"\n")
            forwarder.forward()
        file.write(b"last\n")
        forwarder.forward()
    forwarder.close()
    lines = capsys.readouterr().out.splitlines()
    assert [line[:4] for line in lines] == [f"{number:04d}" for number in range(300)] + ["last"]
    assert output.stat().st_size < 1_100_000
