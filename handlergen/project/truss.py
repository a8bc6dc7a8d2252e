"""Truss directories: `config.yaml` translated to handlergen's settings.

Facts: truss/base/truss_config.py (the keys), truss/templates/server/model_wrapper.py (what the server does with
them). Of secrets, only the names are kept, never the values.
"""

from __future__ import annotations

import difflib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from handlergen.errors import Problem
from handlergen.project.names import propose
from handlergen.project.settings import shown
from handlergen.project.yaml_source import YamlSource, read_yaml

CONFIG_FILE = "config.yaml"
TRUSS_FORM = "model-class"

HONOURED: tuple[str, ...] = (
    "bundled_packages_dir",
    "data_dir",
    "environment_variables",
    "external_package_dirs",
    "model_class_filename",
    "model_class_name",
    "model_metadata",
    "model_module_dir",
    "model_name",
    "requirements",
    "requirements_file",
    "resources",
    "runtime",
    "secrets",
)
"""Keys that have the same effect as in Truss."""

RUNTIME_KEYS: tuple[str, ...] = (
    "predict_concurrency",
    "streaming_read_timeout",
    "num_workers",
    "enable_tracing_data",
    "enable_debug_logs",
    "is_websocket_endpoint",
    "transport",
)
"""Keys below `runtime` that need no warning."""

WITHOUT_EFFECT: tuple[str, ...] = (
    "apply_library_patches",
    "description",
    "examples_filename",
    "input_type",
    "live_reload",
    "model_framework",
    "model_type",
    "python_version",
    "spec_version",
    "use_local_chains_src",
)
"""Keys that describe the model, or how Truss builds its image: ignoring them loses nothing."""

FUTILE: Mapping[str, str] = {
    "base_image": "handlergen makes no container image; the server's own Python runs the model",
    "build": "handlergen makes no container image",
    "build_commands": "handlergen makes no container image; run them where the server is installed",
    "cache_internal": "nothing is fetched ahead; the model fetches what it needs when it loads",
    "hf_cache": "nothing is fetched ahead; the model fetches what it needs when it loads",
    "model_cache": "nothing is fetched ahead; the model fetches what it needs when it loads",
    "system_packages": "handlergen makes no container image; install them where the server runs",
}
"""Keys that are ignored, each with the reason; the server's administrator may have to act instead."""

UNSUPPORTED: Mapping[str, str] = {
    "docker_server": "it replaces the model's class with another server",
    "external_data": "nothing is downloaded; put the files into the data directory",
    "trt_llm": "it replaces the model's class with TensorRT-LLM",
    "weights": "nothing is downloaded; put the files into the data directory",
}
"""Keys without which the model cannot run, each with the reason why they are not supported."""

_ALL_KEYS = (*HONOURED, *WITHOUT_EFFECT, *FUTILE, *UNSUPPORTED)


_DEFAULTS = {
    "model_module_dir": "model",
    "model_class_filename": "model.py",
    "model_class_name": "Model",
    "data_dir": "data",
    "bundled_packages_dir": "packages",
}


def is_truss(directory: Path) -> bool:
    """Return whether a directory has a `config.yaml` whose model file exists."""
    config = directory / CONFIG_FILE
    if not config.is_file():
        return False
    values = read_yaml(config, shown=CONFIG_FILE).values
    return (directory / _text(values, "model_module_dir") / _text(values, "model_class_filename")).is_file()


def _text(values: Mapping[str, Any], key: str) -> str:
    value = values.get(key)
    return value if isinstance(value, str) and value else _DEFAULTS[key]


class Truss:
    """The configuration in a Truss directory, translated key by key.

    Args:
        directory: Absolute, of a Truss (`is_truss`).

    Attributes:
        module: The file with the class.
        package: The directory that is packed with it; None if the file is in the Truss directory itself.
        class_name: The model's class.
        settings: Values for handlergen's settings, by name; `handlergen.yaml` and flags override them.
        details: For the contract: `data_dir`, `environment_variables`.
        problems, warnings: Keys that are wrong or not supported, and keys that have no effect.
    """

    def __init__(self, directory: Path) -> None:
        config = directory / CONFIG_FILE
        self._directory = directory
        self._source = read_yaml(config, shown=shown(config), as_written=("model_name",))
        self._values = self._source.values
        self._lines: dict[str, int] = {}
        module_dir = _text(self._values, "model_module_dir").strip("/")
        self.module = directory / module_dir / _text(self._values, "model_class_filename")
        self.package = directory / module_dir if module_dir not in ("", ".") else None
        self.class_name = _text(self._values, "model_class_name")
        self.settings: dict[str, Any] = {}
        self.details: dict[str, Any] = {}
        self.problems: list[Problem] = list(self._source.problems)
        self.warnings: list[str] = []
        self._keys()
        self._model()
        self._files()
        self._secrets()
        self._requirements()
        self._runtime()
        self._environment_variables()
        self._set("config", self._config(), "model_metadata")

    def as_defaults(self) -> YamlSource:
        """Return the settings and problems as those of a file that `handlergen.yaml` overrides."""
        return YamlSource(self._source.file, self.settings, self._lines, tuple(self.problems))

    def _keys(self) -> None:
        for key, value in self._values.items():
            if key in UNSUPPORTED and value:
                self._problem(key, f"`{key}` is not supported: {UNSUPPORTED[key]}")
            elif key in FUTILE and value:
                self._warn(key, f"`{key}` has no effect: {FUTILE[key]}")
            elif key not in _ALL_KEYS:
                near = difflib.get_close_matches(key, _ALL_KEYS, n=1, cutoff=0.8)
                self._warn(key, f"`{key}` is an unknown key" + (f". Did you mean `{near[0]}`?" if near else ""))

    def _model(self) -> None:
        for key in _DEFAULTS:
            self._typed(key, str, "a string")
        name = self._values.get("model_name")
        if isinstance(name, str) and name:
            self._set("name", propose(name), "model_name")
        module_dir = _text(self._values, "model_module_dir").strip("/")
        if "/" in module_dir or module_dir == "..":
            self._problem(
                "model_module_dir",
                f"the model's directory {module_dir} is not beside {CONFIG_FILE}",
                "Move it there: in the archive it is the package that holds the class.",
            )
        if not _text(self._values, "model_class_filename").endswith(".py"):
            self._problem("model_class_filename", "the model's file is not a .py file")

    def _files(self) -> None:
        data = _text(self._values, "data_dir")
        if any(path.is_file() and not path.name.startswith(".") for path in (self._directory / data).rglob("*")):
            self._set("extra_files", [data], "data_dir")
        if data != _DEFAULTS["data_dir"]:
            self.details["data_dir"] = data
        bundled = _text(self._values, "bundled_packages_dir")
        packages = self._importable(bundled)
        outside = self._typed("external_package_dirs", list, "a list of directories") or []
        for entry in outside:
            if not (self._directory / str(entry)).is_dir():
                self._problem("external_package_dirs", f"the directory {entry} does not exist")
            packages += self._importable(str(entry))
        if packages:
            self._set("packages", packages, "bundled_packages_dir")

    def _importable(self, entry: str) -> list[str]:
        """Return the packages and modules in a directory, which it makes importable."""
        directory = self._directory / entry
        if not directory.is_dir():
            return []
        return [
            f"{entry.rstrip('/')}/{path.name}"
            for path in sorted(directory.iterdir())
            if not path.name.startswith((".", "__pycache__"))
            and (path.suffix == ".py" if path.is_file() else any(path.rglob("*.py")))
        ]

    def _secrets(self) -> None:
        secrets = self._typed("secrets", dict, "a mapping of names") or {}
        if any(secrets.values()):
            self._warn(
                "secrets", "the values of `secrets` are ignored: they are read from the server's environment only"
            )
        if secrets:
            self._set("secrets", [str(name) for name in secrets], "secrets")

    def _requirements(self) -> None:
        listed = self._typed("requirements", list, "a list of requirements") or []
        file = self._typed("requirements_file", str, "a path")
        if file and not (self._directory / file).is_file():
            self._problem("requirements_file", f"the file {file} does not exist")
        elif file and not file.endswith(".txt"):
            self._problem("requirements_file", f"the requirements file {file} does not end in .txt", "Rename it.")
        elif file or listed:
            found = [*([file] if file else []), *(str(entry) for entry in listed)]
            self._set("requirements", found, "requirements" if listed else "requirements_file")

    def _runtime(self) -> None:
        resources = self._typed("resources", dict, "a mapping") or {}
        if resources.get("use_gpu") is False and not resources.get("accelerator"):
            self._set("devices", "cpu", "resources")
        runtime = self._typed("runtime", dict, "a mapping") or {}
        concurrency = runtime.get("predict_concurrency", 1)
        if concurrency != 1:
            self._warn(
                "runtime",
                f"predict_concurrency is {concurrency}, but handlergen runs one predict at a time on each device; the "
                f"other hooks overlap anyway. With `lock: none`, as many run at once as there are workers",
            )
        if runtime.get("streaming_read_timeout"):
            self._set("predict_timeout_s", runtime["streaming_read_timeout"], "runtime")
        for key in runtime:
            if key not in RUNTIME_KEYS:
                self._warn("runtime", f"`runtime.{key}` has no effect")

    def _environment_variables(self) -> None:
        variables = self._typed("environment_variables", dict, "a mapping") or {}
        if variables:
            self.details["environment_variables"] = {
                str(name): str(value).lower() if isinstance(value, bool) else str(value)
                for name, value in variables.items()
                if value is not None
            }

    def _config(self) -> dict[str, Any]:
        """Return the constructor's `config`: the file with Truss's defaults, without the values of secrets."""
        config: dict[str, Any] = {**_DEFAULTS, "model_metadata": {}, "requirements": [], **self._values}
        config["secrets"] = dict.fromkeys(self._values.get("secrets") or {})
        config["model_metadata"] = config["model_metadata"] or {}
        return config

    def _typed(self, key: str, kind: type, wanted: str) -> Any:
        value = self._values.get(key)
        if value is not None and not isinstance(value, kind):
            self._problem(key, f"`{key}` is {value!r}; expected {wanted}")
            return None
        return value

    def _set(self, setting: str, value: Any, key: str) -> None:
        self.settings[setting] = value
        self._lines[setting] = self._source.lines.get(key, 0)

    def _problem(self, key: str, message: str, fix: str = "") -> None:
        self.problems.append(Problem(self._source.file, self._source.lines.get(key, 0), message, fix))

    def _warn(self, key: str, message: str) -> None:
        self.warnings.append(f"{self._source.file}:{self._source.lines.get(key, 0)}: {message}")
