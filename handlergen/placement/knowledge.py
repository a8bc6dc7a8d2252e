"""What is known of Python's and torch's own names: which methods change nothing, what touches a device."""

from __future__ import annotations

import sys


def _words(text: str) -> tuple[str, ...]:
    return tuple(text.split())


FRESH = frozenset(
    _words(
        "all any ascii bin bool bytes callable chr complex float format hash hex id int isinstance issubclass len oct "
        "open ord print range repr str input bytearray memoryview NotImplementedError Exception ValueError "
        "TypeError KeyError RuntimeError IndexError OSError AssertionError FileNotFoundError"
    )
)
"""Builtins that hand on nothing of what they are given but plain values."""

DYNAMIC = frozenset(_words("globals exec eval __import__ breakpoint"))
"""Builtins by which a name can be reached that the source does not show."""

CACHES = frozenset({"functools.cache", "functools.lru_cache", "cachetools.cached", "joblib.Memory.cache"})

_CHANGES_NOTHING = frozenset(
    _words(
        "count index copy keys values items split rsplit join strip lstrip rstrip lower upper title startswith "
        "endswith replace format encode decode tokenize batch_encode_plus encode_plus batch_decode "
        "convert_ids_to_tokens convert_tokens_to_ids transform predict exists joinpath with_suffix with_name "
        "resolve absolute glob rglob iterdir open relative_to match search fullmatch findall finditer sub subn "
        "info debug warning error exception critical log acquire release submit map view reshape clone detach "
        "cpu numpy item tolist float long half int bool size dim numel union intersection difference issubset "
        "issuperset isdigit zfill group groups parameters named_parameters buffers named_buffers modules children "
        "state_dict forward lookup describe total_seconds argmax softmax mean sum max min"
    )
)
_LOOKS = _words("get is_ has_ to_ as_ from_ read _get __len __contains")

_CHANGES = _words(
    "add append assign cache clear collect commit discard extend fill fit inc insert load mark move_to_end next "
    "observe partial_fit pop popleft push put record register remember remove reset reverse rotate save seek "
    "send set sort store subtract swap train truncate update warm write __set"
)

FILLS = frozenset(_words("append insert extend update add setdefault clear remove pop register"))
"""What changes a list or dict that a library offers: `nltk.data.path.append`."""

CHANGES_ARGUMENTS = frozenset(
    _words(
        "random.shuffle bisect.insort bisect.insort_left bisect.insort_right heapq.heappush heapq.heappop "
        "heapq.heapify heapq.heapreplace heapq.heappushpop operator.setitem operator.delitem operator.iadd "
        "operator.ior operator.iconcat numpy.copyto numpy.put"
    )
)
"""Functions that change what they are given."""

ASKS_ONLY = frozenset({"torch.cuda.is_available", "torch.cuda.device_count", "torch.cuda.is_initialized"})
"""What says whether there is a GPU without making a context on it."""

MAKES_CUDA = frozenset({"cuda", "pin_memory"})
"""Methods of tensors and modules that initialise CUDA, whatever they are given."""

_GPU_LIBRARIES = _words("torch.cuda torch.mps cupy cudf cuml pycuda numba.cuda tensorrt nvidia")
_ACCELERATORS = _words("cuda mps xpu hpu")


def changes_nothing(method: str) -> bool:
    """Does a method of an unknown object surely leave it as it is, by its name?"""
    return method in _CHANGES_NOTHING or method.startswith(_LOOKS)


def sounds_like_change(method: str) -> bool:
    """Does the name of a library's method say that it changes the object?"""
    if changes_nothing(method):
        return False
    return method.startswith((*_CHANGES, "appendleft", "extendleft")) or method.endswith("_")


def is_accelerator(text: str) -> bool:
    """`cuda`, `cuda:1`, `CUDAExecutionProvider`."""
    return text.lower().startswith(_ACCELERATORS)


def is_gpu_library(name: str) -> bool:
    """Is it a name of torch's or another library's part for accelerators?"""
    return any(name == library or name.startswith(library + ".") for library in _GPU_LIBRARIES)


def is_standard(name: str) -> bool:
    """Does a dotted name belong to the standard library?"""
    return name.partition(".")[0] in sys.stdlib_module_names


def same_state(written: str, read: str) -> bool:
    """May a change of the library's `written` be seen through its `read`?"""
    if written == "os.environ" and read == "os.getenv":
        return True
    if is_standard(written):
        return written == read or written.startswith(read + ".") or read.startswith(written + ".")
    return written.partition(".")[0] == read.partition(".")[0]
