"""`context`: device, directories, configuration, secrets, store and logger, for hooks."""

from __future__ import annotations

import logging
import os
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch

from .codec.redaction import hide
from .contract import RuntimeSettings
from .diagnostics import logger
from .store import Store, open_store


class MissingSecret(LookupError):
    """A secret that the settings name is not in the environment."""


class Secrets(Mapping[str, str]):
    """The secrets that the settings name, read from the environment.

    They are never stored or printed; errors and logs have their names in their place (`redaction`).

    Args:
        names: The names of the secrets, and of their environment variables, which may have Truss's prefix.

    Raises:
        MissingSecret: Secrets are not set; names them all.
    """

    def __init__(self, names: tuple[str, ...], environ: Mapping[str, str] = os.environ) -> None:
        # With or without the prefix of Truss (secrets_resolver.py).
        variables = {name: next((v for v in (name, f"TRUSS_SECRET_{name}") if v in environ), "") for name in names}
        missing = [name for name in names if not variables[name]]
        if missing:
            raise MissingSecret(
                f"secret{'s' if len(missing) > 1 else ''} not set: {', '.join(missing)}; "
                "set environment variables of these names for the server"
            )
        self._values = {name: environ[variable] for name, variable in variables.items()}

    def __getitem__(self, name: str) -> str:
        if name not in self._values:
            raise MissingSecret(f"secret {name!r} is not declared; add it to `secrets` in handlergen.yaml")
        return self._values[name]

    def __iter__(self) -> Iterator[str]:
        return iter(self._values)

    def __len__(self) -> int:
        return len(self._values)

    def __repr__(self) -> str:
        return f"Secrets({', '.join(self._values)})"


@dataclass(frozen=True)
class Context:
    """What hooks receive as `context`: the same for every request.

    Attributes:
        device: Where `predict` runs.
        model_dir: The archive's root, unpacked; also the working directory.
        model_name: As registered with TorchServe.
        model_version: As packed.
        config: The user's own mapping from `handlergen.yaml`.
        secrets: By name, from the environment.
        store: Named values that every hook and worker of the model shares.
        logger: Writes to TorchServe's model log.
    """

    device: torch.device
    model_dir: Path
    model_name: str
    model_version: str
    config: Mapping[str, Any]
    secrets: Mapping[str, str]
    store: Store = field(repr=False)
    logger: logging.Logger = field(repr=False)

    @classmethod
    def open(cls, settings: RuntimeSettings, *, device: torch.device, model_dir: Path) -> Context:
        """Return the context of a model.

        Raises:
            MissingSecret: A secret that the settings name is not set.
        """
        secrets = Secrets(settings.secrets)
        hide(secrets)
        return cls(
            device=device,
            model_dir=model_dir,
            model_name=settings.name,
            model_version=settings.version,
            config=settings.config,
            secrets=secrets,
            store=open_store(settings.name),
            logger=logger(f"handlergen.{settings.name}"),
        )
