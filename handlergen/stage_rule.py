"""What ties preprocess or postprocess to the process that has the model: five rules, applied by reading the source.

1. A hook that asks for `model` or `device`, or names an accelerator, is tied.
2. In a class, a hook that uses `self` for more than its own methods and class constants is tied.
3. A hook is tied by a name that it reads and `load` or `predict` assigns or changes, and the other way round for `predict`.
4. `load` or `predict` calling a library for its effect ties the hooks that use what the call affects.
5. What the source does not show (`globals()`, `exec`, `getattr` with a computed name, ...) ties.

A hook is followed by name: whatever function, class or module-level value of the project it mentions, it may use wholly.
A value counts as changed unless all that is done to it is known to leave it as it is (`_Code.harm`).
"""

from __future__ import annotations

import ast
import builtins
import re
import sys
from collections import defaultdict
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from functools import cached_property

from handlergen.findings import Source
from handlergen.runtime.contract import Contract
from handlergen.source_module import dotted, statements_at_import
from handlergen.source_tree import Namespace, assigned, is_stored, parameters

HOOKS = ("preprocess", "postprocess")
_MAKES = (
    *("__init__", "setup_environment", "load", "warmup", "load_state_dict", "_load_from_state_dict"),
    *("set_extra_state", "__setstate__", "to", "_apply", "eval", "train"),
)
_PREDICTS = ("predict", "explain", "collate")
_VERBS = ("assigns", "changes", "may change")
_DEF = ast.FunctionDef | ast.AsyncFunctionDef
_HOLDS = (ast.Tuple, ast.List, ast.Set, ast.Dict, ast.Starred, ast.IfExp, ast.BoolOp, ast.Await)
_HOLDS += (ast.ListComp, ast.SetComp, ast.DictComp, ast.GeneratorExp)
_LOOKS_ONLY = (ast.Compare, ast.BinOp, ast.UnaryOp, ast.FormattedValue, ast.Subscript, ast.Slice, ast.Expr, ast.If)
_LOOKS_ONLY += (ast.While, ast.Assert, ast.Raise, ast.withitem, ast.comprehension)


def _words(text: str) -> tuple[str, ...]:
    return tuple(text.split())


# What is known of names that the project does not define. What stands nowhere here may change what it is given.
_LOOKS = _words(
    "len sum min max str int float bool dict frozenset range round abs any all print isinstance repr format join strip "
    "lstrip rstrip lower upper title casefold startswith endswith replace encode decode find count index copy keys split "
    "splitlines tokenize batch_decode convert_ids_to_tokens convert_tokens_to_ids transform predict exists glob read_text "
    "read_bytes match search fullmatch findall finditer sub info debug warning error exception critical log reshape detach "
    "numpy item tolist astype size dim numel union intersection difference parameters state_dict argmax softmax mean model"
)
_LOOKS_IF_USED = _words("to cpu half float double long int bool read readlines")
_HANDS_OUT = _words("get values items iter list tuple sorted reversed enumerate zip getattr")  # a part, or what holds parts
_CHANGES = _words(
    "add append clear discard extend fill insert load move_to_end pop push put register remove reset reverse set sort store "
    "subtract train update write del heap"
)
_IMMUTABLE = _words(
    "int float str len max min bool tuple frozenset re.compile pathlib. logging.getLogger os.path. os.getenv os.environ.get "
    "decimal.Decimal datetime. torch.device torch.cuda.is_available threading. typing. __file__ __name__"
)
_DECORATORS = _words(  # that hand on what they are given
    "property staticmethod classmethod functools.wraps functools.total_ordering functools.singledispatch contextlib. "
    "dataclasses. abc. typing. enum. attr. attrs. pydantic. torch. numba. jax. tenacity. atexit."
)
_HIDES = _words(
    "sys.modules sys._getframe inspect.currentframe inspect.stack gc.get_ importlib.import_module importlib.reload "
    "importlib.util. builtins. __dict__ __globals__ __builtins__ __subclasses__ __getattribute__ __code__ __closure__"
)
_ACCELERATOR = re.compile(r"(cuda|mps|xpu|hpu)(:\d+)?|(CUDA|Tensorrt|ROCM)ExecutionProvider")
_GPU = _words("torch.cuda torch.mps cupy cudf cuml pycuda numba.cuda tensorrt nvidia")
_GPU_ASKS = _words("torch.cuda.is_available torch.cuda.device_count torch.cuda.is_initialized")
_NO_EFFECT = _words(  # calls whose effect no other call's result depends on
    "logging. warnings. time.sleep gc. threading. atexit. signal. faulthandler. shutil. subprocess. asyncio.sleep "
    "os.makedirs os.mkdir os.remove os.unlink os.rename os.replace os.nice sys.stdout. sys.stderr. urllib. zipfile. tarfile. "
    "torch.set_num_ torch.cuda. torch.mps. torch.no_grad torch.set_grad_enabled torch.inference_mode torch.save "
    "torch.multiprocessing. torch._assert json.dump pickle.dump transformers.logging. transformers.utils.logging."
)
_SETS = _words("set seed register manual_seed install patch add_ configure enable disable use_")
_CONVERTS = _words(  # of torch, what no seed changes
    "torch.tensor torch.as_tensor torch.from_numpy torch.stack torch.cat torch.zeros torch.ones torch.arange torch.full "
    "torch.Tensor torch.float torch.long torch.int torch.uint8 torch.nn.functional.pad torch.nn.functional.softmax "
    "torch.softmax torch.argmax torch.topk torch.no_grad torch.inference_mode torch.nn.Module"
)
_DRAWS = _words("torchvision torchaudio albumentations imgaug kornia transformers diffusers")
_SEEDS_ALL = ("random", "numpy.random", "torch", "lightning", "pytorch_lightning", *_DRAWS)
_AFFECTS = {  # what a library's effect reaches, where that is not the same library; `*`: whatever else is used
    **dict.fromkeys(("pillow_heif", "pillow_avif", "pillow_jxl"), ("PIL", "pillow_heif")),
    **dict.fromkeys(("locale", "os.chdir", "socket", "gevent", "sys.path"), ("*",)),
    **dict.fromkeys(("os.environ", "os.putenv"), ("os.environ", "os.getenv")),
    "time.tzset": ("time", "datetime"),
    "decimal": ("decimal",),
    "random": ("random", *_DRAWS),
    "numpy.random": ("numpy.random", "scipy", "sklearn", *_DRAWS),
    "numpy": ("numpy", "pandas", "scipy", "sklearn", "skimage", "xarray"),
    "torch": ("torch", *_DRAWS),
    "tqdm": ("pandas", "tqdm"),
    **dict.fromkeys(("transformers.set_seed", "accelerate.utils.set_seed", "lightning", "pytorch_lightning"), _SEEDS_ALL),
    "transformers": ("transformers", "tokenizers"),
}


def _within(name: str, *prefixes: str) -> bool:
    return any(name == prefix or name.startswith(prefix + ".") for prefix in prefixes)


def _affects(effect: str, used: str) -> bool:
    """Whether the effect of a library's function may change what another name of a library does."""
    top, last = effect.partition(".")[0], effect.rpartition(".")[2]
    if ("seed" in last or "cudnn" in effect) and used.startswith(_CONVERTS):
        return False
    reached = next((names for name, names in _AFFECTS.items() if _within(effect, name)), ())
    if not reached and top in sys.stdlib_module_names:
        reached = (effect.rpartition(".")[0] or effect,)
    elif not reached and last.startswith(("register", "install", "patch", "enable")):  # into any library
        return used.partition(".")[0] not in sys.stdlib_module_names
    reached = reached or (top,)
    return "*" in reached or any(_within(used, name) or _within(name, used) for name in reached)


@dataclass(frozen=True)
class Reason:
    """Why preprocess or postprocess belongs into the process that has the model.

    Attributes:
        rule: 1 to 5, as at the top of this file.
        file: As in messages; empty when the reason is none of the source's lines.
        line: 1-based, of the use; 0 likewise.
        hook: The hook that uses it.
        name: What it uses, as the source writes it: `TOKENIZER`, `self.labels`, `model`.
        what: The sentence, without place and without full stop.
        fix: How to free the stage: whole sentences.
    """

    rule: int
    file: str
    line: int
    hook: str
    name: str
    what: str
    fix: str

    @property
    def place(self) -> str:
        return f"{self.file}:{self.line}" if self.line else self.file

    def __str__(self) -> str:
        place = f"{self.place}: " if self.file else ""
        return f"{place}rule {self.rule}: {self.what}. {self.fix}".rstrip()


@dataclass(frozen=True)
class Site:
    """Where something happens: file for messages, line, and the functions by which a hook comes there."""

    file: str
    line: int
    through: tuple[str, ...] = ()

    @property
    def helpers(self) -> str:
        return f" (through {' and '.join(self.through)})" if self.through else ""

    def seen_from(self, other: Site) -> str:
        """`line 12`, with the file when it is another one, and with the helpers."""
        return (f"line {self.line}" if self.file == other.file else f"{self.file}:{self.line}") + self.helpers


class _Names(Namespace):
    """The names of a project, with what is known of their values.

    Attributes:
        hooks: The functions and methods that a server calls, with their role.
        served: The model's class and its bases.
    """

    def __init__(self, source: Source) -> None:
        super().__init__(source.tree, source.module)
        self.hooks: dict[ast.AST, str] = {}
        self.served: list[ast.ClassDef] = []
        self._codes: dict[ast.AST, _Code] = {}

    def code(self, node: ast.AST) -> _Code:
        if node not in self._codes:
            self._codes[node] = _Code(self, node)
        return self._codes[node]

    def codes(self, name: str) -> Iterator[_Code]:
        """What a mention of a name may run: functions, classes with their methods, a value's expressions, a file."""
        yield from map(self.code, (*self.functions.get(name, ()), *self.values.get(name, ())))
        for kind in self.classes.get(name, ()):
            methods = (part for part in kind.body if isinstance(part, _DEF))
            yield from map(self.code, (kind, *(part for part in methods if self.hooks.get(part) not in HOOKS)))
        file = self.files.get(name)
        if file is not None and file not in self.at_import:
            yield self.code(file.source.tree)

    def is_constant(self, name: str, seen: frozenset[str] = frozenset()) -> bool:
        """Whether a name stands for what obviously nothing can change: numbers, texts, patterns, paths."""
        made = self.made.get(name, ())
        return bool(made) and name not in seen and all(self._is_immutable(value, seen | {name}) for value in made)

    def _is_immutable(self, value: ast.AST, seen: frozenset[str]) -> bool:
        for node in ast.walk(value):
            library = self.code(value).library(node.func if isinstance(node, ast.Call) else node)
            made_anew = isinstance(node, ast.List | ast.Dict | ast.Set | ast.Lambda | ast.comprehension | ast.Await)
            other_call = isinstance(node, ast.Call) and library and not library.startswith(_IMMUTABLE)
            known = library or not isinstance(node, ast.Name) or node.id in _IMMUTABLE
            if made_anew or other_call or not (known or self.is_constant(node.id, seen)):
                return False
        return True

    def remembers(self, name: str) -> bool:
        """Whether all calls share something: a cached function, a class with one instance, an unknown decorator."""
        kinds = self.classes.get(name, ())
        single = any(kind.keywords or "__new__" in {getattr(p, "name", "") for p in kind.body} for kind in kinds)
        bases = {dotted(base) for kind in kinds for base in kind.bases} - {name}
        for node in (*self.functions.get(name, ()), *kinds):
            for item in getattr(node, "decorator_list", ()):
                called = self.code(node).library(getattr(item, "func", item)) or dotted(item)
                single = single or not (called.startswith(_DECORATORS) or called.endswith((".register", ".setter")))
        return single or any(map(self.remembers, bases))

    @cached_property
    def links(self) -> dict[str, set[str]]:
        """Names whose values may hold one another, because a statement at import has both: `Y = X`, `ALL.append(X)`."""
        found: dict[str, set[str]] = defaultdict(set)
        for statement in (node for file in self.at_import for node in statements_at_import(file.source.tree.body)):
            if isinstance(statement, ast.Assign | ast.AnnAssign | ast.Expr | ast.ClassDef):
                read = self.code(statement).found["reads"]
                group = {name for name, _ in assigned(statement)} | {getattr(statement, "name", "")}
                group |= {name for name in read if name in self.values and not self.is_constant(name)}
                for name in group - {""}:
                    found[name] |= group - {name, ""}
        return found


class _Code:
    """A function, a class body, a file or the expression of a value: what it mentions and does.

    Attributes:
        found: By kind of fact, names with the line of their first mention. Of the module: `reads`, `assigns`, `changes`,
            `may change`. Of libraries: `uses`, `effects`. Of the model's object: `own` ("": it as a whole), `sets`.
            What only the predictor process has: `device`. What the source does not show: `unknown`.
    """

    def __init__(self, names: _Names, node: ast.AST) -> None:
        self._names, self.node, self.file = names, node, names.file_of[node]
        self._parts = [node]
        body = isinstance(node, ast.ClassDef | ast.Module)  # whose functions and classes are code of their own
        for part in self._parts:
            inner = ast.iter_child_nodes(part)
            self._parts += [
                child for child in inner if not (body and part is node and isinstance(child, _DEF | ast.ClassDef))
            ]
        self._globals = {name for part in self._parts if isinstance(part, ast.Global) for name in part.names}
        self._local = {name for part in self._parts for name in _bound(part) if part is not node} - self._globals
        method = isinstance(node, _DEF) and isinstance(names.parents[node], ast.ClassDef)
        self._first = next(iter(parameters(node)), "") if method else ""
        self._runs = any(isinstance(part, _DEF | ast.Lambda | ast.Module) for part in self._parts)

    @cached_property
    def found(self) -> dict[str, dict[str, int]]:
        found: dict[str, dict[str, int]] = defaultdict(dict)
        for node in self._parts:
            for kind, name in self._facts(node):
                found[kind].setdefault(name, getattr(node, "lineno", 0))
        return found

    def name(self, node: ast.AST) -> str:
        """The module-level name that a node mentions, or `context.config`; empty for all else."""
        names = self._names
        if isinstance(node, ast.Attribute):
            ours = dotted(node.value) == "context" and node.attr not in ("store", "logger", "device")
            return node.attr if self._is_file(node.value) else f"context.{node.attr}" if ours else ""
        if not isinstance(node, ast.Name):
            return ""
        if node.id in self._local:
            whole = not is_stored(node) and not isinstance(names.parents[node], ast.Attribute)
            return "context" if node.id == "context" and whole else ""
        known = any(node.id in group for group in (names.made, names.functions, names.classes))
        foreign = node.id in self.file.libraries or hasattr(builtins, node.id)
        if node.id in self.file.modules or (foreign and not known):
            return ""
        return self.file.originals.get(node.id, node.id)

    def _is_file(self, node: ast.AST) -> bool:
        """Whether an expression is a file of the project: `helpers`, `pack.inner`."""
        first = dotted(node).partition(".")[0] if isinstance(node, ast.Name | ast.Attribute) else ""
        return first in self.file.modules and first not in self._local

    def library(self, node: ast.AST) -> str:
        """The dotted name that an expression has in a library; empty when it has none."""
        if isinstance(node, ast.Call):  # decimal.getcontext().prec
            name = self.library(node.func)
            return name if name.rpartition(".")[2].startswith(("get", "current")) else ""
        if isinstance(node, ast.Attribute):
            base = self.library(node.value)
            return f"{base}.{node.attr}" if base else ""
        if not isinstance(node, ast.Name):
            return ""
        for value in self._names.made.get(node.id, ()):
            if isinstance(value, ast.Attribute) and dotted(value).partition(".")[0] != node.id:  # DRAWS = np.random
                return self._names.code(value).library(value)
        return self.file.libraries.get(node.id, "")

    def _done(self, node: ast.AST, name: str) -> str:
        """What a mention of a module-level name does to it: `assigns`, `changes`, `may change` or nothing."""
        names = self._names
        if is_stored(node):
            return "assigns" if isinstance(node, ast.Attribute) or name in self._globals else ""
        if names.remembers(name):
            return "may change"
        if name in names.functions or name in names.classes:
            return "changes" if self.harm(node) == "changes" else ""
        return "" if names.is_constant(name) else self.harm(node)

    def harm(self, node: ast.AST, part: bool = False, seen: frozenset[ast.AST] = frozenset()) -> str:
        """What the code around an expression does to its value: `changes`, `may change`, or nothing.

        Args:
            part: It is a part of the value that is asked about.
            seen: Expressions that are being asked about.
        """
        parent, parents = self._names.parents.get(node), self._names.parents
        if node in seen or (is_stored(node) and not isinstance(parent, ast.AugAssign)):
            return ""
        seen |= {node}
        call = parents[parent] if isinstance(parent, ast.keyword | ast.Attribute) else parent
        if isinstance(call, ast.Call) and (not isinstance(parent, ast.Attribute) or call.func is parent):
            found = self._call(call, node, parent)
            return self.harm(call, True, seen) if found == "hands out" else found
        if isinstance(parent, ast.Attribute) or (isinstance(parent, ast.Subscript) and parent.value is node):
            return "changes" if is_stored(parent) else self.harm(parent, True, seen)
        if isinstance(parent, ast.Return | ast.Yield | ast.YieldFrom | ast.Lambda):
            away = self._names.hooks.get(self.node, "load") not in _MAKES  # to another process, or to the client
            return "" if part or away else "may change"
        if isinstance(parent, _HOLDS):
            return self.harm(parent, part, seen)
        targets = [] if node is getattr(parent, "test", None) else [n for n in _targets(parent) if is_stored(n)]
        names = {target.id for target in targets if isinstance(target, ast.Name)}
        if not targets or names - self._local or (len(names) < len(targets) and not part):
            return "" if isinstance(parent, _LOOKS_ONLY) else "may change"
        uses = (other for other in self._parts if isinstance(other, ast.Name) and other.id in names)
        return max((self.harm(use, part, seen) for use in uses), key=("", "may change", "changes").index, default="")

    def _call(self, call: ast.Call, node: ast.AST, parent: ast.AST) -> str:
        """What a call does to its function, its function's object or one of its arguments."""
        names, library, last = self._names, self.library(call.func), dotted(call.func).rpartition(".")[2]
        if call.func is node:  # a value that is called: of a library, but for functools.partial
            made = [value for value in names.made.get(self.name(node), ()) if not isinstance(value, ast.Constant)]
            libraries = [self._names.code(value).library(getattr(value, "func", value)) for value in made]
            known = libraries and all(libraries) and not any(name.startswith("functools.") for name in libraries)
            return "" if known else "may change"
        last = call.func.attr if isinstance(call.func, ast.Attribute) else last
        around = names.parents[call]
        bare = isinstance(names.parents[around] if isinstance(around, ast.Await) else around, ast.Expr)
        if any(last in group for group in (names.functions, names.classes, names.methods)):
            return "may change"
        if last in _HANDS_OUT or dotted(call.func) == "set":
            return "hands out"
        if last in _LOOKS or library.startswith(_NO_EFFECT) or (last in _LOOKS_IF_USED and not bare):
            return ""
        if last.endswith("_") or last in ("setattr", "delattr") or getattr(parent, "arg", "") == "out":
            return "changes"
        if isinstance(parent, ast.Attribute):
            return "changes" if last.startswith(_CHANGES) else "may change"
        used = not bare and (library or (isinstance(call.func, ast.Attribute) and not last.startswith(_CHANGES)))
        calls = any(isinstance(given, ast.Lambda) or self.name(given) in names.functions for given in call.args)
        return "" if used and not calls and not library.startswith(("heapq.", "operator.")) else "may change"

    def _facts(self, node: ast.AST) -> Iterator[tuple[str, str]]:
        """What a node mentions and does, as kinds and names of `found`."""
        name, parent = self.name(node), self._names.parents.get(node)
        if name:
            yield "reads", name
            yield (self._done(node, name) if self._runs else "") or "reads", name
        if isinstance(node, ast.Attribute):
            if node.attr in _HIDES:
                yield "unknown", node.attr
            if dotted(node) == "context.device" or (node.attr in ("cuda", "pin_memory") and isinstance(parent, ast.Call)):
                yield "device", "context.device" if node.attr == "device" else f".{node.attr}()"
            if is_stored(node) or self.harm(node):
                yield "sets", node.attr
        elif isinstance(node, ast.Name) and self._first and node.id in (self._first, "super"):
            around = parent if node.id == self._first else self._names.parents[parent]
            yield "own", around.attr if isinstance(around, ast.Attribute) else ""
        elif isinstance(node, ast.Name) and self._is_file(node) and not isinstance(parent, ast.Attribute):
            yield "unknown", f"{node.id}, handed on as a whole"
        elif isinstance(node, ast.Constant) and _ACCELERATOR.fullmatch(str(node.value)):
            yield "device", repr(node.value)
        elif isinstance(node, ast.Import | ast.ImportFrom | _DEF) and node is not self.node and self._runs:
            imported = {alias.asname or alias.name.partition(".")[0] for alias in getattr(node, "names", ())}
            yield from (("assigns", name) for name in imported | {getattr(node, "name", "")} if name in self._globals)
            used = {part.id for part in self._parts if isinstance(part, ast.Name)}
            yield from (("effects", self.file.libraries[n]) for n in imported - used if n in self.file.libraries)
            yield from (("reads", file.source.file) for file in self.file.imports.get(node, ()))
        elif isinstance(node, ast.Call):
            yield from self._call_facts(node, dotted(node.func) if isinstance(node.func, ast.Name) else "")
        library = "" if isinstance(parent, ast.Attribute) else self.library(node)
        if library and isinstance(node, ast.Name | ast.Attribute):
            yield "uses", library
            if library.startswith(_HIDES):
                yield "unknown", library
            if _within(library, *_GPU) and library not in _GPU_ASKS:
                yield "device", library
            stored = is_stored(node) or (isinstance(parent, ast.Subscript) and is_stored(parent))
            last = library.rpartition(".")[2]
            bare = isinstance(parent, ast.Call) and isinstance(self._names.parents[parent], ast.Expr)
            quiet = library.startswith(_NO_EFFECT) or last.endswith("_") or last in _LOOKS
            if self._runs and (stored or (not quiet and (bare and parent.func is node or last.startswith(_SETS)))):
                yield "effects", library

    def _call_facts(self, node: ast.Call, builtin: str) -> Iterator[tuple[str, str]]:
        if builtin in ("globals", "exec", "eval", "__import__", "breakpoint", "vars"):
            yield "unknown", f"{builtin}()"
        elif builtin in ("getattr", "setattr", "delattr") and not isinstance(node.args[1], ast.Constant):
            if self.name(node.args[0]) or self._is_file(node.args[0]):
                yield "unknown", f"{builtin} with a computed name"
        elif builtin == "open":
            yield "uses", "open()"
        elif self.library(node.func) == "torch.device" and not all(isinstance(a, ast.Constant) for a in node.args):
            yield "device", "torch.device(...)"


def _targets(node: ast.AST | None) -> Iterator[ast.AST]:
    """What a statement, or a part of one, assigns."""
    targets = node.targets if isinstance(node, ast.Assign) else [getattr(node, "target", None)]
    return (part for target in targets if target is not None for part in ast.walk(target))


def _bound(node: ast.AST) -> Iterator[str]:
    """The names that a node binds in a function."""
    if isinstance(node, ast.arg):
        yield node.arg
    elif isinstance(node, ast.Name) and is_stored(node):
        yield node.id
    elif isinstance(node, _DEF | ast.ClassDef | ast.ExceptHandler | ast.MatchAs | ast.MatchStar) and node.name:
        yield node.name


class _Role:
    """A hook and all that it mentions: by kind of fact, names with the first site of each."""

    def __init__(self, names: _Names, name: str, codes: Iterable[_Code]) -> None:
        self.name = name
        self.found: dict[str, dict[str, Site]] = defaultdict(dict)
        waiting: list[tuple[_Code, tuple[str, ...]]] = [(code, ()) for code in codes]
        seen: set[_Code] = set()
        for code, through in waiting:
            if code in seen:
                continue
            seen.add(code)
            served = names.parents.get(code.node) in names.served
            for kind, lines in code.found.items():
                for found, line in lines.items() if kind != "own" or served else ():
                    self.found[kind].setdefault(found, Site(code.file.source.file, line, through))
            inner = [inner for read in code.found["reads"] for inner in names.codes(read)]
            methods = [part for kind in names.served for part in kind.body if isinstance(part, _DEF)] if served else []
            inner += [names.code(part) for part in methods if part.name in code.found["own"]]
            for other in inner:
                helper = getattr(other.node, "name", "") if isinstance(other.node, _DEF) else ""
                waiting.append((other, (*through, helper) if helper else through))
        for verb in _VERBS:
            for name in list(self.found[verb]):
                for linked in names.links.get(name, ()):
                    self.found["may change"].setdefault(linked, self.found[verb][name])

    def changed(self) -> dict[str, tuple[str, Site]]:
        """Names that it assigns or changes, each with the verb."""
        return {name: (verb, site) for verb in reversed(_VERBS) for name, site in self.found[verb].items()}


def find_reasons(source: Source, contract: Contract) -> tuple[Reason, ...]:
    """What ties preprocess or postprocess to the process that has the model; empty when nothing does."""
    if not any(hook in contract.hooks for hook in HOOKS):
        return ()
    try:
        found = list(_Rules(source, contract).reasons())
    except RecursionError:
        return (Reason(5, source.module.file, 0, "", "", "the source is nested too deeply to be followed", ""),)
    first: dict[tuple[str, str], Reason] = {}
    for reason in found:
        first.setdefault((reason.hook, reason.name), reason)
    return tuple(first.values())


class _Rules:
    """The five rules, for one module."""

    def __init__(self, source: Source, contract: Contract) -> None:
        self._contract, self._file, self._names = contract, source.module.file, _Names(source)
        if contract.class_name:
            self._serve(contract.class_name)
        of_class = ("model-class", "module")
        written: dict[str, list[ast.AST]] = {}
        for role in (*HOOKS, *_PREDICTS, *_MAKES, "setup"):
            hook = contract.hooks.get(role)
            name = hook.name if hook else role
            method = contract.form in of_class and not (role == "collate" and contract.details.get("collate") == "function")
            if method and role != "setup" and (contract.form == "model-class" or role != "load"):
                body = (part for kind in self._names.served for part in kind.body)
                written[role] = [part for part in body if getattr(part, "name", "") == name]
            elif hook or role == "collate":
                name = self._names.main.originals.get(name, name)
                written[role] = [code.node for code in self._names.codes(name)]
            self._names.hooks.update(dict.fromkeys(written.get(role, ()), role))
        self._roles = {
            role: _Role(self._names, getattr(contract.hooks.get(role), "name", role), map(self._names.code, nodes))
            for role, nodes in written.items()
            if nodes or role in contract.hooks
        }
        for role, found in self._roles.items():
            if role in contract.hooks and not written[role]:
                what = f"{found.name}, which is no function that can be read"
                found.found["unknown"][what] = Site(self._file, contract.hooks[role].line)

    def _serve(self, name: str) -> None:
        """Note a class and its bases in the project, in the order in which Python looks."""
        for kind in self._names.classes.get(name, ()):
            if kind not in self._names.served:
                self._names.served.append(kind)
                for base in (dotted(base).rpartition(".")[2] for base in kind.bases):
                    self._serve(self._names.main.originals.get(base, base))

    def reasons(self) -> Iterator[Reason]:
        """Every reason, hook by hook; several may name the same thing."""
        setup = "pre_model_fn(model_dir)" if self._contract.form == "sagemaker" else "setup(context)"
        there = f"in {setup}, which every worker runs, or where the module is imported."
        if self._contract.form == "model-class":  # it has no setup
            there = "where the module is imported."
        for role in (role for role in HOOKS if role in self._roles):
            mine = self._roles[role]
            yield from self._device_and_self(role, mine)
            for other in (other for other in (*_MAKES, *_PREDICTS) if other in self._roles):
                yield from self._shared(mine, self._roles[other], there, predicts=other in _PREDICTS)
            for name, site in mine.found["unknown"].items():
                what = f"{mine.name} uses {name}{site.helpers}: what that reads, the source does not show"
                fix = "Write the names out, or say stages: worker if nothing of it comes from load."
                yield Reason(5, site.file, site.line, mine.name, name, what, fix)
        for other in (self._roles[role] for role in (*_MAKES, *_PREDICTS) if role in self._roles):
            for name, site in other.found["unknown"].items():
                what = f"{other.name} uses {name}{site.helpers}: what that assigns, the source does not show"
                fix = "Write the names out, or say stages: worker if preprocess and postprocess use nothing of it."
                yield Reason(5, site.file, site.line, other.name, name, what, fix)
        if "setup" in self._roles:
            yield from self._device("setup", self._roles["setup"])
        for name, site in self._devices_at_import():
            what = f"the module uses {name} when it is imported, and workers leave the device to the predictor process"
            yield Reason(1, site.file, site.line, "import", name, what, "Do it in load.")

    def _device(self, role: str, mine: _Role) -> Iterator[Reason]:
        hook = self._contract.hooks[role]
        asked = {parameter.source for parameter in hook.parameters} & {"device"}
        fix = "Leave it out: inputs are on the device when predict gets them, outputs on the CPU when it has returned."
        for name, site in {**dict.fromkeys(asked, Site(self._file, hook.line)), **mine.found["device"]}.items():
            what = f"{mine.name} uses {name}{site.helpers}, and workers leave the device to the predictor process"
            yield Reason(1, site.file, site.line, mine.name, name, what, fix)

    def _device_and_self(self, role: str, mine: _Role) -> Iterator[Reason]:
        """Rules 1 and 2, and a preprocess that yields."""
        hook = self._contract.hooks[role]
        if role == "preprocess" and hook.streams:
            what = f"{mine.name} yields, and a generator cannot go to another process"
            fix = "Return a list instead, and it runs in the workers."
            yield Reason(5, self._file, hook.line, mine.name, "yield", what, fix)
        if any(parameter.source == "model" for parameter in hook.parameters):
            what = f"{mine.name} asks for `model`, which only the predictor process has"
            fix = "Do in predict what needs it, or make what this hook needs of it in setup(context)."
            yield Reason(1, self._file, hook.line, mine.name, "model", what, fix)
        yield from self._device(role, mine)
        body = [part for kind in self._names.served for part in kind.body if not kind.decorator_list]
        constants = {name for part in body for name, _ in assigned(part)}
        methods = {part.name for part in body if isinstance(part, _DEF) and not _keeps(part)}
        for name, site in mine.found["own"].items():
            setters = [role for key, role in self._roles.items() if key != "setup" and name in role.found["sets"]]
            if name in methods or (name in constants and not setters):
                continue
            shown = f"self.{name}" if name else "self"
            said = f", which is neither a method nor a constant of class {self._contract.class_name}"
            if setters:
                said = f", which {setters[0].name} sets in {setters[0].found['sets'][name].seen_from(site)}"
            said = said if name else ", not only for a method or a constant of its class"
            fix = f"Make {name or 'what it needs'} a class attribute, or a constant of the module, and leave it so."
            what = f"{mine.name} uses {shown}{site.helpers}{said}"
            yield Reason(2, site.file, site.line, mine.name, shown, what, fix)

    def _shared(self, mine: _Role, theirs: _Role, there: str, *, predicts: bool) -> Iterator[Reason]:
        """Rules 3 and 4, between a hook and one of those that load or predict."""
        for name, read, verb, written in _conflicts(mine, theirs):
            fix = f"Make {name} {there}" if not predicts else "Let predict return it, or keep it to predict."
            what = f"{mine.name} uses {name}{read.helpers}, which {theirs.name} {verb} in {written.seen_from(read)}"
            yield Reason(3, read.file, read.line, mine.name, name, what, fix)
        for name, read, verb, written in _conflicts(theirs, mine) if predicts else ():
            fix = "Let preprocess return what predict needs of it, and predict what postprocess needs."
            what = f"{mine.name} {verb} {name}{written.helpers}, which {theirs.name} uses in {read.seen_from(written)}"
            yield Reason(3, written.file, written.line, mine.name, name, what, fix)
        for effect, written in theirs.found["effects"].items():
            for used, site in [item for item in mine.found["uses"].items() if _affects(effect, item[0])][:1]:
                what = f"{mine.name} uses {used}{site.helpers}, which may depend on {effect}, which {theirs.name} calls or"
                what = f"{what} sets in {written.seen_from(site)}"
                yield Reason(4, site.file, site.line, mine.name, effect, what, f"Do that {there}")

    def _devices_at_import(self) -> Iterator[tuple[str, Site]]:
        """Calls that may make a context on an accelerator when the module is imported."""
        for file in self._names.at_import:
            statements = (n for n in statements_at_import(file.source.tree.body) if not isinstance(n, _DEF | ast.ClassDef))
            for call in (node for statement in statements for node in ast.walk(statement) if isinstance(node, ast.Call)):
                code = self._names.code(call)
                if _Role(self._names, "import", [code]).found["device"] and code.library(call.func) != "torch.device":
                    yield ast.unparse(call.func), Site(file.source.file, call.lineno)


def _keeps(method: ast.AST) -> bool:
    """Whether each process would keep a result of its own."""
    return any(
        dotted(item).rpartition(".")[2] in ("cached_property", "cache", "lru_cache") for item in method.decorator_list
    )


def _conflicts(reader: _Role, writer: _Role) -> Iterator[tuple[str, Site, str, Site]]:
    """Names that one role reads and another one changes."""
    for name, (verb, written) in writer.changed().items():
        for read, site in reader.found["reads"].items():
            contexts = {read, name} - {"context"} if read.startswith("context") and name.startswith("context") else ()
            if read == name or (contexts and "context" in (read, name)):
                yield max(read, name), site, verb, written
