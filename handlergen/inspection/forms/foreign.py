"""Classes of other serving systems: how one is recognised, and what its hooks become here where it is not served.

A class is recognised by its base or decorator, as imported; the system's package need not be installed.
"""

from __future__ import annotations

import ast
import re
from collections.abc import Mapping
from dataclasses import dataclass, field, replace

from handlergen.errors import Problem
from handlergen.inspection.findings import Findings, Source
from handlergen.inspection.hook_signatures import plain_parameters
from handlergen.inspection.source_module import dotted, full_name
from handlergen.inspection.source_tree import UserClass


@dataclass(frozen=True)
class System:
    """A system whose classes are recognised.

    Attributes:
        title: For messages: `an MLflow PythonModel`.
        package: The package that the class's base or decorator is imported from.
        names: Bases and decorators that make a class one of this system.
        hooks: Its methods, each with the method of `class Model` that it becomes; in the order in which they run.
        note: What else changes: whole sentences.
        served: A form of its own serves its classes.
    """

    title: str
    package: str
    names: tuple[str, ...]
    hooks: Mapping[str, str] = field(default_factory=dict)
    note: str = ""
    served: bool = False


LITSERVE = System("a LitServe LitAPI", "litserve", ("LitAPI",), served=True)
COG = System("a Cog predictor", "cog", ("BasePredictor", "BaseRunner"), served=True)

SYSTEMS = (
    LITSERVE,
    COG,
    System(
        "an MLflow PythonModel",
        "mlflow",
        ("PythonModel",),
        {"load_context": "load", "predict": "predict"},
        "predict gets the request's decoded JSON: where it needs a DataFrame, make it in preprocess. Pack the "
        "artifacts with extra_files, and open each by its path instead of context.artifacts.",
    ),
    System(
        "a KServe Model",
        "kserve",
        ("Model", "KFModel"),
        {"load": "load", "preprocess": "preprocess", "predict": "predict", "postprocess": "postprocess"},
        "At /predictions/NAME the hooks get the whole payload; at /v1/models/NAME:predict each of its instances is a "
        "request of its own. For the headers, add a second parameter `request: Request`.",
    ),
    System(
        "a mosec Worker",
        "mosec",
        ("Worker",),
        {"__init__": "load", "deserialize": "preprocess", "forward": "predict", "serialize": "postprocess"},
        "JSON arrives decoded and answers are encoded: leave out a deserialize or serialize that only does that. "
        "If forward takes a batch, write batch: list in handlergen.yaml. Of several workers, make one class: those "
        "before and after the model are its preprocess and postprocess.",
    ),
    System(
        "a Triton Python model",
        "triton_python_backend_utils",
        (),
        {"initialize": "load", "execute": "predict"},
        "predict serves one request and gets its decoded JSON: pb_utils.get_input_tensor_by_name(request, "
        '"X").as_numpy() becomes numpy.asarray(inputs["X"]), and a response with pb_utils.Tensor("Y", y) becomes '
        'return {"Y": y}. finalize is not called.',
    ),
    System(
        "a Ray Serve deployment",
        "ray",
        ("deployment",),
        {"__init__": "load", "__call__": "predict"},
        "predict gets the request's decoded JSON: leave out `await request.json()`. Read the constructor's "
        "arguments from self.config: write def __init__(self, config), which keeps it, and config: in handlergen.yaml.",
    ),
    System(
        "a BentoML service",
        "bentoml",
        ("service",),
        {"__init__": "load"},
        'predict gets the request\'s JSON object: what was the parameter `text` is inputs["text"].',
    ),
)


def system_of(kind: UserClass) -> System | None:
    """Return the system that a class is written for; None for a class of no other system."""
    node, module = kind.node, kind.module
    if node.name == "TritonPythonModel":  # the name is all that Triton asks for
        return next(system for system in SYSTEMS if not system.names)
    # As imported: a copy of the package in the project counts too.
    names = {full_name(where, dotted(base)) for each, where in kind.lineage for base in each.bases}
    names |= {full_name(module, dotted(decorator)) for decorator in node.decorator_list}
    parts = {(name.partition(".")[0], name.rpartition(".")[2]) for name in names}
    return next((each for each in SYSTEMS if any((each.package, name) in parts for name in each.names)), None)


def classes_of(source: Source, system: System) -> list[UserClass]:
    """Return the classes of the source that are written for a system, without those that another one extends."""
    found = [kind for kind in source.tree.classes(source.module) if system_of(kind) is system]
    extended = [node for kind in found for node, _ in kind.lineage[1:]]
    return [kind for kind in found if kind.node not in extended]


def evidence(source: Source, system: System) -> str | None:
    """Return the evidence that a source has a class of a system, for messages; None if it has none."""
    found = [f"class {kind.name}, {system.title}, line {kind.node.lineno}" for kind in classes_of(source, system)]
    return " and ".join(found) or None


def only_class(source: Source, system: System, findings: Findings) -> UserClass | None:
    """Return the class to serve; None after adding the problem that there is none, or more than one.

    Warns when the requirements do not name the system's package, which the worker imports.
    """
    file, found = source.module.file, classes_of(source, system)
    if len(found) != 1:
        names = " and ".join(f"{kind.name} (line {kind.node.lineno})" for kind in found)
        message = f"several classes may be the model: {names}" if found else f"there is no class that is {system.title}"
        fix = "Keep one of them in this file." if found else f"Write class Model({system.package}.{system.names[0]})."
        findings.problem(file, found[0].node.lineno if found else 0, message, fix)
        return None
    if not _requires(source, system.package):
        message = f"the worker imports {system.package}, which is not packed. Write requirements: [{system.package}]"
        findings.warn(file, found[0].node.lineno, f"{message}, unless TorchServe's Python has it.")
    # Where the project has a copy of the package, the methods of its base are still the system's defaults.
    return replace(found[0], lineage=tuple(each for each in found[0].lineage if each[0].name not in system.names))


def check_constructor(source: Source, kind: UserClass, findings: Findings) -> None:
    """Report parameters of the constructor that neither `model_args` nor `model_kwargs` gives a value."""
    init, settings = kind.method("__init__"), source.settings
    parameters = [each for each in plain_parameters(init.node) if each.required] if init else []
    positional = [each.name for each in parameters if not each.keyword_only]
    given = {*positional[: len(settings.model_args)], *settings.model_kwargs}
    missing = [each.name for each in parameters if each.name not in given]
    if init and missing:
        message = f"{kind.name} cannot be created without {', '.join(f'`{name}`' for name in missing)}"
        fix = f"Write model_kwargs: {{{', '.join(f'{name}: ...' for name in missing)}}}."
        findings.problem(init.module.file, init.node.lineno, message, fix)


def refusal(source: Source) -> Problem | None:
    """Return the problem of a source whose class is of a system that is not served; it says how to write the class."""
    for kind in source.tree.classes(source.module):
        system = system_of(kind)
        if system is not None and not system.served:
            fix = f"Write it as class Model, without that base or decorator. {_becomes(kind, system)} "
            fix += f"{system.note}\n\n{_skeleton(kind, system)}"
            message = f"{kind.name} is {system.title}, which handlergen does not serve as it is"
            return Problem(source.module.file, kind.node.lineno, message, fix)
    return None


def _hooks(kind: UserClass, system: System) -> dict[str, str]:
    """Return the hooks that the class has, each with the name that it gets."""
    hooks = {name: ours for name, ours in system.hooks.items() if kind.method(name)}
    if "predict" not in system.hooks.values():  # BentoML's have names of the user's own
        apis = [
            item for item in kind.node.body if "api" in {dotted(each).rpartition(".")[2] for each in _decorators(item)}
        ]
        hooks |= {getattr(item, "name", ""): "predict" for item in apis[:1]}
    return hooks


def _decorators(node: ast.stmt) -> list[ast.expr]:
    found: list[ast.expr] = getattr(node, "decorator_list", [])
    return found


def _becomes(kind: UserClass, system: System) -> str:
    renamed = [f"{name} becomes {ours}" for name, ours in _hooks(kind, system).items() if name != ours]
    return f"{', '.join(renamed)}." if renamed else "Its hooks keep their names."


_NOT_PASSED = ("context", "params", "headers", "args")
_DATA = {"preprocess": "data", "predict": "inputs", "postprocess": "outputs"}


def _skeleton(kind: UserClass, system: System) -> str:
    """Return the class to write, into which the bodies of the old one go; a parameter keeps its name with its value."""
    lines = ["class Model:"]
    for name, ours in _hooks(kind, system).items():
        found = kind.method(name)
        method = found.node if found else None
        given = [each.name for each in plain_parameters(method) if each.name not in _NOT_PASSED] if method else []
        kept = given[:1] if name in (ours, "forward", "deserialize", "serialize") else []
        data = [] if ours == "load" else kept or [_DATA[ours]]
        prefix = "async def" if isinstance(method, ast.AsyncFunctionDef) else "def"
        lines += [f"    {prefix} {ours}({', '.join(['self', *data])}):", f"        ...  # the body of {name}", ""]
    if not any("def predict(" in line for line in lines):
        lines += ["    def predict(self, inputs):", "        ...  # what answers a request", ""]
    return "\n".join(f"        {line}".rstrip() for line in lines[:-1])


def _requires(source: Source, package: str) -> bool:
    lines = list(source.settings.requirements)
    for entry in source.settings.requirements:
        path = source.root / entry
        if entry.endswith(".txt") and path.is_file():
            lines += path.read_text(encoding="utf-8", errors="replace").splitlines()
    return any(re.match(rf"\s*{package}\b", line, re.IGNORECASE) for line in lines)
