"""The client against a real TorchServe: REST, gRPC, tokens, management, streaming."""

from __future__ import annotations

import http.server
import json
import threading
import time
from datetime import datetime, timezone
from pathlib import Path

import httpx
import pytest

from handlergen.client import Client
from handlergen.errors import RequestFailed, ServerError
from handlergen.server.ports import free_port_settings
from handlergen.server.properties import server_settings
from tests.commands import handlergen

pytestmark = pytest.mark.e2e

STREAMING = """
import time

from ts.handler_utils.utils import send_intermediate_predict_response


class Counter:
    def initialize(self, context):
        pass

    def handle(self, data, context):
        for number in range(3):
            send_intermediate_predict_response([f"{number};"], context.request_ids, "ok", 200, context)
            time.sleep(0.2)
        return ["end"]
"""

FAILING = """
from ts.utils.util import PredictionException


class Failing:
    def initialize(self, context):
        pass

    def handle(self, data, context):
        raise PredictionException("no pixels", 404)
"""


MODELS = ["counter", "echo", "failing"]


@pytest.fixture(scope="module")
def server(shared, make_mar, echo_mar):
    return shared(echo_mar, make_mar("counter", STREAMING), make_mar("failing", FAILING))


def test_grpc_carries_entries_and_token(server):
    assert server.client.grpc.ping() == "Healthy"
    answer = server.client.predict_grpc("echo", inputs={"data": b"x", "image": b"y"})
    assert answer.json() == {"data": "x", "image": "y"}


def test_grpc_without_or_with_a_wrong_token_is_refused(server, tmp_path: Path):
    wrong = json.loads((server.directory / "key_file.json").read_text())
    for entry in wrong.values():
        entry["key"] = "wrong"
    (tmp_path / "wrong.json").write_text(json.dumps(wrong))
    for key_file in (tmp_path / "none.json", tmp_path / "wrong.json"):
        with Client(server.settings, key_file=key_file) as client:
            with pytest.raises(RequestFailed, match="Token Authorization failed") as caught:
                client.predict_grpc("echo", 1)
            assert "--key-file" in (caught.value.hint or "")
            with pytest.raises(RequestFailed, match="Token Authorization failed"):
                client.grpc_management.models()


def test_other_clients_get_tokens_from_the_command(server):
    def token(*arguments: str) -> str:
        done = handlergen("token", *arguments, cwd=server.directory, timeout=100)
        assert done.returncode == 0, done.stderr
        return done.stdout.strip()

    def status(header: str, address: str = server.settings.inference_address, path: str = "/ping") -> int:
        name, value = header.split(": ")
        return httpx.get(address + path, headers={name: value}, trust_env=False, timeout=60).status_code

    first = token("--header")
    assert status(first) == 200
    renewed = json.loads(token("--renew", "--json"))
    assert renewed["token"] == token() == server.key()
    assert renewed["ends"] > f"{datetime.now(timezone.utc):%Y-%m-%dT%H:%M:%S}"
    assert (status(first), status(renewed["header"])) == (400, 200)
    assert status(token("--management", "--header"), server.settings.management_address, "/models") == 200


def test_liveness_and_readiness_probes(server):
    """`/ping` needs a token; `/api-description` and `/metrics` do not. Readiness is a command."""
    for address, path in (
        (server.settings.inference_address, "/api-description"),
        (server.settings.metrics_address, "/metrics"),
    ):
        assert httpx.get(address + path, trust_env=False, timeout=60).status_code == 200
    assert httpx.get(f"{server.settings.inference_address}/ping", trust_env=False, timeout=60).status_code == 400
    probe = handlergen("status", "--probe", cwd=server.directory, timeout=100)
    assert (probe.returncode, probe.stdout) == (0, "ready: 3 model versions\n")


def test_the_inference_token_does_not_manage(server):
    answer = httpx.get(
        f"{server.settings.management_address}/models",
        headers={"Authorization": f"Bearer {server.key('inference')}"},
        trust_env=False,
    )
    assert answer.status_code == 400


def test_options_describe_a_model_and_name_a_path_that_is_not_served(server):
    """`docs/answers-and-errors.md`, Explanations."""
    headers = {"Authorization": f"Bearer {server.key('inference')}"}
    with httpx.Client(base_url=server.settings.inference_address, trust_env=False) as http:
        assert http.options("/predictions/echo").status_code == 400
        paths = http.options("/predictions/echo", headers=headers).json()["paths"]
        assert [path for path in paths if "prediction" in path] == ["/prediction/echo"]
        assert http.post("/prediction/echo", headers=headers, json=1).status_code >= 400
        assert http.post("/predictions/echo", headers=headers, json=1).status_code == 200


def test_streams_arrive_in_parts(server):
    def arrivals(parts):
        return [(part, time.monotonic()) for part in parts]

    rest = arrivals(server.client.stream("counter", 1))
    assert b"".join(part for part, _ in rest) == b"0;1;2;end"
    assert len(rest) > 1
    grpc = arrivals(server.client.stream_grpc("counter", 1))
    assert [part for part, _ in grpc] == [b"0;", b"1;", b"2;", b"end"]
    # The first part is there while the handler still sleeps twice 0.2 s more.
    assert grpc[-1][1] > grpc[0][1]


def test_errors_of_models_and_unknown_models(server):
    client = server.client
    failures = [
        (client.predict, ("failing", 1), "404: no pixels"),
        (client.predict_grpc, ("failing", 1), "NOT_FOUND: no pixels"),
        (client.predict, ("nobody", 1), "404: "),
        (client.predict_grpc, ("nobody", 1), "INTERNAL: Model not found: nobody"),
        (client.describe, ("nobody",), "404: "),
    ]
    for call, arguments, message in failures:
        with pytest.raises(RequestFailed) as caught:
            call(*arguments)
        assert caught.value.status == 404
        assert caught.value.message.startswith(message)


def test_scaling_waits_for_ready_over_rest_and_grpc(server):
    client = server.client
    for count in (3, 1, 2):
        status = client.scale("echo", count)
        assert (status.ready_workers, len(status.workers), status.placement) == (count, count, {"cpu": count})
        assert len(set(server.worker_pids("echo"))) == count
    assert "scaled" in client.grpc_management.scale("echo", 1)
    assert client.grpc_management.describe("echo").ready_workers == 1
    assert client.grpc_management.models() == client.models() == MODELS


def test_requests_leave_no_line_but_prints_do(server):
    before = server.log_marks()
    for number in range(20):
        server.client.predict("echo", number)
    added = server.log_text(before)
    assert "Backend received inference" not in server.log_text()
    assert "/predictions/echo" not in server.log_text()
    assert len(added.splitlines()) < 20
    assert "echo is loading" in server.log_text()


def test_no_model_is_downloaded_even_with_the_model_api_on(server, echo_mar, tmp_path: Path):
    asked: list[str] = []

    class Remote(http.server.BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            asked.append(self.path)
            self.send_response(200)
            self.end_headers()
            self.wfile.write(echo_mar.read_bytes())

        def log_message(self, *_: object) -> None:
            pass

    (tmp_path / "file.mar").write_bytes(echo_mar.read_bytes())
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Remote) as remote:
        threading.Thread(target=remote.serve_forever, daemon=True).start()
        host = f"127.0.0.1:{remote.server_address[1]}"
        for url in (
            f"http://{host}/x.mar",
            f"HTTP://{host}/x.mar",
            f"https://{host}/x.mar",
            f"file://{tmp_path}/file.mar",
        ):
            with pytest.raises(RequestFailed) as caught:
                server.client.register(url)
            assert "does not match any allowed URL" in caught.value.message
        for name in (f"{tmp_path}/file.mar", f"../{tmp_path.name}/file.mar", f"ftp://{host}/x.mar"):
            with pytest.raises(RequestFailed):
                server.client.register(name)
        remote.shutdown()
    assert asked == []
    assert server.client.models() == MODELS
    # What lies in the store can be registered, and goes again.
    (server.store / "late.mar").write_bytes(echo_mar.read_bytes())
    server.client.register("late.mar", model_name="late", initial_workers=1, synchronous=True)
    assert server.client.predict("late", 1).json() == {"body": 1}
    server.client.unregister("late")
    assert server.client.models() == MODELS


def test_nobody_there():
    with Client(server_settings(**free_port_settings())) as client:
        with pytest.raises(ServerError, match="no server answers"):
            client.predict("echo", 1)
        with pytest.raises(ServerError, match="no server answers"):
            client.predict_grpc("echo", 1)
