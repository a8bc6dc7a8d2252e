"""Programs that predict by themselves: TorchScript, exported programs, ONNX; as objects or as files."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

from handlergen.creation.draft import Draft
from handlergen.creation.kinds import Options, Sketch, family, is_program_file
from handlergen.creation.requirements import requirement_of
from handlergen.creation.source_code import write
from handlergen.errors import HandlergenError
from handlergen.project.weights_file import weights_format
from handlergen.runtime.forms.weights import call_torch, load_executable, session_call


def sketch_program(model: Any, _options: Options) -> Sketch:
    """Return the sketch of a program; its module needs no `load` and no `predict`, which the weights have.

    Raises:
        HandlergenError: The program cannot be written to a file.
    """
    import torch

    draft = Draft(write)
    if is_program_file(model):
        path = Path(model)
        if not path.is_file():
            raise HandlergenError(f"there is no file {path}")
        title, file = f"The program in {path.name}.", path.name
        call = load_executable(path, str(weights_format(path)), torch.device("cpu"))
        _add_copy(draft, path)
    elif isinstance(model, torch.jit.ScriptModule):
        title, file = f"TorchScript, made of a {model.original_name}.", "model.pt"
        call = _torch_call(model, _device_of(model))
        draft.files[file] = lambda target: torch.jit.save(model, target)
    elif isinstance(model, torch.export.ExportedProgram):
        title, file = "A program of torch.export.", "model.pt2"
        call = _torch_call(model.module(), _device_of(model))
        draft.files[file] = lambda target: torch.export.save(model, target)
    else:
        title = "An ONNX model."
        call = _onnx_call(model)
        file = _add_onnx(draft, model)
    draft.settings["weights"] = file
    if file.endswith(".onnx"):
        draft.settings["requirements"] = [requirement_of("onnxruntime")]
    return Sketch(title, draft, {"load": lambda: call, "predict": lambda model, inputs: model(inputs)})


def _torch_call(program: Any, device: Any) -> Callable[[Any], Any]:
    return lambda inputs: call_torch(program, inputs, device)


def _device_of(model: Any) -> Any:
    import torch

    parameters = model.parameters() if hasattr(model, "parameters") else model.state_dict.values()
    return next((each.device for each in parameters), torch.device("cpu"))


def _onnx_call(model: Any) -> Callable[[Any], Any]:
    if "onnxruntime" in family(model):
        return session_call(model)
    import onnxruntime

    return session_call(onnxruntime.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"]))


def _add_onnx(draft: Draft, model: Any) -> str:
    """Add the file of an ONNX model to a draft; return its name."""
    content = None
    if "onnxruntime" in family(model):
        # A session writes no file; it remembers what it was made of (onnxruntime_inference_collection.py).
        content, path = getattr(model, "_model_bytes", None), getattr(model, "_model_path", None)
        if path and Path(path).is_file():
            return _add_copy(draft, Path(path))
        if not content:
            raise HandlergenError(
                "this InferenceSession does not say which file it was made of, or the file is gone",
                hint="Give the path of the .onnx file instead.",
            )
    draft.files["model.onnx"] = lambda target: target.write_bytes(content or model.SerializeToString())
    return "model.onnx"


def _add_copy(draft: Draft, path: Path) -> str:
    """Add a file to a draft under its own name, and for ONNX the file of large weights beside it; return the name."""
    for each in (path, path.with_name(f"{path.name}.data")):  # where torch.onnx.export and onnx.save put them
        if each.is_file():
            draft.files[each.name] = partial(shutil.copyfile, each)
    return path.name
