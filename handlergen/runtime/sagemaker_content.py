"""The toolkit's default `input_fn` and `output_fn`: JSON, CSV and NPY, in and out."""

from __future__ import annotations

import io
import json
import warnings
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import torch

JSON, CSV, NPY = "application/json", "text/csv", "application/x-npy"

_TYPES = (JSON, CSV, NPY)


class UnsupportedType(Exception):
    """A content type that the defaults do not read (415), or an Accept that they do not write (406)."""

    def __init__(self, message: str, status_code: int) -> None:
        super().__init__(message)
        self.status_code = status_code
        self.detail = message


@dataclass(frozen=True)
class Reply:
    """An answer of `output_fn`; `encode` takes it as it takes a Starlette response."""

    body: Any
    media_type: str
    status_code: int = 200
    headers: Mapping[str, str] = field(default_factory=dict)


def is_text(kind: str) -> bool:
    """The toolkit hands these over as `str`."""
    return kind in (JSON, CSV)


def accepted(accept: str) -> str:
    """The first type of an Accept header, without parameters."""
    return accept.partition(",")[0].partition(";")[0].strip()


def default_input(body: Any, content_type: str) -> torch.Tensor:
    """A tensor of the numbers: float32 of JSON and CSV, the array's own type of NPY.

    A CSV cell that is no number is NaN and one row is one dimension, as in the toolkit. Pickles inside NPY, which the
    toolkit loads, are refused: a client could run code by them.

    Raises:
        UnsupportedType: Another content type: 415.
        ValueError: The body is not what its type says: 400.
    """
    import numpy as np

    kind = accepted(content_type)
    if kind == JSON:
        try:
            return torch.from_numpy(np.array(json.loads(body), dtype=np.float32))
        # An object, a null, a number beyond floats, lists without end: the client's doing as a ragged list is.
        except (TypeError, OverflowError, RecursionError) as error:
            raise ValueError(f"the JSON is no array of numbers: {error}") from error
    if kind == CSV:
        with warnings.catch_warnings():
            warnings.simplefilter("error")  # a cell that is no number is only warned of, an empty text too
            try:
                array = np.genfromtxt(io.StringIO(body), delimiter=",", dtype=np.float32)
            except Warning as warning:
                raise ValueError(f"the CSV cannot be read: {str(warning).strip()}") from warning
        return torch.from_numpy(array)
    if kind == NPY:
        try:
            return torch.from_numpy(np.load(io.BytesIO(body), allow_pickle=False))
        except (TypeError, EOFError) as error:  # texts, several arrays, nothing
            raise ValueError(f"the NPY is no array of numbers: {error}") from error
    raise UnsupportedType(
        f"content type {kind!r} is not supported; send one of: {', '.join(_TYPES)}", status_code=415
    )


def default_output(prediction: Any, accept: str) -> Reply:
    """The first type that the client accepts and that can be written.

    Raises:
        UnsupportedType: None of them: 406.
    """
    import numpy as np

    for wanted in (accepted(part) for part in accept.split(",")):
        if wanted in (JSON, "*/*", "application/*"):
            return Reply(prediction, JSON)
        if wanted == NPY:
            target = io.BytesIO()
            np.save(target, _array(prediction), allow_pickle=False)
            return Reply(target.getvalue(), NPY)
        if wanted in (CSV, "text/*"):
            text = io.StringIO()
            np.savetxt(text, np.atleast_1d(_array(prediction)), delimiter=",", fmt="%s")
            return Reply(text.getvalue(), CSV)
    raise UnsupportedType(
        f"no type of Accept: {accept} can be answered; ask for one of: {', '.join(_TYPES)}", status_code=406
    )


def _array(value: Any) -> Any:
    import numpy as np

    return value.detach().cpu().numpy() if isinstance(value, torch.Tensor) else np.asarray(value)
