"""TorchServe's gRPC service definitions, out of the installed TorchServe, and a client in Python."""

from __future__ import annotations

import zipfile
from importlib.metadata import PackageNotFoundError, distribution
from pathlib import Path

from handlergen.errors import HandlergenError
from handlergen.project.settings import shown
from handlergen.project.templates import render
from handlergen.server.configuration import replace_content
from handlergen.server.properties import ServerSettings

_JAR = "ts/frontend/model-server.jar"
_OWN = ("inference.proto", "management.proto")
_IMPORTED = "google/rpc/status.proto"
"""What inference.proto imports besides google/protobuf, which every protobuf compiler has; it carries its licence."""


def write_service_definitions(directory: Path, settings: ServerSettings, *, force: bool = False) -> list[Path]:
    """Write the definitions, their licence and `client.py`, which asks a server with these settings.

    Args:
        force: Overwrite files with other contents.

    Returns:
        The files, which are complete.

    Raises:
        HandlergenError: TorchServe is not installed or damaged, a file exists with other contents, or cannot be
            written.
    """
    texts = {directory / name: text for name, text in _definitions().items()}
    host = settings.grpc_inference_address
    address = f"{'127.0.0.1' if host == '0.0.0.0' else host}:{settings.grpc_inference_port}"  # noqa: S104
    texts[directory / "client.py"] = render(
        "grpc-client.py.j2", address=address, tls=settings.grpc_tls, tls_name=settings.tls_name
    ).encode()
    for path, text in texts.items():
        if not force and path.exists() and path.read_bytes() != text:
            raise HandlergenError(
                f"{shown(path)} exists with different contents", hint="--force overwrites it; -o writes elsewhere"
            )
    for path, text in texts.items():
        path.parent.mkdir(parents=True, exist_ok=True)
        replace_content(path, text)
    return list(texts)


def _definitions() -> dict[str, bytes]:
    try:
        torchserve = distribution("torchserve")
        licence = torchserve.read_text("LICENSE") or torchserve.read_text("licenses/LICENSE")
        with zipfile.ZipFile(str(torchserve.locate_file(_JAR))) as jar:
            head = f"// Of TorchServe {torchserve.version}, under the Apache License 2.0: see LICENSE.\n".encode()
            found = {name: head + jar.read(name) for name in _OWN} | {_IMPORTED: jar.read(_IMPORTED)}
    except (PackageNotFoundError, OSError, KeyError, zipfile.BadZipFile) as error:
        raise HandlergenError(
            f"the service definitions are part of TorchServe, which cannot be read here: {error}",
            hint="pip install --force-reinstall torchserve",
        ) from error
    return {**found, "LICENSE": (licence or "https://www.apache.org/licenses/LICENSE-2.0\n").encode()}
