"""`handlergen.create` and `handlergen.archive`: from a live object to a project, and to an archive."""

from __future__ import annotations

import ast
import inspect
import shutil
import tempfile
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import yaml

from handlergen.archives.build import ArchiveResult, archive_project
from handlergen.archives.packing import Progress
from handlergen.creation.kinds import Options, Sketch, is_program_file, sketch
from handlergen.creation.live import gpu_of, with_answer
from handlergen.creation.requirements import requirements_of
from handlergen.creation.source_code import without_options, write_callable
from handlergen.errors import ContractError, HandlergenError, ModuleFailed
from handlergen.inspection.project import Project, open_project
from handlergen.local.clean import ask_in_clean_process
from handlergen.local.examples import require_portable, require_right_examples
from handlergen.local.model import LocalAnswer
from handlergen.local.requests import body_of, body_request, form_request
from handlergen.project.examples import write_example
from handlergen.project.names import MODEL_STORE, check_model_name, propose
from handlergen.project.settings import SETTINGS_FILE, read_settings, shown
from handlergen.runtime.codec.content import MULTIPART
from handlergen.runtime.contract import NAMED_PARAMETERS
from handlergen.runtime.examples import Example, Part

MODULE_FILE = "model.py"

_PASS_THROUGH = {
    "preprocess": '''def preprocess(data):
    """A request's content (JSON arrives decoded, files as bytes) to what predict takes."""
    return data
''',
    "postprocess": '''def postprocess(outputs):
    """What predict returned, on the CPU, to the answer."""
    return outputs
''',
}


def create(
    model: Any,
    directory: Path | str,
    *,
    preprocess: Callable[..., Any] | None = None,
    predict: Callable[..., Any] | None = None,
    postprocess: Callable[..., Any] | None = None,
    example: Any = None,
    name: str | None = None,
    arguments: Mapping[str, Any] | None = None,
    format: str | None = None,
    force: bool = False,
    **settings: Any,
) -> Path:
    """Write a live object as a project: module, weights in a safe format, `handlergen.yaml`, example, README.

    The project is loaded in a clean process, where it must answer the example as the live object does. Otherwise
    nothing is written.

    Args:
        model: An `nn.Module`, TorchScript, an exported program, a scikit-learn, XGBoost or LightGBM model, a
            transformers pipeline or (model, tokenizer), an ONNX session, a file of such a program, a list of flow
            stages, or the function `predict` itself.
        directory: Created if it does not exist; must be empty, unless `force`.
        preprocess, postprocess: Hooks, as in a module; what they use is written down with them.
        predict: In place of the kind's own: takes `(model, inputs)`, by these names.
        example: A request: bytes, a `Path`, a JSON value, an array, a tensor, a DataFrame (its rows), or a dict of the
            parts of a form, if any of them is bytes or a `Path`.
        name: Of the model; by default the directory's.
        arguments: Of the constructor of an `nn.Module`'s class, where they cannot be found on the instance.
        format: `joblib`: pickle a scikit-learn model.
        force: Write into a directory that is not empty; files of other names stay.
        settings: As in `handlergen.yaml`. `extra_files` are copied from the current directory. `requirements` stand in
            place of those that are found: the libraries of the model, in the versions that are installed here, and what
            the functions import.

    Returns:
        The directory.

    Raises:
        ContractError: A setting or the created module does not meet the contract.
        ModuleFailed: The project cannot be loaded in a clean process.
        HandlergenError: The object cannot be written down (the message names what, and why), the answers differ, or
            the directory is not empty.
    """
    target = Path(directory)
    _check_target(target, force=force)
    chosen = name or propose(target.resolve().name)
    given = {"preprocess": preprocess, "predict": predict, "postprocess": postprocess}
    options = Options({role: hook for role, hook in given.items() if hook is not None}, arguments, format, example)
    target.parent.mkdir(parents=True, exist_ok=True)
    # Beside the target: nothing half-written is ever in its place.
    with tempfile.TemporaryDirectory(prefix=".handlergen-", dir=target.parent) as place:
        _write_project(Path(place), model, options, {"name": chosen, **settings}, ask=True)
        _move(Path(place), target)
    return target


def archive(
    model: Any,
    *,
    model_store: Path | str = MODEL_STORE,
    force: bool = False,
    verify: bool = False,
    sign: Path | str | None = None,
    ask_examples: bool = True,
    progress: Progress | None = None,
    environ: Mapping[str, str] | None = None,
    count_gpus: Callable[[], int] | None = None,
    preprocess: Callable[..., Any] | None = None,
    predict: Callable[..., Any] | None = None,
    postprocess: Callable[..., Any] | None = None,
    example: Any = None,
    arguments: Mapping[str, Any] | None = None,
    format: str | None = None,
    **settings: Any,
) -> ArchiveResult:
    """Write an archive: of a source's path, or of a live object as `create` takes it.

    Args:
        model: A `.py` file, a package directory, a directory with handlergen.yaml; or an object.
        model_store, force, verify, sign, progress, environ, count_gpus: See `handlergen.archives.build.archive`.
        ask_examples: Ask the examples first, in a process of its own; False also writes an object that cannot run here.
        preprocess, predict, postprocess, example, arguments, format: See `create`; for an object only.
        settings: As in `handlergen.yaml`. The default name of an object is that of its class or function.

    Raises:
        ContractError, ModuleFailed, HandlergenError: As `create`, where an example of a source is answered wrongly
            (`WrongExamples`), and where the archive cannot be written.
    """
    for_store: dict[str, Any] = {"model_store": model_store, "force": force, "verify": verify, "sign": sign}
    for_store |= {"progress": progress, "count_gpus": count_gpus}
    given = {"preprocess": preprocess, "predict": predict, "postprocess": postprocess}
    hooks = {role: hook for role, hook in given.items() if hook is not None}
    if isinstance(model, str | Path) and not is_program_file(model):
        wrong = [*hooks, *(["example"] if example is not None else []), *(["arguments"] if arguments else [])]
        if wrong:
            raise HandlergenError(
                f"{model} is a source, which has its own hooks and examples: {', '.join(wrong)} cannot be given",
                hint="Give the model itself, or write them into the source.",
            )
        project = open_project(model, overrides=settings, environ=environ)
        if ask_examples:
            require_right_examples(project, Path(model), overrides=settings)
        return archive_project(project, **for_store)
    settings.setdefault("name", _name_of(model))
    with tempfile.TemporaryDirectory(prefix="handlergen-") as place:
        options = Options(hooks, arguments, format, example)
        project = _write_project(Path(place), model, options, settings, ask=ask_examples)
        return archive_project(project, **for_store)


def _name_of(model: Any) -> str:
    found = getattr(model, "__name__", None) or type(model).__name__
    return propose(Path(model).stem if isinstance(model, str | Path) else found.lower())


def _check_target(target: Path, *, force: bool) -> None:
    if target.exists() and not target.is_dir():
        raise HandlergenError(f"{shown(target)} is a file", hint="Name a directory; it may be new.")
    if target.is_dir() and any(target.iterdir()) and not force:
        raise HandlergenError(
            f"{shown(target)} is not empty; nothing was written",
            hint="Name another directory, or write force=True: files of the same names are replaced, the others stay.",
        )


def _move(place: Path, target: Path) -> None:
    """Move what was written to its place; a file of the same name there is replaced."""
    if not target.exists():
        target.mkdir()
    for path in sorted(place.rglob("*")):
        there = target / path.relative_to(place)
        if path.is_dir():
            there.mkdir(exist_ok=True)
        else:
            path.replace(there)


def _write_project(place: Path, model: Any, options: Options, settings: Mapping[str, Any], *, ask: bool) -> Project:
    """Write a project into an empty directory; `ask`: check it in a clean process."""
    check_model_name(str(settings["name"]))
    _, problems = read_settings(None, environ={}, overrides=settings)
    if problems:
        raise ContractError(problems)
    made = sketch(model, options)
    draft = made.draft
    for role, hook in options.hooks.items():
        if role not in draft.hooks or hook is not made.live.get(role):
            draft.hooks.pop(role, None)
            write_callable(draft, role, without_options(hook))
    for role in _passing(made, model, options):
        draft.hooks[role] = _PASS_THROUGH[role]
    draft.title = made.title
    source = draft.module_text()
    (place / MODULE_FILE).write_text(source, encoding="utf-8")
    for name, write in draft.files.items():
        (place / name).parent.mkdir(parents=True, exist_ok=True)
        write(place / name)
    for path in dict.fromkeys(draft.sources):
        _copy(path, place / path.name)
    for entry in settings.get("extra_files", ()):
        if Path(entry).exists() and not Path(entry).is_absolute():
            _copy(Path(entry), place / entry)
    values = _settings(made, source, settings)
    (place / SETTINGS_FILE).write_text(_yaml(values), encoding="utf-8")
    (place / "README.md").write_text(_readme(made, values), encoding="utf-8")
    project = _opened(place)
    examples = []
    if options.example is not None:
        examples.append(with_answer(project, made, options.hooks, model, request_of(options.example)))
        right = examples[0].answer
        assert right is not None
        require_portable(project, examples, [LocalAnswer(200, right.content_type, right.body or b"")])
    if ask:
        _check(place, examples, gpu_of(model))
    for each in examples:
        write_example(place, each)
    return project


def _copy(path: Path, target: Path) -> None:
    target.parent.mkdir(parents=True, exist_ok=True)
    if path.is_dir():
        shutil.copytree(path, target, ignore=shutil.ignore_patterns("__pycache__"))
    else:
        shutil.copyfile(path, target)


def _opened(place: Path) -> Project:
    """Read the created project. Raises ContractError with the problems of the functions as they were given."""
    try:
        return open_project(place, environ={})
    except ContractError as error:
        # The directory will be gone.
        problems = [replace(each, file=Path(each.file).name) for each in error.problems]
        raise ContractError(
            problems, hint="the lines are those of the module that was made of your functions"
        ) from None


def _passing(made: Sketch, model: Any, options: Options) -> list[str]:
    """Return the hooks that the module gets so that a person finds where to write them."""
    hooks = made.draft.hooks
    if "predict" not in hooks and "predict" not in made.live:
        return []  # a flow, or a network with hooks of its own
    missing = [role for role in _PASS_THROUGH if role not in hooks]
    function = options.hooks.get("predict") or (model if inspect.isroutine(model) else None)
    if inspect.isgeneratorfunction(function) or inspect.isasyncgenfunction(function):
        missing = [role for role in missing if role != "postprocess"]  # chunks are sent as they are
    if "predict" in hooks:
        arguments = next(each for each in ast.walk(ast.parse(hooks["predict"])) if isinstance(each, ast.arguments))
        own = {each.arg for each in (*arguments.posonlyargs, *arguments.args)} - {*NAMED_PARAMETERS}
        if len(own) > 1 or arguments.kwonlyargs:
            missing = [role for role in missing if role != "preprocess"]  # the keys of a JSON object are its parameters
    return missing


def _settings(made: Sketch, source: str, given: Mapping[str, Any]) -> dict[str, Any]:
    """Return the settings of the project that are not the defaults."""
    draft = made.draft
    own = dict(draft.settings)
    beside = [name for name in draft.files if name != own.get("weights")]
    if beside and not made.stages:  # a flow names its files
        own["extra_files"] = list(dict.fromkeys([*own.get("extra_files", ()), *beside]))
    modules = [path.stem for path in draft.sources]
    known = list(dict.fromkeys(own.get("requirements", ())))
    own["requirements"] = [*known, *requirements_of(source, own=modules, known=known)]
    values = {"name": given["name"], "source": MODULE_FILE, **own, **given}
    return {name: value for name, value in values.items() if value not in ([], (), None)}


def _yaml(values: Mapping[str, Any]) -> str:
    plain = {name: list(value) if isinstance(value, tuple) else value for name, value in values.items()}
    text: str = yaml.safe_dump(plain, sort_keys=False, allow_unicode=True, default_flow_style=False, width=100)
    return f"# `handlergen init` writes a file that explains every setting.\n{text}"


def _readme(made: Sketch, values: Mapping[str, Any]) -> str:
    name = values["name"]
    return f"""# {name}

{made.title} `handlergen.create` wrote this project; `{MODULE_FILE}` is yours to edit.

```
handlergen check .        # reads the module; --examples also runs the examples
handlergen archive .      # writes model-store/{name}.mar
handlergen serve          # starts TorchServe; then: handlergen invoke {name} --example 1
```
"""


def request_of(example: Any) -> Example:
    """Return the request that an object means. Raises HandlergenError if it cannot be sent."""
    if isinstance(example, Mapping) and any(isinstance(part, Path | bytes | bytearray) for part in example.values()):
        content, headers = form_request(example)
    else:
        content, headers = body_request(*body_of(_plain(example)))
    types = {name: headers.get(name, {}).get("content-type", "") for name in content}
    parts = {name: Part(types[name], bytes(body)) for name, body in content.items()}
    return Example("1", parts, headers["content-type"] == MULTIPART)


def _plain(example: Any) -> Any:
    """Return a tensor as an array, a DataFrame as its rows, an image as a PNG file."""
    kind = {f"{base.__module__}.{base.__name__}" for base in type(example).__mro__}
    if "torch.Tensor" in kind or "torch._tensor.Tensor" in kind:
        return example.detach().cpu().numpy()
    if any(name.startswith("pandas.") and name.endswith("DataFrame") for name in kind):
        return example.to_dict(orient="records")
    return example


def _check(place: Path, examples: Sequence[Example], gpu: int | None) -> None:
    """Load the project in a clean process, and compare its answers with the live object's."""
    ran = ask_in_clean_process(place, examples, gpu=gpu)
    if ran.traceback:
        last = ran.traceback.rstrip().splitlines()[-1]
        raise ModuleFailed(f"the project fails on the example in a clean process: {last}", traceback=ran.traceback)
    for example, answer in zip(examples, ran.answers, strict=True):
        found = example.compare(answer.status, answer.content_type, answer.body)
        if found:
            lines = "\n".join(f"  {each}" for each in found)
            raise HandlergenError(
                f"the project does not answer the example as the object does (object ≠ project):\n{lines}",
                hint="Something that the object uses is not written down: a global that was changed since, a file, a "
                "random number. Nothing was written.",
            )
