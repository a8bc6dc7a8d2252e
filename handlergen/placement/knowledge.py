"""What is known of Python's and torch's own names: which methods change nothing, what touches a device."""

from __future__ import annotations

import sys


def _words(text: str) -> tuple[str, ...]:
    return tuple(text.split())


FRESH = frozenset(
    _words(
        "all any ascii bin bool bytes callable chr complex float format hash hex id int isinstance issubclass len oct "
        "ord print range repr str input"
    )
)
"""Builtins that hand on nothing of what they are given, and make only what nobody can change."""

ASKS_VALUES = frozenset(_words("all any bool complex float format int max min range repr round sorted str"))
"""Builtins that a tensor has to tell its values, or that write them."""

_DIFFERS = _words(
    "random time uuid secrets os.urandom os.getpid tempfile datetime.datetime.now datetime.date.today"
)

DYNAMIC = frozenset(_words("globals exec eval __import__ breakpoint"))
"""Builtins by which a name can be reached that the source does not show."""

REACHES_NAMES = frozenset(
    _words(
        "sys._getframe inspect.currentframe inspect.stack inspect.getmodule gc.get_objects gc.get_referrers "
        "importlib.reload"
    )
)
"""Functions of the standard library by which they can be reached."""

CACHES = frozenset({"functools.cache", "functools.lru_cache", "cachetools.cached", "joblib.Memory.cache"})

MAKES_TEXT = frozenset(
    _words(
        "join strip lstrip rstrip lower upper title capitalize casefold swapcase startswith endswith replace format "
        "format_map encode decode zfill ljust rjust center expandtabs translate removeprefix removesuffix find rfind "
        "count index rindex hex isalnum isalpha isascii isdecimal isdigit isidentifier islower isnumeric isprintable "
        "isspace istitle isupper bit_length to_bytes is_integer"
    )
)
"""Methods of texts and numbers that make what nobody can change."""

_SAME_AGAIN = frozenset(
    _words("resolve absolute expanduser joinpath with_suffix with_name with_stem relative_to")
)
"""Methods of what nobody can change that make another of its kind."""

_CHANGES_NOTHING = (
    MAKES_TEXT
    | _SAME_AGAIN
    | frozenset(
        _words(
            "copy keys values items split rsplit splitlines partition rpartition tokenize batch_encode_plus "
            "encode_plus batch_decode convert_ids_to_tokens convert_tokens_to_ids transform predict exists glob rglob "
            "iterdir read_text read_bytes match search fullmatch findall finditer sub subn info debug warning error "
            "exception critical log acquire release submit map view reshape clone detach numpy item tolist astype size "
            "dim numel union intersection difference issubset issuperset group groups parameters named_parameters "
            "buffers named_buffers modules children state_dict forward lookup describe total_seconds argmax softmax "
            "mean sum max min"
        )
    )
)
_LOOKS = _words("get is_ has_ to_ as_ from_ _get __len __contains")

_LOOKS_MOSTLY = frozenset(_words("open to cpu half float double long int bool"))
"""Methods that change nothing of a tensor or a path, but may be how a reader or a network gets what it has."""

_VIEWS = frozenset(_words("view reshape detach numpy to_numpy"))

_HANDS_OUT = _words("get values items parameters buffers modules children")
"""Methods by which an object hands out what it holds."""

IMMUTABLE = frozenset(
    _words(
        "pathlib.Path pathlib.PurePath pathlib.PosixPath re.compile datetime.datetime datetime.date "
        "datetime.timedelta decimal.Decimal fractions.Fraction uuid.UUID types.MappingProxyType"
    )
)
"""What makes objects that nobody can change."""

_MAKES_TENSORS = _words("torch.nn.functional. torch.linalg. torch.fft. torch.special. torch.nn.init.")
_NO_TENSORS = _words(
    "is_ get_ has_ set_ use_ finfo iinfo device dtype manual_seed seed initial_seed load save compile no_grad "
    "enable_grad inference_mode"
)
_COUNTS = frozenset(_words("size dim numel stride element_size"))
_OUT_OF_TENSORS = frozenset(_words("tolist numpy item"))
DESCRIBES_TENSORS = frozenset(_words("shape dtype ndim device is_cuda is_meta requires_grad layout"))
"""Attributes that a tensor has without having values."""

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

PASSES_WHAT_IT_HOLDS = frozenset({"functools.partial", "functools.partialmethod", "threading.Thread"})
"""Makers of objects that call a function with what they were made with."""

MODULE_CALLS = frozenset(
    _words(
        "forward train eval to _apply load_state_dict _load_from_state_dict set_extra_state get_extra_state "
        "extra_repr model_post_init"
    )
)
"""Methods of a project's class that its base in torch.nn or pydantic calls."""

_HANDS_ON = _words(
    "functools.wraps functools.cache functools.lru_cache functools.total_ordering functools.cached_property "
    "contextlib. dataclasses. abc. typing. typing_extensions. enum. attr. attrs. pydantic. torch. numba. jax. "
    "tenacity. cachetools. joblib. atexit. tqdm. beartype typeguard"
)

_FILLS_ARGUMENTS = _words("load_ restore fill fit train init_ update_ set_ add_ copy_ register patch")

SETS_DEFAULTS = {
    "os.chdir": "os.getcwd",
    "torch.set_default_dtype": "torch.default_dtype",
    "torch.set_default_device": "torch.default_device",
    "torch.set_default_tensor_type": "torch.default_tensor_type",
}
"""Functions that change what other functions of their library do, and what they change."""

ASKS_ONLY = frozenset({"torch.cuda.is_available", "torch.cuda.device_count", "torch.cuda.is_initialized"})
"""What says whether there is a GPU without making a context on it."""

MAKES_CUDA = frozenset({"cuda", "pin_memory"})
"""Methods of tensors and modules that initialise CUDA, whatever they are given."""

_GPU_LIBRARIES = _words("torch.cuda torch.mps cupy cudf cuml pycuda numba.cuda tensorrt nvidia")
_ACCELERATORS = _words("cuda mps xpu hpu")


def changes_nothing(method: str, *, loading: bool = False) -> bool:
    """Does a method of an unknown object leave it as it is, by its name? What loads is believed less."""
    if method in _CHANGES_NOTHING or method.startswith(_LOOKS):
        return True
    return not loading and (method in _LOOKS_MOSTLY or method.startswith("read"))


def hands_out(method: str) -> bool:
    """May a method's result be a part of the object?"""
    return method.startswith(_HANDS_OUT)


def is_view(method: str) -> bool:
    """May the result of an array's method share its values?"""
    return method in _VIEWS


TENSOR = "torch.tensor"
"""The maker of what a layer of `torch.nn` returns."""


def is_tensor(maker: str) -> bool:
    """Does a function of torch make a tensor?"""
    package, _, name = maker.partition(".")
    if package != "torch" or not name:
        return False
    return maker.startswith(_MAKES_TENSORS) or (
        "." not in name and name.islower() and not name.startswith(_NO_TENSORS)
    )


def differs(maker: str) -> bool:
    """Does a function of the standard library give each process something else?"""
    return any(maker == name or maker.startswith(name + ".") for name in _DIFFERS)


def maker_of_result(maker: str, method: str) -> str:
    """What made the result of an object's method, as `Thing.maker` says it."""
    if method in _COUNTS:
        return ""
    alike = (
        method in _SAME_AGAIN if maker in IMMUTABLE else is_tensor(maker) and method not in _OUT_OF_TENSORS
    )
    return maker if alike else maker.partition(".")[0]


def sounds_like_change(method: str) -> bool:
    """Does the name of a library's method say that it changes the object?"""
    if changes_nothing(method):
        return False
    return method.startswith((*_CHANGES, "appendleft", "extendleft")) or method.endswith("_")


def hands_on(decorator: str) -> bool:
    """Does a library's decorator hand on what it is given, or something that does the same?"""
    return decorator.startswith(_HANDS_ON)


def fills_arguments(function: str, *, loading: bool) -> bool:
    """May a library's function change the objects that it is given, by its name? What loads is believed less."""
    return function.endswith("_") or (loading and function.startswith(_FILLS_ARGUMENTS))


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
