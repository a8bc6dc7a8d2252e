"""The toolkit's default `input_fn` and `output_fn`: JSON, CSV and NPY, in and out."""

from __future__ import annotations

import importlib
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
    kind = accepted(content_type)
    if kind == JSON:
        try:
            return _float_tensor(json.loads(body))
        # An object, a null, a number beyond floats, lists without end: the client's doing as a ragged list is.
        except (TypeError, OverflowError, RecursionError) as error:
            raise ValueError(f"the JSON is no array of numbers: {error}") from error
    if kind == CSV:
        np = _numpy(kind, 415)
        with warnings.catch_warnings():
            warnings.simplefilter("error")  # a cell that is no number is only warned of, an empty text too
            try:
                array = np.genfromtxt(io.StringIO(body), delimiter=",", dtype=np.float32)
            except Warning as warning:
                raise ValueError(f"the CSV cannot be read: {str(warning).strip()}") from warning
        return torch.from_numpy(array)
    if kind == NPY:
        np = _numpy(kind, 415)
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
    for wanted in (accepted(part) for part in accept.split(",")):
        if wanted in (JSON, "*/*", "application/*"):
            return Reply(prediction, JSON)
        if wanted == NPY:
            np, target = _numpy(NPY, 406), io.BytesIO()
            np.save(target, _array(np, prediction), allow_pickle=False)
            return Reply(target.getvalue(), NPY)
        if wanted in (CSV, "text/*"):
            np, text = _numpy(CSV, 406), io.StringIO()
            np.savetxt(text, np.atleast_1d(_array(np, prediction)), delimiter=",", fmt="%s")
            return Reply(text.getvalue(), CSV)
    raise UnsupportedType(
        f"no type of Accept: {accept} can be answered; ask for one of: {', '.join(_TYPES)}", status_code=406
    )


def _float_tensor(value: Any) -> torch.Tensor:
    """Return JSON's numbers as float32; numpy, where it is installed, also reads numbers that are written as text."""
    try:
        import numpy as np
    except ImportError:
        return torch.tensor(value, dtype=torch.float32)
    return torch.from_numpy(np.array(value, dtype=np.float32))


def _numpy(kind: str, status_code: int) -> Any:
    try:
        return importlib.import_module("numpy")
    except ImportError as error:
        raise UnsupportedType(
            f"{kind} needs numpy, which this worker does not have; send and accept {JSON}, or add numpy to the "
            "requirements",
            status_code,
        ) from error


def _array(np: Any, value: Any) -> Any:
    return value.detach().cpu().numpy() if isinstance(value, torch.Tensor) else np.asarray(value)
