"""The rules of the house, read from the source: who may import whom, who prints, who starts processes."""

from __future__ import annotations

import ast
import importlib
import subprocess
import sys
from collections.abc import Set
from functools import cache
from graphlib import CycleError, TopologicalSorter
from pathlib import Path

import pytest

import handlergen
from handlergen.inspection.forms import FORMS as INSPECTED
from handlergen.project.templates import template_dir
from handlergen.runtime.forms.table import DEFAULT_FORM, FORMS

PACKAGE = Path(handlergen.__file__).resolve().parent
TESTS = Path(__file__).resolve().parents[1]


# The rooms: packages and modules of `handlergen`, and the other rooms that each may import. `api` is the package
# itself, whose names are imported when they are first used.
ROOMS = {
    "runtime": "",
    "errors": "",
    "project": "runtime errors",
    "inspection": "runtime errors project",
    "archives": "runtime errors project inspection api",
    "client": "runtime errors server",
    "server": "runtime errors project inspection archives client",
    "local": "runtime errors project inspection archives",
    "creation": "runtime errors project inspection archives local",
    "performance": "runtime errors project inspection archives server client local",
    "cli": "runtime errors project inspection archives server client local performance api",
    "api": "",
}

# Exceptions to the rules below: modules, without `handlergen.`.
STARTS_PROCESSES = {
    *("archives.model_config", "archives.packing", "local.clean", "local.sample", "local.sample_child"),
    *("runtime.predictor_process.launcher", "server.java", "server.launching"),
}
MAKES_TEMPORARY_FILES = {
    *("server.launching", "local.model", "local.offline.ray_engine", "archives.packing"),
    *("creation.create", "creation.estimators", "local.clean"),
    "runtime.forms.cog",
}
PRINTS_AND_EXITS = {
    # Programs of their own.
    "runtime.predictor_process.__main__": {"os._exit", "sys.exit"},
    # The end of programs, which must not wait for threads.
    "local.ending": {"os._exit", "sys.exit", "sys.stderr.write"},
    # TorchServe reads metrics from a worker's output, and logs it.
    "runtime.telemetry.recording": {"sys.stdout.write"},
    "runtime.environment": {"sys.stdout.write"},
}

# What the runtime may import when it is loaded. Everything else it uses only when the user's answer or request is made
# of it, inside a function.
RUNTIME_IMPORTS = frozenset(sys.stdlib_module_names) | {"torch"}

Place = tuple[str, str, int]
"""Module, what is wrong there, line."""


def _modules() -> dict[str, Path]:
    found = {}
    for path in sorted(PACKAGE.rglob("*.py")):
        parts = path.relative_to(PACKAGE).with_suffix("").parts
        found[".".join(parts[:-1] if parts[-1] == "__init__" else parts)] = path
    return found


MODULES = _modules()
"""Every module's name, without `handlergen.`, and its file; the package itself is the empty name."""


def room_of(module: str) -> str:
    return module.partition(".")[0] or "api"


@cache
def tree_of(module: str) -> ast.Module:
    return ast.parse(MODULES[module].read_text(encoding="utf-8"), str(MODULES[module]))


def imported(module: str, node: ast.Import | ast.ImportFrom) -> list[str]:
    """The absolute names that one import statement of `module` asks for."""
    if isinstance(node, ast.Import):
        return [alias.name for alias in node.names]
    package = f"handlergen.{module}".rstrip(".")
    for _ in range(node.level - (MODULES[module].name == "__init__.py")):
        package = package.rpartition(".")[0]
    base = ".".join(filter(None, [package if node.level else "", node.module or ""]))
    # `from package import name` imports the module package.name when there is one.
    return [f"{base}.{alias.name}" if own(f"{base}.{alias.name}") in MODULES else base for alias in node.names]


def own(name: str) -> str | None:
    """A module's name without `handlergen.`; None for what is not in the package."""
    package, _, rest = name.partition(".")
    return rest if package == "handlergen" else None


@cache
def imports_of(module: str, *, at_load: bool = False) -> list[tuple[str, int]]:
    """(absolute name, line) of a module's imports; `at_load`: without those in functions and for the type checker."""
    found = []
    waiting: list[ast.AST] = [tree_of(module)]
    while waiting:
        node = waiting.pop()
        if isinstance(node, ast.Import | ast.ImportFrom):
            found += [(name, node.lineno) for name in imported(module, node)]
        if at_load and isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.Lambda):
            continue
        if isinstance(node, ast.If) and "TYPE_CHECKING" in ast.unparse(node.test):
            waiting.extend(node.orelse if at_load else [])
            continue
        waiting.extend(ast.iter_child_nodes(node))
    return found


@cache
def dotted_calls(module: str) -> list[tuple[str, int]]:
    """(`os.fork`, line) for every call whose function is written as a dotted name."""
    calls = [node for node in ast.walk(tree_of(module)) if isinstance(node, ast.Call)]
    return [(ast.unparse(call.func), call.lineno) for call in calls if isinstance(call.func, ast.Name | ast.Attribute)]


def runtime_modules() -> list[str]:
    return [name for name in MODULES if room_of(name) == "runtime"]


def test_the_walk_sees_the_package() -> None:
    assert {"", "cli", "errors", "runtime.contract"} <= set(MODULES)
    assert "handlergen.errors" in {name for name, _ in imports_of("cli")}
    assert "json" in {name for name, _ in imports_of("runtime.contract", at_load=True)}
    assert {"sys.exit", "click.echo"} <= {call for call, _ in dotted_calls("cli")}


def test_every_module_is_in_a_room() -> None:
    assert {room_of(module) for module in MODULES} == set(ROOMS)


def test_rooms_import_what_the_table_says() -> None:
    """Both ways: no import that the table forbids, and no line in the table that nothing needs."""
    wrong: list[Place] = []
    used: dict[str, set[str]] = {name: set() for name in ROOMS}
    for module in MODULES:
        here = room_of(module)
        for name, line in imports_of(module):
            other = own(name)
            if name.partition(".")[0] == "click" and here != "cli":
                wrong.append((module, name, line))
            if other is None or (there := room_of(other)) == here:
                continue
            used[here].add(there)
            if there not in ROOMS[here].split():
                wrong.append((module, f"{here} imports {there}: {name}", line))
    assert wrong == []
    assert used == {name: set(rooms.split()) for name, rooms in ROOMS.items()}


def test_modules_do_not_import_each_other() -> None:
    graph = {module: {own(name) for name, _ in imports_of(module)} & set(MODULES) for module in MODULES}
    try:
        TopologicalSorter({module: others - {module} for module, others in graph.items()}).prepare()
    except CycleError as error:
        pytest.fail(f"modules import each other: {' <- '.join(error.args[1])}")


def test_the_runtime_imports_itself_by_relative_names() -> None:
    # It travels under another name: an import that works only beside handlergen would fail in the archive.
    wrong: list[Place] = []
    for module in runtime_modules():
        for node in ast.walk(tree_of(module)):
            if not isinstance(node, ast.Import | ast.ImportFrom):
                continue
            relative = isinstance(node, ast.ImportFrom) and node.level > 0
            for name in imported(module, node):
                found = own(name)
                if relative != (found is not None) or (found is not None and room_of(found) != "runtime"):
                    wrong.append((module, name, node.lineno))
    assert wrong == []


def test_the_runtime_loads_with_the_standard_library_and_torch() -> None:
    wrong = [
        (module, name, line)
        for module in runtime_modules()
        for name, line in imports_of(module, at_load=True)
        if own(name) is None and name.partition(".")[0] not in RUNTIME_IMPORTS
    ]
    assert wrong == []


def test_only_the_command_line_prints_and_exits() -> None:
    calls = {"print", "exit", "quit", "sys.exit", "os._exit", "click.echo", "click.secho"}
    calls |= {"sys.stdout.write", "sys.stderr.write"}
    wrong: list[Place] = []
    none: Set[str] = frozenset()
    for module in MODULES:
        if room_of(module) == "cli":
            continue
        forbidden = calls - PRINTS_AND_EXITS.get(module, none)
        wrong += [(module, call, line) for call, line in dotted_calls(module) if call in forbidden]
        wrong += [
            (module, "raise SystemExit", node.lineno)
            for node in ast.walk(tree_of(module))
            if isinstance(node, ast.Raise) and node.exc and ast.unparse(node.exc).startswith("SystemExit")
        ]
    assert wrong == []


def test_few_modules_start_processes() -> None:
    starters = ("os.fork", "os.spawn", "os.exec", "os.posix_spawn", "os.system", "os.popen")
    wrong: list[Place] = []
    for module in set(MODULES) - STARTS_PROCESSES:
        wrong += [(module, name, line) for name, line in imports_of(module) if name == "subprocess"]
        wrong += [(module, call, line) for call, line in dotted_calls(module) if call.startswith(starters)]
    assert wrong == []


def test_few_modules_make_temporary_files() -> None:
    # Naming the temporary directory is something else: the device lock's default place is inside it.
    makers = ("mkdtemp", "mkstemp", "TemporaryDirectory", "TemporaryFile", "NamedTemporaryFile")
    wrong = [
        (module, call, line)
        for module in set(MODULES) - MAKES_TEMPORARY_FILES
        for call, line in dotted_calls(module)
        if call.rpartition(".")[2] in makers
    ]
    assert wrong == []


def test_no_test_module_imports_another() -> None:
    """What several need lies in a conftest.py or in a module beside the tests that holds none."""
    wrong: list[Place] = []
    for path in sorted(TESTS.rglob("*.py")):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.ImportFrom) and (node.module or "").startswith("tests"):
                names = [*(node.module or "").split("."), *(alias.name for alias in node.names)]
                if path.name.startswith("test_") or path.name == "conftest.py":
                    wrong += [(path.name, name, node.lineno) for name in names if name.startswith("test_")]
    assert wrong == []


def test_the_exceptions_are_modules() -> None:
    assert STARTS_PROCESSES | MAKES_TEMPORARY_FILES | set(PRINTS_AND_EXITS) <= set(MODULES)


def test_import_and_help_are_not_kept_waiting_by_torch() -> None:
    program = """
import sys
import handlergen

assert not {"torch", "ts", "grpc", "httpx", "click"} & set(sys.modules)

from click.testing import CliRunner
from handlergen.cli import VERBS, cli

for verb in ("", *VERBS):
    result = CliRunner().invoke(cli, [verb, "--help"] if verb else ["--help"])
    assert result.exit_code == 0, (verb, result.output, result.exception)
    heavy = {"torch", "ts", "grpc", "model_archiver", "numpy"} & set(sys.modules)
    assert not heavy, f"handlergen {verb} --help imports {heavy}"
"""
    result = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=False)
    assert result.returncode == 0, result.stderr


def test_scripts_import_names_that_exist() -> None:
    """The type checker reads the package only, and no other test runs the examples, benchmarks and the soak."""
    root = PACKAGE.parent
    wrong = []
    for path in sorted(path for room in ("examples", "benchmarks", "tests") for path in (root / room).rglob("*.py")):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if not isinstance(node, ast.ImportFrom) or (node.module or "").partition(".")[0] != "handlergen":
                continue
            try:
                module = importlib.import_module(node.module or "")
            except ImportError:
                wrong.append(f"{path.relative_to(root)}:{node.lineno}: {node.module}")
                continue
            for alias in node.names:
                if not hasattr(module, alias.name) and f"{node.module}.{alias.name}".partition(".")[2] not in MODULES:
                    wrong.append(f"{path.relative_to(root)}:{node.lineno}: {node.module}.{alias.name}")
    assert wrong == []


#: Besides the forms' own files: a Truss is of one form; where stages run depends on which functions load the model.
NAME_FORMS = ("project.truss", "inspection.stage_rule")


def test_every_form_has_its_parts() -> None:
    assert [form.name for form in INSPECTED] == list(FORMS)
    for name, row in FORMS.items():
        module = importlib.import_module(f"handlergen.runtime.forms.{row.module}")
        for method in ("setup", "load", "load_without_model", "hooks", "is_healthy"):
            assert callable(getattr(module.USER_MODULE, method)), (name, method)
        assert list((template_dir() / "starters" / name).glob("*.py")), name
    assert DEFAULT_FORM in FORMS


def test_nothing_else_names_a_form() -> None:
    names = {"model-class", "sagemaker"}  # the others are words that mean something else as well
    wrong = [
        (module, node.value, node.lineno)
        for module in MODULES
        if not module.startswith(("inspection.forms", "runtime.forms", *NAME_FORMS))
        for node in ast.walk(tree_of(module))
        if isinstance(node, ast.Constant) and node.value in names
    ]
    assert wrong == []


def test_servers_and_clients_wait_for_no_torch() -> None:
    """Its import takes seconds, and fails in a directory that no longer exists."""
    verbs = ("serve", "status", "update", "invoke", "doctor")
    modules = ["handlergen.client", "handlergen.server.update", *(f"handlergen.cli.{verb}" for verb in verbs)]
    code = f"import sys, {', '.join(modules)}; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
