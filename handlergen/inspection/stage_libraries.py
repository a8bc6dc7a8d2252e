"""What is known of libraries by their names: which calls change something, and what else they affect."""

from __future__ import annotations

import sys


def _words(text: str) -> tuple[str, ...]:
    return tuple(text.split())


_LOOKS = frozenset(
    _words(
        "join strip lstrip rstrip lower upper title capitalize casefold startswith endswith replace format encode "
        "decode removeprefix removesuffix find rfind count index bit_length copy keys values items split rsplit "
        "splitlines partition tokenize batch_encode_plus encode_plus batch_decode convert_ids_to_tokens "
        "convert_tokens_to_ids transform predict exists glob rglob iterdir read_text read_bytes stat joinpath "
        "resolve match search fullmatch findall finditer sub subn info debug warning error exception critical log "
        "acquire release submit map view reshape clone detach numpy item tolist astype size dim numel union "
        "intersection difference issubset issuperset group groups parameters named_parameters buffers "
        "named_buffers modules children state_dict forward lookup describe total_seconds argmax softmax mean sum "
        "max min"
    )
)
_LOOKS_ALSO = _words("get fetch is_ has_ to_ as_ from_ with_ __get __len __contains")
_LOOKS_IF_USED = frozenset(_words("open to cpu half float double long int bool read readline readlines"))
_CHANGES = _words(
    "add append clear discard extend fill insert load move_to_end pop popleft push put register remove reset "
    "reverse set sort store subtract train update write __set"
)
_FILLS = _words("load_ restore fill fit train init_ update_ set_ add_ copy_ register patch")
_CHANGES_ARGUMENTS = _words(
    "random.shuffle bisect. heapq. operator.i operator.setitem operator.delitem numpy.copyto"
)
_ARRAY_CHANGES = frozenset(_words("fill sort partition put resize itemset setflags requires_grad_"))

SHARES = ("get_", "getc", "current")
"""How functions begin whose result is no new object: `decimal.getcontext()`."""

HIDDEN = frozenset(
    _words("__dict__ __globals__ __builtins__ __subclasses__ __getattribute__ __code__ __closure__")
)
"""Attributes through which names are bound or read that the source does not show."""

REACHES_NAMES = _words(
    "sys.modules sys._getframe inspect. gc.get_ importlib.import_module importlib.reload "
    "importlib.util.spec_from importlib.util.module_from builtins."
)
"""Names of the standard library through which the same can be done."""

CACHES = frozenset({"functools.cache", "functools.lru_cache", "cachetools.cached", "joblib.Memory.cache"})
ASKS_ONLY = frozenset({"torch.cuda.is_available", "torch.cuda.device_count", "torch.cuda.is_initialized"})
"""What says whether there is a GPU without making a context on it."""

_GPU_LIBRARIES = _words("torch.cuda torch.mps cupy cudf cuml pycuda numba.cuda tensorrt nvidia")

_HANDS_ON = _words(
    "functools.wraps functools.total_ordering functools.cached_property functools.singledispatch contextlib. "
    "dataclasses. abc. typing. typing_extensions. enum. attr. attrs. pydantic. torch. numba. jax. tenacity. "
    "atexit. tqdm. beartype typeguard"
)

_HARMLESS = _words(
    "logging. warnings. time.sleep gc. threading. atexit. signal. faulthandler. shutil. subprocess. "
    "asyncio.sleep os.makedirs os.mkdir os.remove os.unlink os.rename os.replace os.nice sys.stdout. "
    "sys.stderr. urllib. zipfile. tarfile. torch.set_num_ torch.cuda. torch.mps. torch.no_grad "
    "torch.set_grad_enabled torch.inference_mode torch.multiprocessing. torch.save torch._assert"
)
"""Calls whose effect no other call's result depends on: output, threads, files, the device that only predict has."""
_HARMLESS_NAMES = frozenset(
    _words("dump save print info debug warning error exception critical log set_verbosity_error write close")
)
_SETS = _words("set seed register manual_seed install patch add_ configure enable disable use_")
"""How functions begin that are called for their effect even when their result is kept: `old = np.seterr(...)`."""

_NUMERIC = _words(
    "seed manual_seed manual_seed_all set_seed seed_everything set_rng_state setstate set_float32_matmul_precision "
    "use_deterministic_algorithms"
)
"""Functions that change draws and rounding, nothing else."""
_DRAWS = _words("torchvision torchaudio albumentations imgaug kornia transformers diffusers")
"""Libraries that draw from the generators of random, numpy and torch."""
_ONLY_CONVERTS = frozenset(
    _words(
        "torch.tensor torch.as_tensor torch.from_numpy torch.stack torch.cat torch.zeros torch.ones torch.arange "
        "torch.full torch.Tensor torch.float32 torch.float16 torch.float64 torch.long torch.int64 torch.uint8 "
        "torch.frombuffer torch.nn.functional.pad torch.nn.functional.interpolate torch.nn.functional.softmax "
        "torch.softmax torch.argmax torch.topk torch.no_grad torch.inference_mode torch.device torch.nn.Module "
        "torch.nn.Sequential"
    )
)
"""Names of torch whose result no seed and no precision of products changes."""

_AFFECTS = {
    "pillow_heif": ("PIL", "pillow_heif"),
    "pillow_avif": ("PIL",),
    "pillow_jxl": ("PIL",),
    "locale": ("*",),
    "os.chdir": ("*",),
    "socket": ("*",),
    "gevent": ("*",),
    "os.environ": ("os.environ", "os.getenv"),
    "os.putenv": ("os.environ", "os.getenv"),
    "sys.path": ("sys.path",),
    "time.tzset": ("time", "datetime"),
    "decimal": ("decimal",),
    "random": ("random", *_DRAWS),
    "numpy.random": ("numpy.random", "scipy", "sklearn", *_DRAWS),
    "numpy": ("numpy", "pandas", "scipy", "sklearn", "skimage", "xarray"),
    "torch": ("torch", *_DRAWS),
    "tqdm": ("pandas", "tqdm"),
    "transformers.set_seed": ("random", "numpy.random", "torch", *_DRAWS),
    "transformers": ("transformers", "tokenizers"),
    "accelerate.utils.set_seed": ("random", "numpy.random", "torch", *_DRAWS),
    "lightning": ("lightning", "random", "numpy.random", "torch", *_DRAWS),
    "pytorch_lightning": ("pytorch_lightning", "random", "numpy.random", "torch", *_DRAWS),
}
"""What a library's effect reaches beyond that library; `*`: whatever else is used."""


def within(name: str, prefix: str) -> bool:
    """Whether a dotted name is `prefix` or lies beneath it."""
    return name == prefix or name.startswith(prefix + ".")


def is_standard(name: str) -> bool:
    """Whether a dotted name belongs to the standard library."""
    return name.partition(".")[0] in sys.stdlib_module_names


def is_gpu_library(name: str) -> bool:
    """Whether it is a name of torch's or another library's part for accelerators."""
    return any(within(name, library) for library in _GPU_LIBRARIES)


def makes_array(name: str) -> bool:
    """Whether a function of torch or numpy makes a tensor or an array: `torch.zeros`, not `torch.nn.Linear`."""
    return name.startswith(("torch.", "numpy.")) and name.rpartition(".")[2].islower() and "load" not in name


def hands_on(decorator: str) -> bool:
    """Whether a library's decorator hands on what it is given, or something that does the same."""
    return decorator in CACHES or decorator.startswith(_HANDS_ON) or decorator in _BUILTIN_DECORATORS


_BUILTIN_DECORATORS = ("property", "staticmethod", "classmethod", "type")


def changes_object(method: str, *, bare: bool, array: bool) -> bool:
    """Whether a method whose code is not read may change its object, by its name.

    Args:
        bare: Its result is not used.
        array: The object is a tensor or an array, whose methods return new ones but for a few.
    """
    if array:
        return method.endswith("_") or method in _ARRAY_CHANGES
    if method in _LOOKS or method.startswith(_LOOKS_ALSO):
        return False
    return bare or method not in _LOOKS_IF_USED


def sounds_like_change(method: str) -> bool:
    """Whether a method's name says that it changes its object; of others it is only not known that they do not."""
    return method.startswith(_CHANGES) or method.endswith("_")


def changes_arguments(name: str, *, bare: bool) -> bool:
    """Whether a library's function may change what it is given."""
    function = name.rpartition(".")[2]
    if is_harmless(name):
        return False
    return (
        bare or function.endswith("_") or function.startswith(_FILLS) or name.startswith(_CHANGES_ARGUMENTS)
    )


def is_harmless(name: str) -> bool:
    """Whether no other call's result depends on what a library's function does."""
    parts = name.split(".")
    return name.startswith(_HARMLESS) or parts[-1] in _HARMLESS_NAMES or "logging" in parts


def is_effect(name: str, *, bare: bool) -> bool:
    """Whether a library's function is called for what it does, not for its result."""
    if is_harmless(name) or name.endswith("_"):  # what ends so changes its argument
        return False
    return bare or name.rpartition(".")[2].startswith(_SETS)


def sets_state(name: str) -> bool:
    """Whether a library's function is surely one that is called for its effect, by its name."""
    last = name.rpartition(".")[2]
    return (last in _NUMERIC or last.startswith(("set_", "register_", "patch_"))) and not is_harmless(name)


def affects(effect: str, used: str) -> bool:
    """Whether what a library's function does may change what another name of a library does.

    Args:
        effect: The function's dotted name, or that of what is assigned.
        used: The dotted name that a hook uses.
    """
    last = effect.rpartition(".")[2]
    if ("cudnn" in effect or last in _NUMERIC) and used in _ONLY_CONVERTS:
        return False
    default = (effect.rpartition(".")[0] or effect,) if is_standard(effect) else (effect.partition(".")[0],)
    found = next((names for name, names in _AFFECTS.items() if within(effect, name)), default)
    if (
        last.startswith(("register", "install", "patch", "enable"))
        and found == default
        and not is_standard(effect)
    ):
        return not is_standard(used) or within(used, found[0])  # a plug-in: it may be of any library
    return "*" in found or any(within(used, name) or within(name, used) for name in found)
