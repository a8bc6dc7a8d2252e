"""The predictor process: `python -m handlergen_runtime.process.main HOME`, or a worker's `Spare` (`start`).

It listens before it imports anything heavy, so that whoever wants it waits for this one instead of starting another;
loads the model; predicts; and ends when no worker has held a connection for a while, or the server is gone.
"""

from __future__ import annotations

import contextlib
import faulthandler
import json
import logging
import os
import signal
import socket
import sys
import threading
import time
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from .home import ARGUMENTS_FILE, Home
from .page import ENDING, IDLE, Page
from .signals import OwnSignals, default_in_children

if TYPE_CHECKING:
    from .peers import Peers

_TICK_S = 0.1
_FIRST_WORKER_WITHIN_S = 30.0
_ALONE_S = 5.0  # TorchServe has a worker that died back in two to four seconds
_END_WITHIN_S = 2.0
_OWNER_WITHIN_S = 10.0
BROKEN_DEVICE = 70
CANNOT_LOAD = 71


def main(arguments: list[str]) -> int:
    """Serve the workers that belong to a home; returns the exit status."""
    home = Home.at(Path(arguments[0]))
    owner = _own(home)
    if owner is None:  # another process serves already
        return 0
    faulthandler.enable()
    logging.basicConfig(stream=sys.stdout, format="%(message)s", level=logging.INFO)
    page = Page.make(home.page)
    listener = home.listen()
    process = _Process(
        home, owner, page, listener, json.loads((home.path / ARGUMENTS_FILE).read_text("utf-8"))
    )
    return process.run()


class _Process:
    def __init__(
        self, home: Home, owner: int, page: Page, listener: socket.socket, arguments: dict[str, Any]
    ) -> None:
        self._home = home
        self._owner = owner
        self._page = page
        self._arguments = arguments
        self._listener = listener
        self._end = self._end_at_once
        self._flush: Callable[[], None] = lambda: None
        self._peers: Peers | None = None
        self._told = False
        self._logger = logging.getLogger("handlergen")
        # The signal is noticed by the thread that watches, because the main one may be in compiled code for minutes.
        signal.signal(signal.SIGTERM, self._be_told)
        self._signals = OwnSignals()
        default_in_children(signal.SIGTERM)

    def run(self) -> int:
        threading.Thread(target=self._watch, name="handlergen-watch", daemon=True).start()
        # Only now: torch takes a second or more.
        from ..contract import CONTRACT_FILE, Bundle
        from ..device import share_the_cores
        from ..malloc import keep_freed_memory
        from ..model import LoadedModel
        from ..redaction import without_secrets
        from ..tracebacks import user_traceback
        from .channel import Message
        from .load_watch import LoadWatch
        from .peers import Peer, Peers
        from .reading import Reading
        from .serving import NotingLock, Serving

        keep_freed_memory()
        share_the_cores()
        model_dir = Path(self._arguments["model_dir"])
        bundle = Bundle.from_json((model_dir / CONTRACT_FILE).read_text(encoding="utf-8"))
        serving: Serving | None = None

        def take(peer: Peer, message: Message) -> None:
            if serving is not None:  # nobody asks before it has been welcomed
                serving.take(peer, message)

        peers = self._peers = Peers(self._listener, take)
        reading = Reading(peers)
        locks: list[NotingLock] = []

        def guard(lock: Any) -> NotingLock:
            locks.append(NotingLock(lock, self._page))
            return locks[0]

        watch = LoadWatch(bundle, model_dir, self._logger)
        try:
            model = LoadedModel(
                bundle,
                model_dir,
                gpu_id=self._arguments["gpu_id"],
                server=self._home.identity.server,
                guard=guard,
                before_load=watch.begin,
            )
            relay = watch.verdict(model.hooks)
            serving = Serving(
                bundle,
                model,
                locks[0],
                page=self._page,
                peers=peers,
                reading=reading,
                batch_size=self._arguments["batch_size"],
            )
        except BaseException as error:
            self._logger.error(
                "handlergen: model %s could not be loaded\n%s",
                bundle.settings.name,
                user_traceback(error, user_root=str(model_dir)),
            )
            reason = without_secrets(f"{type(error).__name__}: {error}")
            self._home.note_failure(reason)
            peers.refuse(reason)
            time.sleep(0.5)  # until they have it
            return CANNOT_LOAD
        self._end, self._flush = serving.waiting.end, serving.flush
        self._page.enter(IDLE)
        self._welcome(peers, model.predictor.describe(), relay)
        if not serving.predict_until_ended():
            self._logger.error(
                "the device does not answer any more; process %d ends, and another one goes on", os.getpid()
            )
            time.sleep(0.2)  # until the last answers are out
            serving.flush()
            os._exit(BROKEN_DEVICE)
        self._page.enter(ENDING)
        serving.flush()
        peers.close()
        self._home.remove(self._owner)
        model.close()
        return 0

    def _welcome(self, peers: Peers, about: dict[str, Any], relay: str) -> None:
        from .protocol import Welcome

        if relay:
            with contextlib.suppress(OSError):  # a full disk: only `status` does not say so then
                self._home.note_relay(relay)
        peers.welcome(
            lambda number: Welcome(
                number, os.getpid(), about["device"], about["device_key"], about["load_s"], relay
            )
        )

    def _end_at_once(self) -> None:
        self._home.remove(self._owner)
        os._exit(0)

    def _watch(self) -> None:
        """End the process when nobody needs it any more, or it is told to; write spans meanwhile."""
        alone_since = time.monotonic()
        patience = _FIRST_WORKER_WITHIN_S
        while True:
            told = self._told_to_end()
            try:
                self._flush()
            except OSError as error:  # a full disk is no reason to end, nor never to
                self._logger.warning("spans cannot be written: %s", error)
                self._flush = lambda: None
            now = time.monotonic()
            if self._peers is not None and self._peers.seen:
                patience = _ALONE_S
                if len(self._peers):
                    alone_since = now
            # Without its directory no worker finds it: those that come start another, and there must not be two.
            there = self._home.owned(self._owner) and self._home.identity.alive()
            if there and not told and now - alone_since < patience:
                continue
            self._end()
            time.sleep(_END_WITHIN_S)
            self._end_at_once()  # predict does not return, or a thread of the user's does not end

    def _told_to_end(self) -> bool:
        """Wait for a tick; whether SIGTERM came meanwhile."""
        if signal.SIGTERM in self._signals.wait(_TICK_S):
            self._told = True
        return self._told

    def _be_told(self, _number: int, _frame: object) -> None:
        self._told = True  # also when user code has taken the wakeup descriptor for itself


def _own(home: Home) -> int | None:
    """The lock that says that this is the one; None when another process is it and listens."""
    deadline = time.monotonic() + _OWNER_WITHIN_S
    while (owner := home.own()) is None:
        connection = home.connect()
        if connection is not None:
            connection.close()
            return None
        if time.monotonic() > deadline:
            return None
        time.sleep(0.02)  # the one before is just ending
    return owner


def run(arguments: list[str]) -> None:
    """End with the status at once: the interpreter would wait for every thread, for one of the user's for ever."""
    try:
        status = main(arguments)
    except (
        BaseException
    ):  # CancelledError too: whatever passes a hook's own handling ends the process, and is told
        traceback.print_exc()
        status = 1
    for stream in (sys.stdout, sys.stderr):
        with contextlib.suppress(OSError, ValueError):
            stream.flush()
    os._exit(status)


if __name__ == "__main__":
    run(sys.argv[1:])
