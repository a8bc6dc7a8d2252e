"""TorchServe's connection to this worker, which no process that user code forks may keep open."""

from __future__ import annotations

import logging
import socket
import sys
from types import FrameType

from .descriptors import closed_in_children


def keep_from_children() -> socket.socket | None:
    """Close the connection in every process that is forked off this one; to be called below TorchServe's `load_model`.

    TorchServe notices by the end of the connection that a worker has died. A child that has it, too, keeps the worker's
    request waiting until `response_timeout_s`, and the next worker from being started. TorchServe hands the connection
    out only when the model is loaded, and a pool of processes may be made before (ts/model_service_worker.py,
    `handle_connection`, where it is the variable `cl_socket`).

    Returns:
        The connection. None, and a warning in the log, where it is not found: in an unknown version of TorchServe.
    """
    frame: FrameType | None = sys._getframe(1)
    while frame is not None:
        connection = frame.f_locals.get("cl_socket")
        if isinstance(connection, socket.socket):
            closed_in_children(connection)
            return connection
        frame = frame.f_back
    logging.getLogger("handlergen").warning(
        "TorchServe's connection to this worker was not found: this version of TorchServe keeps it elsewhere. A child "
        "process that a hook forks can keep a dead worker's requests waiting, and a request that TorchServe gives to "
        "two workers can be answered twice"
    )
    return None
