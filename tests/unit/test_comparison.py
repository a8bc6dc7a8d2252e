"""What counts as the same answer, and how a difference is shown."""

from __future__ import annotations

import io
from typing import Any

import numpy
import pytest
from PIL import Image

from handlergen.runtime.codec.comparison import differences, digest_of
from handlergen.runtime.examples import Example, Part, RightAnswer, from_files, to_files


@pytest.mark.parametrize(
    ("expected", "found", "content_type", "shown"),
    [
        (b'{"a": 1.0}', b'{"a": 1.0009}', "application/json", []),
        (
            b'{"a": [{"b": 0.871}]}',
            b'{"a": [{"b": 0.902}]}',
            "application/json; charset=utf-8",
            ["answer.a[0].b: 0.871 ≠ 0.902 (tolerance 0.001)"],
        ),
        (b"[0.0, 1]", b"[1e-9, 1.0]", "", []),
        (b"[1000]", b"[1001]", "", ["answer[0]: 1000 ≠ 1001"]),
        (b"[1]", b"[1, 2]", "", ["length of answer: 1 ≠ 2"]),
        (b'{"a": "x"}', b'{"b": "x"}', "", ['answer.a: "x" ≠ (missing)', 'answer.b: (missing) ≠ "x"']),
        (b"[true]", b"[1]", "", ["answer[0]: true ≠ 1"]),
        (b"[NaN, null]", b"[NaN,null]", "", []),
        (b'{"x":1.0}\n{"x":2.0}\n', b'{"x":1.0}\n{"x":2.5}\n', "application/x-ndjson", None),
        (b"plain", b"other", "text/plain", ["answer: plain ≠ other"]),
        (b"1.0", b"1.00001", "text/plain", ["answer: 1.0 ≠ 1.00001"]),
        (b"\x00a", b"\x00b", "application/octet-stream", None),
    ],
)
def test_bodies(expected: bytes, found: bytes, content_type: str, shown: list[str] | None) -> None:
    texts = [str(each) for each in differences(expected, found, content_type)]
    assert len(texts) == 1 if shown is None else texts == shown
    assert differences(found, found, content_type) == []


def png(colour: tuple[int, int, int], size: tuple[int, int] = (4, 3), **how: Any) -> bytes:
    target = io.BytesIO()
    Image.new("RGB", size, colour).save(target, "png", **how)
    return target.getvalue()


def test_images_are_compared_by_their_pixels() -> None:
    black = png((0, 0, 0))
    assert black != png((0, 0, 0), compress_level=0)
    assert differences(black, png((0, 0, 0), compress_level=0), "image/png") == []
    assert differences(black, png((2, 0, 0)), "image/png", pixel_tolerance=2) == []
    (found,) = differences(black, png((3, 0, 0)), "image/png", pixel_tolerance=2)
    assert str(found) == "pixel (0, 0): (0, 0, 0) ≠ (3, 0, 0) (furthest apart, by 3 of 255; pixel tolerance 2)"
    (found,) = differences(black, png((0, 0, 0), (5, 3)), "image/png")
    assert str(found) == "image: 4 x 3 RGB ≠ 5 x 3 RGB"


def npy(values: Any) -> bytes:
    target = io.BytesIO()
    numpy.save(target, numpy.asarray(values))
    return target.getvalue()


def test_arrays_are_compared_by_value() -> None:
    kind = "application/x-npy"
    assert differences(npy([1.0, 2.0]), npy([1.0, 2.001]), kind) == []
    assert [str(each) for each in differences(npy([1.0, 2.0]), npy([1.0, 2.1]), kind)] == [
        "array[1]: 2.0 ≠ 2.1 (tolerance 0.001)"
    ]
    assert [str(each) for each in differences(npy([1, 2]), npy([[1, 2]]), kind)] == ["array: int64[2] ≠ int64[1, 2]"]


def test_examples_survive_the_archive_and_judge_answers() -> None:
    image = Part("image/png", png((1, 2, 3)))
    examples = (
        Example.of_body("one", b"[1]", "application/json", answer=RightAnswer("application/json", b"[0.5]")),
        Example("form", {"image": image, "text": Part("", b"hello")}, is_form=True, tolerance=0.5),
        Example.of_body("wav", b"", "audio/wav", answer=RightAnswer("audio/wav", None, digest_of(b"sound"))),
    )
    files = to_files(examples)
    assert from_files(files.get) == examples
    one, form, wav = examples
    assert one.compare(200, "application/json", b"[0.5001]") == []
    assert [str(each) for each in one.compare(200, "text/plain", b"0.5")] == [
        "content type: application/json ≠ text/plain (answer: 0.5)"
    ]
    error = b'{"code":400,"type":"ValueError","message":"no","request_id":"x"}'
    assert [str(each) for each in one.compare(400, "application/json", error)] == ["answer: [0.5] ≠ 400 ValueError: no"]
    assert form.compare(200, "anything", b"x") == []
    assert len(form.compare(500, "application/json", error)) == 1
    assert wav.compare(200, "audio/wav", b"sound") == []
    assert len(wav.compare(200, "audio/wav", b"noise")) == 1
    words = Example.of_body("words", b"2", "application/json", answer=RightAnswer("text/plain", b"a b "))
    lines = Example.of_body("lines", b"2", "application/json", answer=RightAnswer("application/x-ndjson", b"1\n2.0\n"))
    assert words.compare(200, "", b'"a b "') == lines.compare(200, "", b"[1,2.0]") == []  # a stream over gRPC
    assert len(words.compare(200, "", b'"a"')) == len(lines.compare(200, "", b"[1]")) == 1
    content, headers = form.request()
    assert headers["content-type"] == "multipart/form-data"
    assert headers["image"] == {"content-type": "image/png"}
    assert content["text"] == b"hello"
    del files["handlergen_examples/1.answer"]
    with pytest.raises(ValueError, match=r"1\.answer is missing"):
        from_files(files.get)
