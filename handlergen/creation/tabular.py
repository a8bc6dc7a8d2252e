"""scikit-learn, XGBoost and LightGBM models: their files, and the functions that load them and predict."""

from __future__ import annotations

from typing import Any

from handlergen.creation.draft import Draft
from handlergen.creation.estimators import add_estimator, is_installed, load_text
from handlergen.creation.kinds import Options, Sketch
from handlergen.creation.requirements import requirement_of
from handlergen.creation.source_code import write
from handlergen.errors import HandlergenError


def sketch_tabular(model: Any, options: Options) -> Sketch:
    """Return the sketch of a fitted estimator, or of a Booster. Raises HandlergenError if it cannot be saved."""
    package = type(model).__module__.partition(".")[0]
    if package not in ("xgboost", "lightgbm"):  # pipelines with such a step, subclasses of the user's own
        return _sklearn(model, options)
    if options.file_format:
        raise HandlergenError(
            f"format={options.file_format!r} is for scikit-learn models; {package} has a safe format of its own",
            hint="Leave it out.",
        )
    return (_xgboost if package == "xgboost" else _lightgbm)(model, options)


def _sklearn(model: Any, options: Options) -> Sketch:
    method = next((name for name in ("predict", "transform") if hasattr(model, name)), None)
    if method is None:
        raise HandlergenError(
            f"{type(model).__name__} has neither predict nor transform (or is not fitted)",
            hint="Fit it first; a model that only has fit_predict cannot answer requests.",
        )
    if options.file_format not in (None, "skops", "joblib"):
        raise HandlergenError(f"there is no format {options.file_format!r}", hint='Write "skops" or "joblib".')
    draft = Draft(write)
    file = f"model.{options.file_format or 'skops'}"
    trusted = add_estimator(draft, model, file)
    draft.settings["weights"] = file
    draft.hooks["load"] = f"def load(context):\n    return {load_text(draft, file, trusted, 'context.model_dir')}\n"
    columns = getattr(model, "feature_names_in_", None)
    if columns is None and hasattr(model, "n_features_in_") and _has_numbers(options.example):
        _numbers(draft, None, options, otherwise="np.asarray(data)")
    else:
        _tabular_input(draft, columns, options, otherwise="data")
    draft.hooks["predict"] = f"def predict(model, inputs):\n    return model.{method}(inputs)\n"
    return Sketch(f"A scikit-learn {type(model).__name__}.", draft, {"load": lambda: model})


def _tabular_input(draft: Draft, columns: Any, options: Options, *, otherwise: str) -> None:
    """Add the preprocess of a model of tables, unless the caller has one: of a model with named columns, a DataFrame.

    Args:
        columns: Their names, or None.
        otherwise: The expression of `data` without names.
    """
    if "preprocess" in options.hooks or "preprocess" in draft.hooks:
        return
    if columns is None or not is_installed("pandas"):
        lines = ['    """Rows of numbers: a JSON list of lists, or an array."""', f"    return {otherwise}"]
    else:
        draft.imports.append("import pandas as pd")
        draft.definitions.append(f"COLUMNS = {[str(name) for name in columns]!r}")
        lines = [
            '    """A JSON object for each row, a list of them, or lists in the order of COLUMNS."""',
            "    return pd.DataFrame([data] if isinstance(data, dict) else data, columns=COLUMNS)",
        ]
    draft.hooks["preprocess"] = "\n".join(["def preprocess(data):", *lines, ""])


def _xgboost(model: Any, options: Options) -> Sketch:
    import xgboost

    draft = Draft(write)
    draft.imports.append("import xgboost")
    draft.files["model.json"] = model.save_model
    draft.settings |= {"weights": "model.json", "requirements": [requirement_of("xgboost")]}
    name = type(model).__name__
    if getattr(xgboost, name, None) is not type(model):
        raise HandlergenError(f"{name} is a class of your own; its file has the model of XGBoost only")
    arguments = ""
    if not isinstance(model, xgboost.Booster):
        # What the file does not have, of the parameters that predictions depend on.
        given, default = model.get_params(), type(model)().get_params()
        kept = {
            key: given[key]
            for key in ("missing", "enable_categorical")
            if key in given and repr(given[key]) != repr(default.get(key))
        }
        arguments = ", ".join(f"{key}={value!r}" for key, value in kept.items())
    draft.hooks["load"] = (
        "def load(context):\n"
        f"    model = xgboost.{name}({arguments})\n"
        '    model.load_model(context.model_dir / "model.json")\n'
        '    if context.device.type == "cuda":\n'
        f"        model.set_param{'' if name == 'Booster' else 's'}({{}})\n"
        "    return model\n"
    ).format('{"device": str(context.device)}' if name == "Booster" else "device=str(context.device)")
    if isinstance(model, xgboost.Booster):
        _numbers(draft, None, options)
        call = "xgboost.DMatrix(inputs, feature_names=model.feature_names, feature_types=model.feature_types)"
        draft.hooks["predict"] = f"def predict(model, inputs):\n    return model.predict({call})\n"
    else:
        _numbers(draft, model.get_booster().feature_names, options)
        draft.hooks["predict"] = "def predict(model, inputs):\n    return model.predict(inputs)\n"
    return Sketch(f"An XGBoost {name}.", draft, {"load": lambda: model})


def _lightgbm(model: Any, options: Options) -> Sketch:
    import lightgbm

    draft = Draft(write)
    draft.imports.append("import lightgbm")
    booster = model if isinstance(model, lightgbm.Booster) else model.booster_
    draft.files["model.txt"] = booster.save_model
    draft.settings |= {"weights": "model.txt", "requirements": [requirement_of("lightgbm")]}
    draft.hooks["load"] = (
        'def load(context):\n    return lightgbm.Booster(model_file=str(context.model_dir / "model.txt"))\n'
    )
    columns = None if model is booster else getattr(model, "feature_names_in_", None)
    _numbers(draft, columns, options)
    classes = getattr(model, "classes_", None)
    if classes is None:
        draft.hooks["predict"] = "def predict(model, inputs):\n    return model.predict(inputs)\n"
    else:
        if callable(model.objective_):
            raise HandlergenError(
                "this LGBMClassifier has an objective of its own, of which its file knows nothing",
                hint="Give model.booster_ and a postprocess that turns its scores into classes.",
            )
        draft.imports.append("import numpy as np")
        draft.definitions.append(f"CLASSES = np.array({classes.tolist()!r})")
        best = "(scores > 0.5).astype(int)" if len(classes) == 2 else "scores.argmax(axis=1)"
        draft.hooks["predict"] = (
            "def predict(model, inputs):\n"
            f'    """The most probable class of each row, as {type(model).__name__}.predict has it."""\n'
            "    scores = model.predict(inputs)\n"
            f"    return CLASSES[{best}]\n"
        )
    # The file has a Booster, whatever the object is; what it answers is compared with the object's own answer.
    live = {"load": lambda: model, "predict": lambda model, inputs: model.predict(inputs)}
    return Sketch(f"A LightGBM {type(model).__name__}.", draft, live)


def _has_numbers(example: Any) -> bool:
    """Return whether an example is rows of numbers, or not known, rather than texts or mixed."""
    import numpy as np

    try:
        return example is None or np.asarray(example).dtype.kind in "biuf"
    except ValueError:  # rows of different lengths
        return False


def _numbers(
    draft: Draft, columns: Any, options: Options, *, otherwise: str = "np.asarray(data, dtype=np.float32)"
) -> None:
    """Add a preprocess for models that take arrays and no lists."""
    if "preprocess" not in options.hooks and (columns is None or not is_installed("pandas")):
        draft.imports.append("import numpy as np")
    _tabular_input(draft, columns, options, otherwise=otherwise)
