"""What the code of a hook mentions and does, followed by name through the project's files; nothing is imported.

Whatever function, class or module-level value of the project a hook mentions, it may use wholly. A value counts as
changed unless all that is done to it is known to leave it as it is (`Code.harm`).
"""

from __future__ import annotations

import ast
import builtins
import re
import sys
from collections import defaultdict
from collections.abc import Iterator
from functools import cached_property
from typing import Any

from handlergen.inspection.findings import Source
from handlergen.inspection.source_module import MethodNode, dotted, statements_at_import
from handlergen.inspection.source_tree import Namespace, assigned, is_stored, parameters

HOOKS = ("preprocess", "postprocess")
MAKES = (
    *("__init__", "setup_environment", "load", "warmup", "load_state_dict", "_load_from_state_dict"),
    *("set_extra_state", "__setstate__", "to", "_apply", "eval", "train"),
)
PREDICTS = ("predict", "explain", "collate")
_DISPLAY = ast.Tuple | ast.List | ast.Set | ast.Dict | ast.ListComp | ast.SetComp | ast.DictComp | ast.GeneratorExp
_HOLDS = _DISPLAY | ast.Starred | ast.IfExp | ast.BoolOp | ast.Await
_MAKES_ANEW = ast.Compare | ast.BinOp | ast.UnaryOp | ast.FormattedValue | ast.Subscript | ast.Slice
_LOOKS_ONLY = _MAKES_ANEW | ast.Expr | ast.If | ast.While | ast.Assert | ast.Raise | ast.withitem | ast.comprehension


def _words(text: str) -> tuple[str, ...]:
    return tuple(text.split())


# What is known of names that the project does not define. What stands nowhere here may change what it is given.
_LOOKS = _words(
    "len sum min max str int float bool dict frozenset range round abs any all print isinstance repr format join "
    "strip lstrip rstrip lower upper title casefold startswith endswith replace encode decode find count index "
    "copy keys split splitlines tokenize batch_decode convert_ids_to_tokens convert_tokens_to_ids transform "
    "predict exists glob read_text read_bytes match search fullmatch findall finditer sub info debug warning "
    "error exception critical log reshape detach numpy item tolist astype size dim numel union intersection "
    "difference parameters state_dict argmax softmax mean model"
)
_LOOKS_IF_USED = _words("to cpu half float double long int bool read readlines")
_HANDS_OUT = _words("get values items iter list tuple sorted reversed enumerate zip getattr")  # parts
_CHANGES = _words(
    "add append clear discard extend fill insert load move_to_end pop push put register remove reset reverse set "
    "sort store subtract train update write del heap"
)
_IMMUTABLE = _words(
    "int float str len max min bool tuple frozenset re.compile pathlib. logging.getLogger os.path. os.getenv "
    "os.environ.get decimal.Decimal datetime. torch.device torch.cuda.is_available threading. typing. __file__ "
    "__name__"
)
_MAKES_TEXT = _words("title strip lower upper casefold format join replace resolve joinpath read_text as_posix parent")
_DECORATORS = _words(  # that hand on what they are given
    "property staticmethod classmethod functools.wraps functools.total_ordering functools.singledispatch "
    "contextlib. dataclasses. abc. typing. enum. attr. attrs. pydantic. torch. numba. jax. tenacity. atexit."
)
_HIDES = _words(
    "sys.modules sys._getframe inspect.currentframe inspect.getmodule inspect.stack gc.get_ importlib.import_module "
    "importlib.reload importlib.util. builtins. __dict__ __globals__ __builtins__ __subclasses__ "
    "__getattribute__ __code__ __closure__"
)
_ACCELERATOR = re.compile(r"(cuda|mps|xpu|hpu)(:\d+)?|(CUDA|Tensorrt|ROCM)ExecutionProvider")
_GPU = _words("torch.cuda torch.mps cupy cudf cuml pycuda numba.cuda tensorrt nvidia")
_GPU_ASKS = _words("torch.cuda.is_available torch.cuda.device_count torch.cuda.is_initialized")
_NO_EFFECT = _words(  # calls whose effect no other call's result depends on
    "logging. warnings. time.sleep gc. threading. atexit. signal. faulthandler. shutil. subprocess. "
    "asyncio.sleep os.makedirs os.mkdir os.remove os.unlink os.rename os.replace os.nice sys.stdout. sys.stderr. "
    "urllib. zipfile. tarfile. torch.set_num_ torch.cuda. torch.mps. torch.no_grad torch.set_grad_enabled "
    "torch.inference_mode torch.save torch.multiprocessing. torch._assert json.dump pickle.dump "
    "transformers.logging. transformers.utils.logging."
)
_SETS = _words("set seed register manual_seed install patch add_ configure enable disable use_")
_CONVERTS = _words(  # of torch, what no seed changes
    "torch.tensor torch.as_tensor torch.from_numpy torch.stack torch.cat torch.zeros torch.ones torch.arange "
    "torch.full torch.Tensor torch.float torch.long torch.int torch.uint8 torch.nn.functional.pad "
    "torch.nn.functional.softmax torch.softmax torch.argmax torch.topk torch.no_grad torch.inference_mode "
    "torch.nn.Module"
)
_DRAWS = _words("torchvision torchaudio albumentations imgaug kornia transformers diffusers")
_SEEDS_ALL = ("random", "numpy.random", "torch", "lightning", "pytorch_lightning", *_DRAWS)
_AFFECTS = {  # what a library's effect reaches, where that is not the same library; `*`: whatever else is used
    **dict.fromkeys(("pillow_heif", "pillow_avif", "pillow_jxl"), ("PIL", "pillow_heif")),
    **dict.fromkeys(("locale", "os.chdir", "socket", "gevent", "sys.path"), ("*",)),
    **dict.fromkeys(("os.environ", "os.putenv"), ("os.environ", "os.getenv")),
    **{"time.tzset": ("time", "datetime"), "decimal": ("decimal",), "random": ("random", *_DRAWS)},
    "numpy.random": ("numpy.random", "scipy", "sklearn", *_DRAWS),
    **{"numpy": ("numpy", "pandas", "scipy", "sklearn", "skimage", "xarray"), "torch": ("torch", *_DRAWS)},
    **dict.fromkeys(
        ("transformers.set_seed", "accelerate.utils.set_seed", "lightning", "pytorch_lightning"), _SEEDS_ALL
    ),
    "transformers": ("transformers", "tokenizers"),
}


def _within(name: str, *prefixes: str) -> bool:
    return any(name == prefix or name.startswith(prefix + ".") for prefix in prefixes)


def affects(effect: str, used: str) -> bool:
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


class Names(Namespace):
    """The names of a project, with what is known of their values.

    Attributes:
        hooks: The functions and methods that a server calls, with their role.
        served: The model's class and its bases in the project, in the order in which Python looks.
        served_body: What is defined in them.
    """

    def __init__(self, source: Source, class_name: str | None) -> None:
        super().__init__(source.tree, source.module)
        self.hooks: dict[ast.AST, str] = {}
        self.served: list[ast.ClassDef] = []
        self._serve(self.main.originals.get(class_name or "", class_name or ""))
        self.served_body = [part for kind in self.served for part in kind.body]
        self._codes: dict[ast.AST, Code] = {}

    def _serve(self, name: str) -> None:
        for kind in self.classes.get(name, ()):
            if kind not in self.served:
                self.served.append(kind)
                for base in (dotted(base).rpartition(".")[2] for base in kind.bases):
                    self._serve(self.main.originals.get(base, base))

    def code(self, node: ast.AST) -> Code:
        if node not in self._codes:
            self._codes[node] = Code(self, node)
        return self._codes[node]

    def codes(self, name: str) -> Iterator[Code]:
        """What a mention of a name may run: functions, classes with their methods, a value's expressions, a file."""
        kinds = self.classes.get(name, [])
        yield from map(self.code, (*self.functions.get(name, ()), *self.values.get(name, ()), *kinds))
        for method in (part for kind in kinds for part in kind.body if isinstance(part, MethodNode)):
            if self.hooks.get(method) not in HOOKS:
                yield self.code(method)
        file = self.files.get(name)
        if file is not None and file not in self.at_import:
            yield self.code(file.source.tree)

    def is_constant(self, name: str, seen: frozenset[str] = frozenset()) -> bool:
        """Whether a name stands for what obviously nothing can change: numbers, texts, patterns, paths."""
        made = self.made.get(name, ()) if name not in seen else ()
        return bool(made) and all(self._is_immutable(value, seen | {name}) for value in made)

    def _is_immutable(self, value: ast.AST, seen: frozenset[str]) -> bool:
        for node in ast.walk(value):
            func = node.func if isinstance(node, ast.Call) else None
            library = self.code(value).library(func or node)
            if isinstance(node, ast.List | ast.Dict | ast.Set | ast.Lambda | ast.comprehension | ast.Await):
                return False
            if func and library and not library.startswith(_IMMUTABLE):
                return False
            method = isinstance(func, ast.Attribute) and (not library or isinstance(func.value, ast.Call))
            if method and getattr(func, "attr", "") not in _MAKES_TEXT:
                return False
            name = node.id if isinstance(node, ast.Name) and not library else ""
            if name and name not in _IMMUTABLE and not self.is_constant(name, seen):
                return False
        return True

    def remembers(self, name: str) -> bool:
        """Whether all calls share something: a cached result, a single instance, a list as a default."""
        kinds = self.classes.get(name, ())
        if any(kind.keywords or "__new__" in [getattr(part, "name", "") for part in kind.body] for kind in kinds):
            return True
        functions = self.functions.get(name, ())
        defaults = [each for node in functions for each in (*node.args.defaults, *node.args.kw_defaults)]
        if any(isinstance(default, ast.List | ast.Dict | ast.Set | ast.Call) for default in defaults):
            return True
        for node in (*functions, *kinds):
            for item in getattr(node, "decorator_list", ()):
                called = self.code(node).library(getattr(item, "func", item)) or dotted(item)
                if not called.startswith(_DECORATORS) and not called.endswith(".register"):
                    return True
        return any(self.remembers(base) for base in {dotted(base) for kind in kinds for base in kind.bases} - {name})

    def harm_of(self, name: str, *, part: bool, seen: set[Any]) -> str:
        """What functions, methods and constructors of a name do to what they are given, and to their object."""
        kinds = self.classes.get(name, ())
        made = [node for kind in kinds for node in kind.body if getattr(node, "name", "") == "__init__"]
        functions = [*self.functions.get(name, ()), *self.methods.get(name, ()), *made]
        if not functions or len(made) < len(kinds) or self.remembers(name):
            return "may change"
        given = [(self.code(node), set(parameters(node)[1 if node in made else 0 :])) for node in functions]
        found = {code.harm_to(names, part=part, seen=seen) for code, names in given}
        return "may change" if found - {""} else ""

    @cached_property
    def links(self) -> dict[str, set[str]]:
        """What else changes with a name, as a statement at import has both: `Y = X`, `ALL.append(X)`."""
        found: dict[str, set[str]] = defaultdict(set)
        for statement in (n for file in self.at_import for n in statements_at_import(file.source.tree.body)):
            if isinstance(statement, ast.Assign | ast.AnnAssign | ast.Expr | ast.ClassDef):
                names = {name for name, _ in assigned(statement)} | {getattr(statement, "name", "")} - {""}
                read = self.code(statement).found["reads"]
                held = {name for name in read if name in self.values and not self.is_constant(name)}
                for name in names or held:
                    found[name] |= names | held
        return found


class Code:
    """A function, a class body or a file without its functions, or the expression of a value: what it does.

    Attributes:
        found: By kind of fact, names with the line of their first mention. Of the module: `reads`, `assigns`,
            `changes`, `may change`. Of libraries: `uses`, `effects`. Of the object: `own` ("": all of it), `sets`.
            What only the predictor process has: `device`. What the source does not show: `unknown`.
    """

    def __init__(self, names: Names, node: ast.AST) -> None:
        self._names, self.node, self.file = names, node, names.file_of[node]
        self._parts = [node]
        for part in self._parts:
            inner = list(ast.iter_child_nodes(part))
            if part is node and isinstance(part, ast.ClassDef | ast.Module):
                inner = [child for child in inner if not isinstance(child, MethodNode | ast.ClassDef)]
            self._parts += inner
        self._globals = {name for part in self._parts if isinstance(part, ast.Global) for name in part.names}
        bound = {name for part in self._parts if part is not node for name in _bound(part)}
        self._local = bound - self._globals
        method = isinstance(node, MethodNode) and isinstance(names.parents[node], ast.ClassDef)
        self._first = next(iter(parameters(node)), "") if method else ""
        self._runs = any(isinstance(part, MethodNode | ast.Lambda | ast.Module) for part in self._parts)

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
            config = dotted(node) in ("context.config", "ctx.config")
            return node.attr if self._is_file(node.value) else "context.config" if config else ""
        if not isinstance(node, ast.Name) or node.id in self._local:
            return ""
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
            if isinstance(value, ast.Attribute) and dotted(value).partition(".")[0] != node.id:
                return self._names.code(value).library(value)  # DRAWS = np.random
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

    def harm(self, node: ast.AST, *, part: bool = False, seen: set[Any] | None = None) -> str:
        """What the code around an expression does to its value (or part): `changes`, `may change`, or nothing."""
        parents, seen = self._names.parents, set() if seen is None else seen
        parent = parents.get(node, node)
        if (node, part) in seen or (is_stored(node) and not isinstance(parent, ast.AugAssign)):
            return ""
        seen.add((node, part))
        call = parents[parent] if isinstance(parent, ast.keyword | ast.Attribute) else parent
        if isinstance(call, ast.Call) and (not isinstance(parent, ast.Attribute) or call.func is parent):
            part = part or (isinstance(parent, ast.keyword) and parent.arg is None)  # f(**CONFIG)
            if call.func is node:
                return self._called(node)
            found = self._call(call, parent, part=part, seen=seen)
            return self.harm(call, part=True, seen=seen) if found == "hands out" else found
        if isinstance(parent, ast.Attribute) or (isinstance(parent, ast.Subscript) and parent.value is node):
            return "changes" if is_stored(parent) else self.harm(parent, part=True, seen=seen)
        if isinstance(parent, ast.Return | ast.Yield | ast.YieldFrom | ast.Lambda):
            inner = isinstance(parent, ast.Lambda) or any(isinstance(node, MethodNode) for node in self._parts[1:])
            away = self._names.hooks.get(self.node, "load") not in MAKES  # to a worker, or to the client
            return "" if part or (away and not inner) else "may change"
        bound = "" if isinstance(parent, _HOLDS) else self._bind(node, parent, part=part, seen=seen)
        passes = not bound and isinstance(parent, _HOLDS | ast.NamedExpr)
        return self.harm(parent, part=part, seen=seen) if passes else bound

    def _bind(self, node: ast.AST, parent: ast.AST, *, part: bool, seen: set[Any]) -> str:
        """A value is bound to local names, which are followed, or to what may change it later, or it is looked at."""
        assigns = parent.targets if isinstance(parent, ast.Assign) else [getattr(parent, "target", ast.Pass())]
        parts = (part for target in assigns for part in ast.walk(target))
        targets = [part for part in parts if is_stored(part) and part is not node]
        names = {target.id for target in targets if isinstance(target, ast.Name)}
        if not targets or node in getattr(parent, "ifs", ()):
            return "" if isinstance(parent, _LOOKS_ONLY) else "may change"
        if names - self._local or (len(names) < len(targets) and not part):
            return "may change"
        part = part or isinstance(parent, ast.For | ast.AsyncFor | ast.comprehension)
        return self.harm_to(names, part=part, seen=seen)

    def harm_to(self, names: set[str], *, part: bool, seen: set[Any]) -> str:
        """What is done to the values of a function's own names."""
        uses = [other for other in self._parts if isinstance(other, ast.Name) and other.id in names]
        found = [self.harm(use, part=part, seen=seen) for use in uses]
        return max(found, key=("", "may change", "changes").index, default="")

    def _called(self, func: ast.AST) -> str:
        """A value is called: no change where a library made it, but for `functools.partial`."""
        made = [v for v in self._names.made.get(self.name(func), ()) if not isinstance(v, ast.Constant)]
        found = [self._names.code(value).library(getattr(value, "func", value)) for value in made]
        known = found and all(name and not name.startswith("functools.") for name in found)
        return "" if known else "may change"

    def _call(self, call: ast.Call, parent: ast.AST, *, part: bool, seen: set[Any]) -> str:
        """What a call does to its function's object, if `parent` is its function, or else to one of its arguments."""
        names, func, library = self._names, call.func, self.library(call.func)
        last = func.attr if isinstance(func, ast.Attribute) else dotted(func)
        around = names.parents[call]
        bare = isinstance(names.parents[around] if isinstance(around, ast.Await) else around, ast.Expr)
        known = last in _LOOKS or library.startswith(_NO_EFFECT) or (last in _LOOKS_IF_USED and not bare)
        if not library and any(last in group for group in (names.functions, names.classes, names.methods)):
            return names.harm_of(last, part=part, seen=seen)
        if last == "execute" and parent is func and _is_select(call):
            return ""
        if last in _HANDS_OUT or known or dotted(func) == "set":
            return "" if known else "hands out"
        if last.endswith("_") or last in ("setattr", "delattr") or getattr(parent, "arg", "") == "out":
            return "changes"
        if parent is func and isinstance(func, ast.Attribute):
            return "changes" if last.startswith(_CHANGES) else "may change"
        calls = any(isinstance(arg, ast.Lambda) or self.name(arg) in names.functions for arg in call.args)
        looks = library or (isinstance(func, ast.Attribute) and not last.startswith(_CHANGES))
        return "" if looks and not bare and not calls and not library.startswith("heapq.") else "may change"

    def _facts(self, node: ast.AST) -> Iterator[tuple[str, str]]:  # noqa: PLR0912 - a kind of node a branch
        """What a node mentions and does, as kinds and names of `found`."""
        name, parent = self.name(node), self._names.parents.get(node, node)
        alone = not isinstance(parent, ast.Attribute)
        if name:
            yield "reads", name
            done = self._done(node, name) if self._runs else ""
            yield done or "reads", name
        if isinstance(node, ast.Name | ast.Attribute) and alone and self.library(node):
            yield from self._library_facts(self.library(node), node, parent)
        if isinstance(node, ast.Attribute):
            if node.attr in _HIDES:
                yield "unknown", node.attr
            if self._is_file(node.value):
                yield "reads", "__getattr__"  # of the file
            if dotted(node) == "context.device":
                yield "device", "context.device"
            if node.attr in ("cuda", "pin_memory") and isinstance(parent, ast.Call):
                yield "device", f".{node.attr}()"
            if is_stored(node) or self.harm(node):
                yield "sets", node.attr
        elif isinstance(node, ast.Name) and self._first and node.id in (self._first, "super"):
            around = parent if node.id == self._first else self._names.parents[parent]
            yield "own", around.attr if isinstance(around, ast.Attribute) else ""
        elif isinstance(node, ast.Name) and self._is_file(node) and alone:
            yield "unknown", f"{node.id}, handed on as a whole"
        elif isinstance(node, ast.Constant) and _ACCELERATOR.fullmatch(str(node.value)):
            yield "device", repr(node.value)
        elif isinstance(node, ast.Call):
            yield from self._call_facts(node, dotted(node.func))
        elif isinstance(node, ast.Import | ast.ImportFrom | MethodNode) and node is not self.node and self._runs:
            yield from self._import_facts(node)

    def _library_facts(self, library: str, node: ast.AST, parent: ast.AST) -> Iterator[tuple[str, str]]:
        """A library is used; an effect is an assignment, a call whose result is not used, or what sounds like one."""
        yield "uses", library
        if library.startswith(_HIDES):
            yield "unknown", library
        if _within(library, *_GPU) and library not in _GPU_ASKS:
            yield "device", library
        last = library.rpartition(".")[2]
        called = isinstance(parent, ast.Call) and parent.func is node
        bare = called and isinstance(self._names.parents[parent], ast.Expr | ast.Await)
        quiet = library.startswith(_NO_EFFECT) or last.endswith("_") or last in _LOOKS
        stored = is_stored(node) if isinstance(node, ast.Attribute) else False
        stored = stored or (isinstance(parent, ast.Subscript) and is_stored(parent))
        if self._runs and (stored or (not quiet and (bare or last.startswith(_SETS)))):
            yield "effects", library

    def _call_facts(self, node: ast.Call, name: str) -> Iterator[tuple[str, str]]:
        constant = [isinstance(argument, ast.Constant) for argument in node.args]
        if name in ("globals", "exec", "eval", "__import__", "breakpoint", "vars"):
            yield "unknown", f"{name}()"
        elif name in ("getattr", "setattr", "delattr") and not all(constant[1:2]):
            if self.name(node.args[0]) or self._is_file(node.args[0]):
                yield "unknown", f"{name} with a computed name"
        elif name == "open":
            yield "uses", "open()"
        elif self.library(node.func) == "torch.device" and not all(constant):
            yield "device", "torch.device(...)"

    def _import_facts(self, node: ast.AST) -> Iterator[tuple[str, str]]:
        """An import, or a definition, inside a function."""
        imported = {alias.asname or alias.name.partition(".")[0] for alias in getattr(node, "names", ())}
        used = {part.id for part in self._parts if isinstance(part, ast.Name)}
        for name in sorted(imported | {getattr(node, "name", "")}):
            if name in self._globals:
                yield "assigns", name
            if name in self.file.libraries and name not in used:  # it is imported for what that does
                yield "effects", self.file.libraries[name]
        for file in self.file.imports.get(node, ()):
            yield "reads", file.source.file


def _is_select(call: ast.Call) -> bool:
    """Whether a call executes an SQL statement that reads only."""
    text = call.args[0].value if call.args and isinstance(call.args[0], ast.Constant) else ""
    return isinstance(text, str) and text.split(maxsplit=1)[:1] != [] and text.split()[0].lower() == "select"


def _bound(node: ast.AST) -> Iterator[str]:
    """The names that a node binds in a function."""
    if isinstance(node, ast.arg):
        yield node.arg
    elif isinstance(node, ast.Name) and is_stored(node):
        yield node.id
    elif isinstance(node, MethodNode | ast.ClassDef | ast.ExceptHandler | ast.MatchAs | ast.MatchStar):
        yield node.name or ""
