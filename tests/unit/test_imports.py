"""The rules of the house, read from the source: who may import whom, who prints, who starts processes."""

from __future__ import annotations

import ast
import subprocess
import sys
from collections.abc import Iterator
from graphlib import CycleError, TopologicalSorter
from pathlib import Path

import pytest

import handlergen

PACKAGE = Path(handlergen.__file__).resolve().parent
RUNTIME = "handlergen.runtime"
CLI = "handlergen.cli"
MODULES: dict[str, Path] = {}
for _path in sorted(PACKAGE.rglob("*.py")):
    _parts = _path.relative_to(PACKAGE.parent).with_suffix("").parts
    MODULES[".".join(_parts[:-1] if _parts[-1] == "__init__" else _parts)] = _path

#: What the runtime may import when it is loaded. Everything else it uses only when the user's answer or
#: request is made of it, inside a function.
RUNTIME_NEEDS = frozenset(sys.stdlib_module_names) | {"torch"}

#: Who may start processes, and who may make temporary files.
STARTS_PROCESSES = {
    f"handlergen.{room}"
    for room in (
        *("answering_child", "gpus", "java", "launching", "packing", "sample_run"),
        *("runtime.process.spare", "runtime.process.start"),
    )
}
TOUCHES_TEMPORARY_FILES = {
    f"handlergen.{room}" for room in ("launching", "local", "offline.ray_engine", "packing", "tuning.probe")
}

#: Who forks: a child that must end without running its parent's clean-up code calls os._exit.
ENDS_FORKED_CHILDREN = {"handlergen.runtime.process.spare"}
#: A program of its own.
PROGRAMS = {"handlergen.runtime.process.main"}
#: Hands another process's output on to its own; tells TorchServe metrics, which it reads from a worker's output.
PASSES_OUTPUT_ON = {"handlergen.runtime.process.output", "handlergen.runtime.metrics"}


def tree_of(module: str) -> ast.Module:
    return ast.parse(MODULES[module].read_text(encoding="utf-8"), str(MODULES[module]))


def imported(module: str, node: ast.Import | ast.ImportFrom) -> list[str]:
    """The absolute names that one import statement of `module` asks for."""
    if isinstance(node, ast.Import):
        return [alias.name for alias in node.names]
    package = module if MODULES[module].name == "__init__.py" else module.rpartition(".")[0]
    for _ in range(node.level - 1):
        package = package.rpartition(".")[0]
    base = ".".join(filter(None, [package if node.level else "", node.module or ""]))
    # `from package import name` imports the module package.name when there is one.
    return [f"{base}.{alias.name}" if f"{base}.{alias.name}" in MODULES else base for alias in node.names]


def imports_of(module: str, *, at_load: bool = False) -> Iterator[tuple[str, int]]:
    """(absolute name, line) of the imports of a module.

    Args:
        at_load: Only those that run when the module is loaded: not the ones inside functions, nor those
            that are there for the type checker.
    """
    waiting: list[ast.AST] = [tree_of(module)]
    while waiting:
        node = waiting.pop()
        if isinstance(node, ast.Import | ast.ImportFrom):
            yield from ((name, node.lineno) for name in imported(module, node))
        if at_load and isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.Lambda):
            continue
        if isinstance(node, ast.If) and "TYPE_CHECKING" in ast.unparse(node.test):
            waiting.extend(node.orelse if at_load else [])
            continue
        waiting.extend(ast.iter_child_nodes(node))


def inside(name: str, package: str) -> bool:
    return name == package or name.startswith(package + ".")


def dotted_calls(module: str) -> Iterator[tuple[str, int]]:
    """(`os.fork`, line) for every call whose function is written as a dotted name."""
    for node in ast.walk(tree_of(module)):
        if isinstance(node, ast.Call):
            yield ast.unparse(node.func), node.lineno


RUNTIME_MODULES = [name for name in MODULES if inside(name, RUNTIME)]
LIBRARY_MODULES = [name for name in MODULES if not inside(name, CLI)]


def test_the_walk_sees_the_package() -> None:
    assert {"handlergen", CLI, "handlergen.errors", "handlergen.runtime.contract"} <= set(MODULES)
    assert "handlergen.errors" in {name for name, _ in imports_of(CLI)}
    assert "json" in {name for name, _ in imports_of("handlergen.runtime.contract", at_load=True)}
    assert {"sys.exit", "click.echo"} <= {call for call, _ in dotted_calls(CLI)}


@pytest.mark.parametrize("module", RUNTIME_MODULES)
def test_the_runtime_never_imports_handlergen(module: str) -> None:
    # It travels under another name: an import that works only beside handlergen would fail in the archive.
    for node in ast.walk(tree_of(module)):
        if isinstance(node, ast.ImportFrom) and node.level:
            assert all(inside(name, RUNTIME) for name in imported(module, node)), f"line {node.lineno}"
        elif isinstance(node, ast.Import | ast.ImportFrom):
            assert not [name for name in imported(module, node) if inside(name, "handlergen")]


@pytest.mark.parametrize("module", RUNTIME_MODULES)
def test_the_runtime_loads_with_the_standard_library_and_torch(module: str) -> None:
    foreign = {
        (name, line)
        for name, line in imports_of(module, at_load=True)
        if not inside(name, RUNTIME) and name.partition(".")[0] not in RUNTIME_NEEDS
    }
    assert not foreign


@pytest.mark.parametrize("module", LIBRARY_MODULES)
def test_no_room_reaches_back_to_the_command_line(module: str) -> None:
    assert not [(name, line) for name, line in imports_of(module) if inside(name, CLI)]
    if module != "handlergen.cli":
        assert not [(name, line) for name, line in imports_of(module) if inside(name, "click")]


def test_imports_have_a_direction() -> None:
    graph = {
        module: {name for name, _ in imports_of(module) if name in MODULES and name != module}
        for module in MODULES
    }
    try:
        TopologicalSorter(graph).prepare()
    except CycleError as error:
        pytest.fail(f"modules import each other: {' <- '.join(error.args[1])}")


@pytest.mark.parametrize("module", LIBRARY_MODULES)
def test_only_the_command_line_prints_and_exits(module: str) -> None:
    forbidden = {"print", "exit", "quit", "sys.exit", "os._exit", "click.echo", "click.secho"}
    forbidden |= {"sys.stdout.write", "sys.stderr.write"}
    forbidden -= {"os._exit"} if module in ENDS_FORKED_CHILDREN | PROGRAMS else set()
    forbidden -= {"sys.exit"} if module in PROGRAMS else set()
    forbidden -= {"sys.stdout.write"} if module in PASSES_OUTPUT_ON else set()
    assert not [(call, line) for call, line in dotted_calls(module) if call in forbidden]
    for node in ast.walk(tree_of(module)):
        if isinstance(node, ast.Raise) and node.exc is not None:
            assert not ast.unparse(node.exc).startswith("SystemExit"), f"line {node.lineno}"


@pytest.mark.parametrize("module", sorted(set(MODULES) - STARTS_PROCESSES))
def test_few_rooms_start_processes(module: str) -> None:
    assert not [(name, line) for name, line in imports_of(module) if inside(name, "subprocess")]
    starters = ("os.fork", "os.spawn", "os.exec", "os.posix_spawn", "os.system", "os.popen")
    assert not [(call, line) for call, line in dotted_calls(module) if call.startswith(starters)]


@pytest.mark.parametrize("module", sorted(set(MODULES) - TOUCHES_TEMPORARY_FILES))
def test_few_rooms_make_temporary_files(module: str) -> None:
    # Naming the temporary directory is something else: the device lock's default place is inside it.
    makers = ("mkdtemp", "mkstemp", "TemporaryDirectory", "TemporaryFile", "NamedTemporaryFile")
    assert not [(call, line) for call, line in dotted_calls(module) if call.rpartition(".")[2] in makers]


def test_help_is_not_kept_waiting_by_torch() -> None:
    program = """
import sys
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
