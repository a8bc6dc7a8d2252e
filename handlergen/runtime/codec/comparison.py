"""Whether an answer is the right one: numbers within a tolerance, all else exactly, with each place that differs."""

from __future__ import annotations

import hashlib
import io
import json
import math
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

from .content import JSON, NDJSON, NPY, optional_module, parse_type

TOLERANCE = 1e-3
"""How much two numbers may differ by default, in proportion to the larger one."""
_NEAR_ZERO = 1e-3
"""Numbers may also differ by this share of the tolerance itself: 0 and 1e-9 are no different probabilities."""
_SHOWN = 120
"""Characters of a value that are shown."""
_MISSING = object()


class Difference(NamedTuple):
    """One place where two answers differ.

    Attributes:
        path: In the answer: `answer.predictions[3].score`; `answer` is the whole.
        expected, found: The values there as text, shortened; `(missing)` where there is none.
        note: What explains the difference: `tolerance 0.001`; may be empty.
    """

    path: str
    expected: str
    found: str
    note: str = ""

    def __str__(self) -> str:
        return f"{self.path}: {self.expected} ≠ {self.found}" + (f" ({self.note})" if self.note else "")


def digest_of(body: bytes) -> str:
    """Return how a binary answer is named without its bytes: `sha256:` and 64 hexadecimal digits."""
    return f"sha256:{hashlib.sha256(body).hexdigest()}"


def differences(
    expected: bytes,
    found: bytes,
    content_type: str = "",
    *,
    tolerance: float = TOLERANCE,
    pixel_tolerance: float = 0.0,
) -> list[Difference]:
    """Return where two bodies of one content type differ; equal bytes never do.

    JSON (also if no type is given), lines of JSON, and `.npy` arrays are compared by value, images by their pixels if
    Pillow is installed, and all else byte by byte.

    Args:
        tolerance: Floating-point numbers may differ by this share of the larger one. Integers are equal or not.
        pixel_tolerance: The channels of two pixels may differ by so many of 255 levels.
    """
    if expected == found:
        return []
    mime = parse_type(content_type)[0]
    if mime in (JSON, NDJSON, "") or mime.endswith("+json"):
        if mime == NDJSON:
            expected, found = _as_list(expected), _as_list(found)
        return _of_json(expected, found, tolerance)
    if mime.startswith("image/"):
        return _of_images(expected, found, pixel_tolerance)
    if mime == NPY:
        return _of_arrays(expected, found, tolerance)
    is_text = mime.startswith("text/")
    is_same = is_text and expected.rstrip(b"\n") == found.rstrip(b"\n")  # editors end a file with a line break
    return [] if is_same else [_of_bytes(expected, found, is_text=is_text)]


def _as_list(lines: bytes) -> bytes:
    return b"[" + b",".join(line for line in lines.splitlines() if line.strip()) + b"]"


def _of_json(expected: bytes, found: bytes, tolerance: float) -> list[Difference]:
    try:
        before, after = json.loads(expected), json.loads(found)
    except (ValueError, RecursionError):
        return [_of_bytes(expected, found, is_text=True)]
    return list(value_differences(before, after, tolerance=tolerance))


def value_differences(expected: Any, found: Any, path: str = "answer", *, tolerance: float) -> Iterator[Difference]:
    """Yield where two JSON values differ."""
    if isinstance(expected, dict) and isinstance(found, dict):
        for key in {**expected, **found}:
            one, other = expected.get(key, _MISSING), found.get(key, _MISSING)
            yield from value_differences(one, other, f"{path}.{key}", tolerance=tolerance)
    elif isinstance(expected, list) and isinstance(found, list):
        for index, (one, other) in enumerate(zip(expected, found)):
            yield from value_differences(one, other, f"{path}[{index}]", tolerance=tolerance)
        if len(expected) != len(found):
            yield Difference(f"length of {path}", str(len(expected)), str(len(found)))
    elif not _is_same(expected, found, tolerance):
        numbers = isinstance(expected, float) or isinstance(found, float)
        note = f"tolerance {tolerance:g}" if numbers and _are_numbers(expected, found) else ""
        yield Difference(path, _as_text(expected), _as_text(found), note)


def _are_numbers(*values: Any) -> bool:
    return all(type(each) in (int, float) for each in values)  # True is no number


def _is_same(expected: Any, found: Any, tolerance: float) -> bool:
    if not _are_numbers(expected, found):
        return type(expected) is type(found) and bool(expected == found)
    if type(expected) is type(found) is int:
        return bool(expected == found)
    close = math.isclose(expected, found, rel_tol=tolerance, abs_tol=tolerance * _NEAR_ZERO)
    return close or repr(expected) == repr(found)  # NaN


def _as_text(value: Any) -> str:
    return "(missing)" if value is _MISSING else shortened(json.dumps(value, ensure_ascii=False))


def shortened(text: str | bytes) -> str:
    """Return at most 120 characters of a text."""
    shown = text.decode("utf-8", "replace") if isinstance(text, (bytes, bytearray)) else text
    return shown if len(shown) <= _SHOWN else f"{shown[:_SHOWN]}…"


def _of_bytes(expected: bytes, found: bytes, *, is_text: bool) -> Difference:
    if is_text:
        return Difference("answer", shortened(expected), shortened(found))
    sizes = f"{len(expected):,} and {len(found):,} bytes"
    return Difference("answer", digest_of(expected), digest_of(found), sizes)


def _of_images(expected: bytes, found: bytes, pixel_tolerance: float) -> list[Difference]:
    pillow, numpy = optional_module("PIL.Image"), optional_module("numpy")
    if pillow is None or numpy is None:
        return [_of_bytes(expected, found, is_text=False)._replace(note="compared without Pillow: by their bytes")]
    try:
        before, after = (pillow.open(io.BytesIO(body)) for body in (expected, found))
        shapes = [f"{image.width} x {image.height} {image.mode}" for image in (before, after)]
        if shapes[0] != shapes[1]:
            return [Difference("image", shapes[0], shapes[1])]
        apart = numpy.abs(numpy.asarray(before, dtype="float64") - numpy.asarray(after, dtype="float64"))
    except Exception as error:  # whatever is no image: Pillow raises many kinds
        note = f"{type(error).__name__}: {error}"
        return [_of_bytes(expected, found, is_text=False)._replace(note=note)]
    if apart.size == 0 or apart.max() <= pixel_tolerance:
        return []
    row, column = (int(place) for place in numpy.unravel_index(apart.argmax(), apart.shape)[:2])
    pixels = [str(image.getpixel((column, row))) for image in (before, after)]
    note = f"furthest apart, by {apart.max():g} of 255; pixel tolerance {pixel_tolerance:g}"
    return [Difference(f"pixel ({column}, {row})", pixels[0], pixels[1], note)]


def _of_arrays(expected: bytes, found: bytes, tolerance: float) -> list[Difference]:
    numpy = optional_module("numpy")
    if numpy is None:
        return [_of_bytes(expected, found, is_text=False)._replace(note="compared without numpy: by their bytes")]
    load: Callable[[bytes], Any] = lambda body: numpy.load(io.BytesIO(body), allow_pickle=False)  # noqa: E731
    try:
        before, after = load(expected), load(found)
    except Exception as error:
        note = f"{type(error).__name__}: {error}"
        return [_of_bytes(expected, found, is_text=False)._replace(note=note)]
    kinds = [f"{array.dtype}{list(array.shape)}" for array in (before, after)]
    if kinds[0] != kinds[1]:
        return [Difference("array", kinds[0], kinds[1])]
    if before.dtype.kind in "fc":
        close = numpy.isclose(after, before, rtol=tolerance, atol=tolerance * _NEAR_ZERO, equal_nan=True)
        note = f"tolerance {tolerance:g}"
    else:
        close, note = before == after, ""
    return [
        Difference(f"array{list(map(int, place))}", str(before[tuple(place)]), str(after[tuple(place)]), note)
        for place in numpy.argwhere(~close)[:5]
    ]
