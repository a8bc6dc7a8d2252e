"""Load over gRPC. Python's grpc takes about 200 µs of CPU per request, several times as much as `load` over REST."""

from __future__ import annotations

import threading
import time
from collections.abc import Mapping, Sequence
from itertools import cycle
from typing import Any

import grpc

from handlergen.client.grpc import INFERENCE, call_metadata, message_class, open_channel
from handlergen.client.tls import Verification
from handlergen.performance.bench.load import LONGEST_ANSWER_S
from handlergen.performance.bench.traffic import RIGHT, Closed, Load, Open, Pace, TimedAnswer
from handlergen.runtime.codec.errors import START, error_of

_METHOD = f"/{INFERENCE}.InferenceAPIsService/Predictions"


def run_grpc_load(
    address: tuple[str, int],
    requests: Sequence[bytes],
    *,
    pace: Pace,
    seconds: float,
    metadata: Mapping[str, str],
    tls: Verification | None = None,
    longest_answer_s: float = LONGEST_ANSWER_S,
) -> Load:
    """Like `load.run_load`, with messages made by `prediction_request`. All calls share one connection.

    Outcomes: `right`, `status 400` (the body of a failed request) or `gRPC RESOURCE_EXHAUSTED`. `metadata` is sent with
    each call.
    """
    with open_channel("{}:{}".format(*address), [("grpc.max_receive_message_length", -1)], tls) as channel:
        loop = _GrpcLoop(channel.unary_unary(_METHOD), requests, metadata, longest_answer_s)
        return loop.run(pace, int(seconds * 1e9))


def prediction_request(name: str, inputs: Mapping[str, bytes], *, version: str | None = None) -> bytes:
    """Return a serialized PredictionsRequest."""
    kind = message_class(INFERENCE, "PredictionsRequest")
    message = kind(model_name=name, model_version=version or "", input=dict(inputs))
    return bytes(message.SerializeToString())


class _GrpcLoop:
    def __init__(
        self, call: Any, requests: Sequence[bytes], metadata: Mapping[str, str], longest_answer_s: float
    ) -> None:
        self._call = call
        self._requests = cycle(requests)
        self._metadata = call_metadata(metadata)
        self._longest_s = longest_answer_s
        self._response = message_class(INFERENCE, "PredictionResponse")
        self._outstanding = 0
        self._changed = threading.Condition()

    def run(self, pace: Pace, length_ns: int) -> Load:
        cpu_before = time.process_time()
        started = time.monotonic_ns()
        load = self._load = Load(started, started + length_ns, open_loop=isinstance(pace, Open))
        if isinstance(pace, Closed):
            for _ in range(pace.clients):
                self._send(time.monotonic_ns())
        else:
            for offset in pace.due_ns():
                if offset >= length_ns:
                    break
                due_ns = started + offset
                if (ahead := due_ns - time.monotonic_ns()) > 0:
                    time.sleep(ahead / 1e9)
                load.late_ns.append(time.monotonic_ns() - due_ns)
                self._send(due_ns)
        with self._changed:
            self._changed.wait_for(lambda: self._outstanding == 0)
        load.client_cpu_s = time.process_time() - cpu_before
        return load

    def _send(self, started_ns: int) -> None:
        with self._changed:
            self._outstanding += 1
            request = next(self._requests)
        future = self._call.future(request, timeout=self._longest_s, metadata=self._metadata)
        future.add_done_callback(lambda done: self._done(done, started_ns))

    def _done(self, call: Any, started_ns: int) -> None:
        now = time.monotonic_ns()
        self._load.answers.append(TimedAnswer(started_ns, now, self._outcome(call)))
        if not self._load.open_loop and now < self._load.ended_ns:
            self._send(now)
        with self._changed:
            self._outstanding -= 1
            if not self._outstanding:
                self._changed.notify()

    def _outcome(self, call: Any) -> str:
        code = call.code()
        if code is grpc.StatusCode.DEADLINE_EXCEEDED:
            return f"no answer in {self._longest_s:g} s"
        if code is not grpc.StatusCode.OK:
            return f"gRPC {code.name}"
        content = bytes(call.result())
        # Only messages that may contain an error body are parsed.
        if START not in content[:32]:
            return RIGHT
        error = error_of(bytes(self._response.FromString(content).prediction))
        return f"status {error['code']}" if error else RIGHT
