"""TLS without TorchServe: what `config` refuses, and what a client says of a server whose certificate is not right."""

from __future__ import annotations

import http.server
import os
import socket
import ssl
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path
from typing import Any

import grpc
import pytest
from click.testing import CliRunner
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat, load_pem_private_key

from handlergen.cli import cli
from handlergen.client import Client
from handlergen.errors import HandlergenError, NoServer, ServerError, TlsError
from handlergen.server.ports import free_port_settings
from handlergen.server.properties import ServerSettings, read_properties, server_settings
from tests.certificates import Authority


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Certificates of the authority ca.pem, each in a directory with its key; strange.pem is another authority."""
    home = tmp_path_factory.mktemp("tls")
    authority = Authority(home / "ca.pem")
    Authority(home / "strange.pem")
    authority.issue(home / "good", "localhost", "127.0.0.1")
    authority.issue(home / "expired", "localhost", "127.0.0.1", days=-1)
    authority.issue(home / "other", "models.example.com")
    authority.issue(home / "wild", "*.example.com")
    authority.issue(home / "ec", "127.0.0.1", key=ec.generate_private_key(ec.SECP256R1()))
    key = load_pem_private_key((home / "good" / "key.pem").read_bytes(), None)
    old_form = key.private_bytes(Encoding.PEM, PrivateFormat.TraditionalOpenSSL, NoEncryption())
    (home / "pkcs1.pem").write_bytes(old_form)
    return home


def config(home: Path, directory: Path, *arguments: str) -> tuple[int, str]:
    """Run `handlergen config` with files of `home`; return its exit status and what it printed."""
    found = [os.path.relpath(home / each) if each.endswith(".pem") else each for each in arguments]
    result = CliRunner().invoke(cli, ["config", "-o", str(directory / "config.properties"), *found])
    failed = result.exception if isinstance(result.exception, HandlergenError) else None
    return result.exit_code, f"{result.output}{failed.message if failed else ''}"


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["good/cert.pem", "none.pem"], "there is no file"),
        (["good/cert.pem", "other/key.pem"], "does not belong to the certificate"),
        (["good/cert.pem", "pkcs1.pem"], "is not an unencrypted key in PKCS#8"),
        (["good/cert.pem", "good/cert.pem"], "is not an unencrypted key in PKCS#8"),
        (["ca.pem", "good/key.pem"], "does not belong to the certificate"),
        (["good/key.pem", "good/key.pem"], "cannot be used"),
        (["ec/cert.pem", "ec/key.pem"], "RSA keys only"),
        (["expired/cert.pem", "expired/key.pem"], "expired on "),
        (["other/cert.pem", "other/key.pem"], "is for models.example.com, not for 127.0.0.1"),
        (["other/cert.pem", "other/key.pem", "--host", "example.com"], "not for example.com"),
        (["good/cert.pem", "good/key.pem", "--tls-ca", "strange.pem"], "did not sign the certificate"),
        (["good/cert.pem", "good/key.pem", "--tls-ca", "good/key.pem"], "it has no certificate in PEM"),
        (["good/cert.pem", "good/key.pem", "--tls-ca", "none.pem"], "No such file"),
    ],
)
def test_config_writes_nothing_that_clients_would_refuse(
    home: Path, tmp_path: Path, arguments: list[str], said: str
) -> None:
    certificate, key, *more = arguments
    status, text = config(home, tmp_path, "--tls-cert", certificate, "--tls-key", key, *more)
    assert status == 1
    assert said in text
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("host", "certificate", "name"),
    [
        ("127.0.0.1", "good", "127.0.0.1"),
        ("models.example.com", "other", "models.example.com"),
        ("0.0.0.0", "other", "models.example.com"),
        ("0.0.0.0", "wild", "any.example.com"),
    ],
)
def test_config_writes_rest_and_grpc_and_the_name_to_expect(
    home: Path, tmp_path: Path, host: str, certificate: str, name: str
) -> None:
    files = ["--tls-cert", f"{certificate}/cert.pem", "--tls-key", f"{certificate}/key.pem", "--tls-ca", "ca.pem"]
    assert config(home, tmp_path / "new", "--host", host, *files)[0] == 0
    written = read_properties(tmp_path / "new" / "config.properties")
    assert written.inference_address == f"https://{host}:8080"
    assert written.management_address == "https://127.0.0.1:8081"
    assert written.metrics_address == "https://127.0.0.1:8082"
    assert written.grpc_tls
    assert written.tls_name == name


class Servers:
    """REST and gRPC servers with one certificate, and the settings of a client of theirs."""

    def __init__(self, stack: ExitStack) -> None:
        self._stack = stack

    def start(self, certificate: Path | None) -> ServerSettings:
        return server_settings(
            **{
                **free_port_settings(),
                "inference_port": self._rest(certificate),
                "grpc_inference_port": self._grpc(certificate),
                "certificate_file": "cert.pem",
                "private_key_file": "key.pem",
                "token_authorization": False,
            }
        )

    def _rest(self, certificate: Path | None) -> int:
        class Silent(http.server.BaseHTTPRequestHandler):
            def log_message(self, *_: object) -> None:
                pass

        server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Silent)
        server.handle_error = lambda *_: None  # type: ignore[method-assign]
        if certificate:
            context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
            context.load_cert_chain(certificate / "cert.pem", certificate / "key.pem")
            server.socket = context.wrap_socket(server.socket, server_side=True)
        thread = threading.Thread(target=server.serve_forever, args=(0.05,))
        thread.start()
        self._stack.callback(server.server_close)
        self._stack.callback(thread.join)
        self._stack.callback(server.shutdown)
        return int(server.server_address[1])

    def _grpc(self, certificate: Path | None) -> int:
        server = grpc.server(ThreadPoolExecutor(2))
        if certificate:
            pair = [(certificate / file).read_bytes() for file in ("key.pem", "cert.pem")]
            port = server.add_secure_port("127.0.0.1:0", grpc.ssl_server_credentials([tuple(pair)]))
        else:
            port = server.add_insecure_port("127.0.0.1:0")
        server.start()
        self._stack.callback(lambda: server.stop(None).wait())
        return int(port)


@pytest.fixture
def servers() -> Iterator[Servers]:
    with ExitStack() as stack:
        yield Servers(stack)


def failures(settings: ServerSettings, ca: Path | None, kind: type[HandlergenError] = TlsError) -> list[str]:
    """Return the message of a prediction over REST and of one over gRPC, which must both fail with such an error."""
    found = []
    with Client(settings, ca=ca, timeout=20) as client:
        calls: tuple[Callable[..., Any], ...] = (client.predict, client.predict_grpc)
        for call in calls:
            with pytest.raises(kind) as caught:
                call("echo", 1)
            found.append(caught.value.message)
    return found


def test_a_certificate_that_expired(home: Path, servers: Servers) -> None:
    assert all("expired" in text for text in failures(servers.start(home / "expired"), home / "ca.pem"))


@pytest.mark.parametrize("ca", ["strange.pem", "other/cert.pem"])
def test_a_certificate_of_another_authority(home: Path, servers: Servers, ca: str) -> None:
    assert all("is refused: " in text for text in failures(servers.start(home / "good"), home / ca))


def test_a_certificate_of_an_authority_that_nobody_named(
    home: Path, servers: Servers, monkeypatch: pytest.MonkeyPatch
) -> None:
    settings = servers.start(home / "good")
    monkeypatch.delenv("SSL_CERT_FILE", raising=False)
    assert all("is refused: " in text for text in failures(settings, None))
    monkeypatch.setenv("SSL_CERT_FILE", str(home / "ca.pem"))
    assert not any("certificate" in text for text in failures(settings, None, HandlergenError))
    monkeypatch.setenv("SSL_CERT_FILE", str(home / "none.pem"))
    with pytest.raises(HandlergenError, match="No such file"):
        Client(settings)


def test_a_certificate_for_another_host(home: Path, servers: Servers) -> None:
    settings = servers.start(home / "other")
    assert all(" mismatch" in text for text in failures(settings, home / "ca.pem"))
    named = replace(settings, tls_name="models.example.com")
    assert not any("certificate" in text for text in failures(named, home / "ca.pem", HandlergenError))


def test_a_port_that_speaks_no_tls(home: Path, servers: Servers) -> None:
    assert all("does not speak TLS" in text for text in failures(servers.start(None), home / "ca.pem"))


def test_refused_unknown_and_silent_hosts_are_told_apart(home: Path) -> None:
    settings = server_settings(
        **{**free_port_settings(), "certificate_file": "c", "private_key_file": "k", "token_authorization": False}
    )
    assert all("no server answers" in text for text in failures(settings, home / "ca.pem", NoServer))
    with (
        Client(replace(settings, inference_address="https://nobody.invalid:1"), ca=home / "ca.pem") as client,
        pytest.raises(ServerError, match="is unknown: "),
    ):
        client.predict("echo", 1)
    with socket.create_server(("127.0.0.1", 0)) as silent:
        port = silent.getsockname()[1]
        address = replace(settings, inference_address=f"https://127.0.0.1:{port}", grpc_inference_port=port)
        with Client(address, ca=home / "ca.pem", timeout=0.5) as client:
            with pytest.raises(ServerError, match="timed out connecting to https"):
                client.predict("echo", 1)
            with pytest.raises(ServerError, match="timed out waiting for"):
                client.predict_grpc("echo", 1)
