"""A worker's connection to the predictor process of its model and device, and what is asked of it besides requests."""

from __future__ import annotations

import logging
import os
import threading
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

from ..contract import Bundle
from ..server_process import server_of_this_process
from .calls import Call
from .home import Home, Identity, NotOurs
from .link import Link
from .output import Forwarder
from .protocol import DESCRIBE, HEALTH, Welcome
from .spare import Spare
from .start import Starter, Unavailable

_FORWARD_EVERY_S = 0.1
_MEND_EVERY = 10
_TELL_EVERY = 100


class CannotLoad(Exception):
    """The predictor process could not load the model. Its own traceback is in the log already."""

    told_by_handlergen = True


class Shared:
    """The connection, and the thread that looks after it.

    Args:
        bundle: Contract and settings.
        model_dir: Where the archive is unpacked.
        gpu_id: A logical index, or None for the CPU.
        logger: Goes to TorchServe's model log.
    """

    def __init__(
        self, bundle: Bundle, model_dir: Path, *, gpu_id: int | None, batch_size: int, logger: logging.Logger
    ) -> None:
        settings = bundle.settings
        server, started = server_of_this_process()
        identity = Identity(
            server,
            started,
            settings.name,
            settings.version,
            f"{model_dir}:{model_dir.stat().st_ino}",
            "cpu" if gpu_id is None else f"gpu {gpu_id}",
        )
        home = Home(identity)
        starter = Starter(
            home,
            model_dir=model_dir,
            arguments={"model_dir": str(model_dir), "gpu_id": gpu_id, "batch_size": batch_size},
            environ=dict(os.environ),
            logger=logger,
            spare=_spare(home, gpu_id),
        )
        # From here on this process sees no GPU: it could only waste its memory with a context of its own.
        os.environ["CUDA_VISIBLE_DEVICES"] = ""
        if "OMP_NUM_THREADS" not in os.environ:
            torch.set_num_threads(1)
        self._starter = starter
        self._settings = settings
        self._logger = logger
        self._relay = ""
        self.link = self._link()
        self._side = self._link()
        self._asking = threading.Lock()
        self._forwarder = Forwarder(starter.home.output)
        self._ended = threading.Event()

    def open(self) -> None:
        """Connect, unless it is connected, and look after the connection from then on.

        Raises:
            CannotLoad: The model cannot be loaded.
            RuntimeError: No process could even be started, which nobody has told yet.
        """
        if self.link.opened:
            return
        threading.Thread(target=self._look_after, name="handlergen-link", daemon=True).start()
        try:
            welcome = self.link.open()
        except Unavailable as error:
            self._forwarder.forward()
            if not self._starter.home.starts().total:
                raise RuntimeError(str(error)) from None
            raise CannotLoad(f"the module could not be loaded: {error}") from None
        finally:
            self._starter.dismiss_spare()
        self.device_key = welcome.device_key

    def ask(self, kind: int) -> Any:
        """Ask the predictor process something besides requests: beside them, over a connection of its own.

        Raises:
            Exception: It does not answer.
        """
        with self._asking:
            call = Call(kind)
            self._side.run(call)
        if call.error is not None:
            raise call.error
        return call.answer

    def describe(self) -> dict[str, Any]:
        """What the predictor process says of itself: `predictor`, and `types` if it has the stages."""
        try:
            answer: dict[str, Any] = self.ask(DESCRIBE)
            answer["predictor"]["restarts"] = self._starter.home.starts().restarts
        except Exception as error:
            about = {"placement": "process", "stages": self._settings.stages, "unavailable": str(error)}
            answer = {"predictor": about}
        if self._relay:
            answer["predictor"].update(stages="predictor", stages_because=self._relay)
        return answer

    def relay(self) -> str:
        """Why whole requests are to be sent, although the source was read to allow `stages: worker`.

        A predictor process has said so, this one or one before. Empty while none has.
        """
        return self._relay

    def is_healthy(self, _values: Mapping[str, Any]) -> Any:
        """What the module's `is_healthy` says, in the predictor process."""
        return self.ask(HEALTH)

    def close(self) -> None:
        """Let go of the process; it ends when nobody holds it any more."""
        self._ended.set()
        self.link.close()
        self._side.close()
        self._forwarder.close()

    def _link(self) -> Link:
        settings = self._settings
        link = Link(
            self._starter,
            lock_timeout_s=settings.lock_timeout_s,
            predict_timeout_s=settings.predict_timeout_s,
            logger=self._logger,
        )
        link.welcomed = self._welcomed
        return link

    def _welcomed(self, welcome: Welcome) -> None:
        self._relay = self._relay or welcome.relay

    def _look_after(self) -> None:
        turn = 0
        while not self._ended.wait(_FORWARD_EVERY_S):
            turn += 1
            try:
                self._forwarder.forward()
                if turn % _MEND_EVERY == 0 and self.link.opened:
                    self.link.mend()
            except Exception as error:  # a full disk, say: it may pass
                if turn % _TELL_EVERY == 0:
                    self._logger.warning("looking after the predictor process failed: %s", error)


def _spare(home: Home, gpu_id: int | None) -> Spare | None:
    try:
        return Spare.if_safe() if gpu_id is None and not home.listens() else None
    except (OSError, NotOurs):  # whoever wants to connect is told
        return None
