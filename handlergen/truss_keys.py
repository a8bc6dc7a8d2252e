"""Every key of a Truss's `config.yaml` and what becomes of it; see truss/base/truss_config.py."""

from __future__ import annotations

from collections.abc import Mapping

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
"""What handlergen does as Truss does."""

RUNTIME_KEYS: tuple[str, ...] = (
    "predict_concurrency",
    "streaming_read_timeout",
    "num_workers",
    "enable_tracing_data",
    "enable_debug_logs",
    "is_websocket_endpoint",
    "transport",
)
"""Keys below `runtime` that need no word."""

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
"""What describes the model, or how Truss builds its image: nothing is lost when it is not read."""

FUTILE: Mapping[str, str] = {
    "base_image": "handlergen makes no container image; the server's own Python runs the model",
    "build": "handlergen makes no container image",
    "build_commands": "handlergen makes no container image; run them where the server is installed",
    "cache_internal": "nothing is fetched ahead; the model fetches what it needs when it loads",
    "hf_cache": "nothing is fetched ahead; the model fetches what it needs when it loads",
    "model_cache": "nothing is fetched ahead; the model fetches what it needs when it loads",
    "system_packages": "handlergen makes no container image; install them where the server runs",
}
"""What the server's administrator has to do instead, with the reason."""

UNSUPPORTED: Mapping[str, str] = {
    "docker_server": "it replaces the model's class by a server of its own",
    "external_data": "nothing is downloaded; put the files into the data directory",
    "trt_llm": "it replaces the model's class by TensorRT-LLM",
    "weights": "nothing is downloaded; put the files into the data directory",
}
"""What the model cannot run without, with the reason."""
