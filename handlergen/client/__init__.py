"""Client of a running TorchServe: predictions and management over REST and gRPC."""

from __future__ import annotations

from handlergen.client.client import UNSET, Client
from handlergen.client.results import Answer, ModelStatus, WorkerStatus

__all__ = ["UNSET", "Answer", "Client", "ModelStatus", "WorkerStatus"]
