"""What a value is made of, in a few bytes: whether it is still the same is seen by comparing two of them.

Plain values and containers count by content, objects by their attributes, tensors and arrays by where they are and a
sample of their content (small ones by all of it). What cannot be looked into (a file, a connection) is the same as long
as it is the same object. Nothing of it is copied but samples, and nothing is written anywhere.
"""

from __future__ import annotations

import contextlib
import copyreg
import ctypes
import functools
import hashlib
import io
import logging
import pickle
import queue
import sys
import threading
import time
from concurrent.futures import Executor
from types import CellType, FunctionType, MemberDescriptorType, ModuleType
from typing import Any, NamedTuple

import torch

from ..context import Context
from .own_files import OwnFiles

_MOST_BYTES = 4 << 20
"""Of one value's pickle; a longer one counts by this beginning and its length."""
_SMALL_BYTES = 1 << 20
"""Tensors and arrays up to this count by all of their content."""
_SAMPLE = 4096
_CONTENT_BYTES = 32 << 20
"""Of tensors and arrays altogether."""
_SECONDS = 1.0
"""After which the values that are left count by their identity."""
_SLOW_SECONDS = 0.1
"""What a library takes longer than this to pickle counts by its identity from then on."""

_SIZED = (list, tuple, dict, set, frozenset, str, bytes)
_ALIKE = (
    type(threading.Lock()),
    type(threading.RLock()),
    logging.Logger,
    logging.Handler,
    threading.Condition,
)
"""One is as good as another."""
_BY_IDENTITY = (
    type,
    torch.UntypedStorage,
    ModuleType,
    io.IOBase,
    threading.Thread,
    threading.local,
    Executor,
    queue.Queue,
    queue.SimpleQueue,
)


class Fingerprint(NamedTuple):
    """Of one value.

    Attributes:
        identity, shallow: The object, its type and its length; they decide where there is no digest.
        digest: Of its content; None when that cannot be told.
    """

    identity: int
    shallow: tuple[str, int | None]
    digest: bytes | None

    def same(self, other: Fingerprint) -> bool:
        """Whether both are of the same value, as far as can be told."""
        if self.digest is None or other.digest is None:
            return self[:2] == other[:2]
        return self.digest == other.digest


class Fingerprints:
    """Takes them. Those that are to be compared come from one process, and what they were taken by still lives.

    Args:
        files: Says which classes are the project's: their objects count by their attributes, whatever they say of
            how to pickle them.
    """

    def __init__(self, files: OwnFiles) -> None:
        self.files = files
        self.until = time.monotonic() + _SECONDS
        self._content_left = _CONTENT_BYTES
        self._kept: list[Any] = []

    def of(self, value: Any, *, like: Fingerprint | None = None) -> Fingerprint:
        """A value's fingerprint. Nothing is raised.

        Args:
            like: What it is to be compared with, if that is there: without a digest there, none is made here.
        """
        length = len(value) if type(value) in _SIZED else None
        digest: bytes | None = None
        began = time.monotonic()
        try:
            if like is None or like.digest is not None:
                digest, is_foreign = self._digest(value, length)
                slow = time.monotonic() - began > _SLOW_SECONDS
                if is_foreign and like is None and (slow or digest != self._digest(value, length)[0]):
                    digest = None  # a library pickles it differently each time
        except Exception:  # it contains itself, is nested too deeply, changes meanwhile
            digest = None
        if digest is None:
            self._kept.append(value)
        return Fingerprint(id(value), (type(value).__qualname__, length), digest)

    def identity(self, value: Any) -> int:
        """A number that stays the object's own."""
        self._kept.append(value)
        return id(value)

    def may_read(self, nbytes: int) -> bool:
        """Whether all of a tensor or an array of so many bytes may be looked at."""
        if nbytes > min(_SMALL_BYTES, self._content_left):
            return False
        self._content_left -= nbytes
        return True

    def _digest(self, value: Any, length: int | None) -> tuple[bytes | None, bool]:
        """The digest, and whether a library's own pickling was asked."""
        if time.monotonic() > self.until:
            return None, False
        digest = hashlib.blake2b(repr(length).encode(), digest_size=16)
        writer = _Writer(self, digest)
        with contextlib.suppress(_Enough):
            writer.dump(value)
        return digest.digest(), writer.is_foreign


class _Enough(Exception):
    """The beginning is enough."""


class _Digesting:
    """The file that a pickle is written to."""

    def __init__(self, digest: Any) -> None:
        self._digest = digest
        self._left = _MOST_BYTES

    def write(self, data: Any) -> int:
        with memoryview(data).cast("B") as view:
            self._digest.update(view[: self._left])
            self._left -= view.nbytes
        if self._left <= 0:
            raise _Enough
        return 0


class _Writer(pickle.Pickler):
    """Pickles a value, with other values in place of what has another measure. It is never read back."""

    def __init__(self, taken: Fingerprints, digest: Any) -> None:
        super().__init__(_Digesting(digest), protocol=4)
        self.fast = True  # equal values give equal bytes, whichever of their parts are the same object
        self.is_foreign = False
        self._taken = taken
        self._seen: dict[int, tuple[int, Any]] = {}
        """By identity: which one it was. The object itself, so that no other one takes its identity."""

    def reducer_override(self, obj: Any) -> Any:
        """Called by `pickle` for all but plain values and containers."""
        if obj is tuple:
            return NotImplemented
        if time.monotonic() > self._taken.until:
            raise TimeoutError
        if id(obj) in self._seen:
            return _instead("again", self._seen[id(obj)][0])
        self._seen[id(obj)] = (len(self._seen), obj)
        kind = type(obj)
        numpy: Any = sys.modules.get("numpy")
        parts: tuple[Any, ...]
        if isinstance(obj, torch.Tensor):
            parts = ("tensor", *self._of_tensor(obj))
        elif numpy is not None and isinstance(obj, numpy.ndarray):
            parts = ("array", *self._of_array(obj))
        elif isinstance(obj, FunctionType):
            parts = ("function", *self._of_function(obj))
        elif isinstance(obj, _ALIKE):
            parts = ("alike", kind.__qualname__)
        elif isinstance(obj, _BY_IDENTITY):
            parts = ("object", self._taken.identity(obj))
        elif isinstance(obj, Context):
            parts = ("context", obj.config)
        elif kind is _CACHED:  # what is in the cache, its function would return anyway
            parts = ("cached", obj.__wrapped__)
        elif self._taken.files.has_class(kind) and _is_plain(kind):
            parts = ("ours", self._taken.identity(kind), _attributes(obj))
        else:
            return self._of_object(obj)
        return _instead(*parts)

    def _of_object(self, obj: Any) -> Any:
        """As it says of itself how to pickle it; else its attributes; else its identity."""
        kind = type(obj)
        try:
            reduce = copyreg.dispatch_table.get(kind)
            found = reduce(obj) if reduce is not None else obj.__reduce_ex__(4)
        except Exception:
            found = None
        if isinstance(found, tuple):
            self.is_foreign = True
            return found
        attributes = _attributes(obj) if found is None else None
        if attributes is None:
            return _instead("object", self._taken.identity(obj))
        return _instead("foreign", self._taken.identity(kind), attributes)

    def _of_function(self, function: FunctionType) -> tuple[Any, ...]:
        code = self._taken.identity(function.__code__)
        if not self._taken.files.has_function(function):
            return (code,)
        cells = [_content(cell) for cell in function.__closure__ or ()]
        return (code, function.__defaults__, function.__kwdefaults__, cells, function.__dict__)

    def _of_tensor(self, tensor: torch.Tensor) -> tuple[Any, ...]:
        about = (str(tensor.dtype), tuple(tensor.shape), str(tensor.device))
        if tensor.device.type == "meta":
            return about
        if tensor.layout is not torch.strided or tensor.is_quantized:
            return (*about, self._taken.identity(tensor))
        tensor = tensor.detach()
        is_here = tensor.device.type == "cpu"  # a sample of another device would wait for it
        if is_here and self._taken.may_read(tensor.numel() * tensor.element_size()):
            return (*about, _bytes(tensor))
        sample = _bytes(torch.take(tensor, torch.tensor(_spread(tensor.numel())))) if is_here else b""
        # An inference tensor counts no versions.
        return (*about, tensor.data_ptr(), None if tensor.is_inference() else tensor._version, sample)

    def _of_array(self, array: Any) -> tuple[Any, ...]:
        about = (str(array.dtype), array.shape)
        if array.dtype.hasobject:
            return (*about, list(array.flat[:_SAMPLE]))
        if self._taken.may_read(array.nbytes):
            return (*about, array.tobytes())
        return (*about, array.__array_interface__["data"][0], array.flat[_spread(array.size)].tobytes())


_CACHED: type = type(functools.lru_cache(lambda: None))
_HEAP_TYPE = 1 << 9  # Py_TPFLAGS_HEAPTYPE: made by a class statement


def _instead(*parts: Any) -> tuple[Any, ...]:
    """What a reducer returns for an object that is written as these parts."""
    return (tuple, (parts,))


def _is_plain(kind: type) -> bool:
    """Whether all that its objects are made of is in their attributes."""
    return not any(
        "__reduce_ex__" in vars(each) or "__reduce__" in vars(each) or not each.__flags__ & _HEAP_TYPE
        for each in kind.__mro__[:-1]
    )


def _attributes(obj: Any) -> dict[str, Any] | None:
    """Those of the object itself, without what `functools.cached_property` keeps; None when it cannot have any."""
    kinds = type(obj).__mro__
    found: dict[str, Any] | None = None
    with contextlib.suppress(AttributeError):
        found = {
            name: value
            for name, value in object.__getattribute__(obj, "__dict__").items()
            if not any(isinstance(vars(kind).get(name), functools.cached_property) for kind in kinds)
        }
    for kind in kinds:
        for name, member in vars(kind).items():
            if isinstance(member, MemberDescriptorType):
                found = {} if found is None else found
                with contextlib.suppress(AttributeError):
                    found[name] = member.__get__(obj)
    return found


def _content(cell: CellType) -> Any:
    try:
        return cell.cell_contents
    except ValueError:  # it is still empty
        return None


def _bytes(tensor: torch.Tensor) -> bytes:
    whole = tensor.contiguous()
    return ctypes.string_at(whole.data_ptr(), whole.numel() * whole.element_size()) if whole.numel() else b""


def _spread(count: int) -> list[int]:
    """Some of so many places, from the first to the last."""
    return [index * (count - 1) // (_SAMPLE - 1) for index in range(_SAMPLE)]
