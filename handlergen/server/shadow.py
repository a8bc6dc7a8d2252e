"""A shadow: live requests to a model's version, sent again to another version, with the answers compared."""

from __future__ import annotations

import json
import time
from base64 import b64decode
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import Future, ThreadPoolExecutor, wait
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from handlergen.client import Client
from handlergen.client.connection import form_body
from handlergen.client.fence import UnknownCommand
from handlergen.errors import HandlergenError, RequestFailed, ServerError
from handlergen.runtime.codec.comparison import differences, shortened

_POLL_S = 0.1
_THREADS = 4
_MOST_AT_ONCE = 16
_ATTEMPTS = 3
"""A new version that is busy (503) is asked again, a second later."""
_REPORTED = 5
_PATHS = 5
_COMMAND_S = 60.0
"""How long a command may wait in the queue of a busy model."""
_SETTLE_S = 0.2
"""After the recording has ended, a worker may still write the request that it has in hand."""


@dataclass(frozen=True)
class Difference:
    """One request that the two versions answered differently.

    Attributes:
        request: The beginning of its content.
        places: (path in the answer, old value, new value); the path of a whole answer is "answer".
    """

    request: str
    places: tuple[tuple[str, str, str], ...]


@dataclass
class ShadowReport:
    """How the new version answered requests that the old one had answered.

    Attributes:
        equal, different: Numbers of requests; numbers in their answers may differ by a thousandth.
        failed: Requests that the old version answered and the new one did not.
        unsuitable: Reason -> number of requests that could not be compared.
        differences: The first ones, failed requests included.
    """

    equal: int = 0
    different: int = 0
    failed: int = 0
    unsuitable: dict[str, int] = field(default_factory=dict)
    differences: list[Difference] = field(default_factory=list)

    @property
    def compared(self) -> int:
        return self.equal + self.different + self.failed


def shadow(
    client: Client,
    name: str,
    old: str,
    new: str,
    *,
    share: float,
    seconds: float,
    progress: Callable[[ShadowReport], None] | None = None,
) -> ShadowReport:
    """Send a share of the live requests of the version `old` to `new`, and compare the answers.

    Ends at the first request that failed. Only the server's own machine can do this, because the workers hand the
    requests over as files in the user's private directory. They are sent again by four threads at most; requests that
    come faster than these are answered are left out.

    Args:
        share: Above 0, at most 1.
        seconds: How long requests are recorded; 600 at most.
        progress: Called several times a second.

    Raises:
        ServerError: The old version's archive was packed by a version of handlergen that cannot record requests.
        RequestFailed: The old version has no worker.
    """
    answer: dict[str, Any] = {}
    with suppress(UnknownCommand):
        answer = client.command(name, version=old, wait_s=_COMMAND_S, record={"share": share, "seconds": seconds})
    if not answer.get("recording"):
        raise ServerError(
            f"the workers of {name} {old} cannot record requests for a shadow",
            hint="their archive was packed by an older version of handlergen: update without --shadow",
        )
    directory, report = Path(answer["recording"]), ShadowReport()
    end = time.monotonic() + seconds
    try:
        with ThreadPoolExecutor(_THREADS, "handlergen-shadow") as pool:
            waiting: set[Future[_Outcome]] = set()
            while not report.failed:
                for recorded in _taken(directory, _MOST_AT_ONCE - len(waiting)):
                    waiting.add(pool.submit(_compared, client, name, new, recorded))
                done, waiting = wait(waiting, timeout=_POLL_S) if waiting else (set(), waiting)
                for each in done:
                    _count(report, *each.result())
                if progress is not None:
                    progress(report)
                if not waiting:
                    if time.monotonic() > end + _SETTLE_S and not any(directory.glob("*.json")):
                        break
                    time.sleep(_POLL_S)
            for each in waiting:
                each.cancel()
    finally:
        with suppress(HandlergenError):
            client.command(name, version=old, wait_s=_COMMAND_S, record={"share": 0, "seconds": 0})
    return report


def _taken(directory: Path, most: int) -> Iterator[Mapping[str, Any]]:
    """Yield recorded requests, and remove their files."""
    for path in list(directory.glob("[0-9]*.json"))[:most]:
        with suppress(OSError, ValueError):
            text = path.read_text("ascii")
            path.unlink()
            yield json.loads(text)


_Outcome = tuple[str, Difference | None]
"""`equal`, `different`, `failed`, or why the request is unsuitable; and what differs."""


def _count(report: ShadowReport, outcome: str, difference: Difference | None) -> None:
    if outcome in ("equal", "different", "failed"):
        setattr(report, outcome, getattr(report, outcome) + 1)
    else:
        report.unsuitable[outcome] = report.unsuitable.get(outcome, 0) + 1
    if difference is not None and (len(report.differences) < _REPORTED or outcome == "failed"):
        report.differences.insert(0 if outcome == "failed" else len(report.differences), difference)
        del report.differences[_REPORTED:]


def _compared(client: Client, name: str, version: str, recorded: Mapping[str, Any]) -> _Outcome:
    """Send one request to the new version, and compare the answer with the old one's."""
    if reason := recorded.get("unsuitable"):
        return str(reason), None
    parts = {part: (kind, b64decode(text)) for part, (kind, text) in recorded["parts"].items()}
    old = b64decode(recorded["answer"])
    request = shortened(next(iter(parts.values()), ("", b""))[1])
    try:
        status, kind, new = _asked_patiently(client, name, version, recorded, parts)
    except HandlergenError as error:
        status = error.status if isinstance(error, RequestFailed) else 503
        if recorded["status"] < 400:
            return "failed", Difference(request, (("answer", shortened(old), shortened(error.message)),))
        kind, new = "", old  # the bodies of errors have ids of their requests
    places = [each[:3] for each in differences(old, new, kind)]
    if status != recorded["status"]:
        places = [("status", str(recorded["status"]), str(status)), *places]
    return ("different", Difference(request, tuple(places[:_PATHS]))) if places else ("equal", None)


def _asked_patiently(client: Client, name: str, version: str, *request: Any) -> tuple[int, str, bytes]:
    """Return status, content type and body of the new version's answer; ask again while it is busy."""
    for _ in range(_ATTEMPTS - 1):
        try:
            return _asked(client, name, version, *request)
        except RequestFailed as error:
            if error.status != 503:
                raise
            time.sleep(1)
    return _asked(client, name, version, *request)


def _asked(
    client: Client, name: str, version: str, recorded: Mapping[str, Any], parts: Mapping[str, tuple[str, bytes]]
) -> tuple[int, str, bytes]:
    """Return status, content type and body of the new version's answer."""
    if recorded["grpc"]:
        inputs = {part: content for part, (_, content) in parts.items()}
        return 200, "", client.predict_grpc(name, inputs=inputs, version=version).body
    headers = dict(recorded["headers"])
    kind = next((headers.pop(each) for each in list(headers) if each.lower() == "content-type"), "")
    content = parts.get("body", ("", b""))[1]
    if kind.lower().startswith("multipart/form-data"):
        content, kind = form_body(parts)
    # Also "": a request without a type is read differently from application/octet-stream, the client's default.
    answer = client.predict(name, content=content, headers={**headers, "Content-Type": kind}, version=version)
    return answer.status, answer.content_type, answer.body
