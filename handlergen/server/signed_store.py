"""A model store of which only signed archives are served."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

from handlergen.archives.signing import read_public_key, verify
from handlergen.errors import HandlergenError, ServerError
from handlergen.server.properties import ServerSettings


def require_signatures(
    store: Path, archives: Iterable[str], settings: ServerSettings, public_key: Path
) -> None:
    """Refuse to start a server unless everything it would load is signed.

    What is replaced in the store after this check is not noticed: whoever may write there is trusted.

    Args:
        store: The model store.
        archives: Files in it that TorchServe will load; see `readiness.expected_models`.
        settings: The server's.
        public_key: The key that all must be signed with.

    Raises:
        ServerError: An archive is not signed by that key, or the server could load what is not; names all.
        HandlergenError: The key cannot be read.
    """
    key = read_public_key(public_key)
    problems = []
    for name in archives:
        try:
            verify(store / name, key)
        except HandlergenError as error:
            problems.append(error.message)
    if settings.load_models.lower() == "all":
        # ModelServer.initModelStore loads these as models, too.
        others = (path for path in sorted(store.iterdir()) if not path.name.startswith("."))
        problems += [
            f"{path} is no archive that could be signed, and TorchServe would load it"
            for path in others
            if path.is_dir() or path.suffix == ".model"
        ]
    if settings.model_api:
        problems.append("model_api is on: clients could register models that nobody signed")
    if problems:
        raise ServerError(
            "\n".join(problems),
            hint="`handlergen archive SOURCE --sign KEY --force` signs; nothing was started",
        )
