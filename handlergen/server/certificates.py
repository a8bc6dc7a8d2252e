"""A server's certificate and key, tried before TorchServe and its clients use them.

TorchServe takes an unencrypted RSA key and speaks TLS 1.2 with two ciphers (ConfigManager.java: loadPrivateKey,
getSslContext); its gRPC takes the key in PKCS#8 only (Netty's PemReader). What clients will say is found by a TLS
handshake in memory, with those ciphers, between these files and a client that trusts the given authorities.
"""

from __future__ import annotations

import os
import re
import shlex
import ssl
import time
from dataclasses import dataclass, replace
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

from handlergen.client.tls import Verification
from handlergen.errors import HandlergenError
from handlergen.server.properties import ServerSettings, host_and_port

_CIPHERS = "ECDHE-RSA-AES128-GCM-SHA256:ECDHE-RSA-AES128-SHA"
_NO_CHECK_TIME = ssl.VerifyFlags(0x200000)  # X509_V_FLAG_NO_CHECK_TIME of OpenSSL, which ssl does not name
_WILDCARD = "0.0.0.0"  # noqa: S104 - compared, never bound
_PKCS8 = re.compile(r"\s*-----BEGIN PRIVATE KEY-----[A-Za-z0-9+/=\s]+-----END PRIVATE KEY-----\s*")
_NEW_KEY = "openssl genpkey -algorithm RSA -pkeyopt rsa_keygen_bits:2048 -out key.pem"


@dataclass(frozen=True)
class Certificate:
    """What a certificate says: host names and addresses that it is for, and from when until when (POSIX, seconds)."""

    names: tuple[str, ...]
    begins: float
    ends: float


def check_tls(settings: ServerSettings, directory: Path) -> Certificate | None:
    """Check the certificate and key that the settings name; `directory` is the one of their relative paths.

    Returns:
        The certificate; None where the settings name none.

    Raises:
        HandlergenError: A file is missing or of a form that TorchServe does not read, they do not belong together,
            the certificate has expired, the authority of `ca_file` did not sign it, or a client that expects
            `tls_name`, else the host of an https address, would refuse it.
    """
    if not (settings.certificate_file and settings.private_key_file):
        return None
    certificate_file = _path(directory, settings.certificate_file)
    server = _server(certificate_file, _path(directory, settings.private_key_file))
    found = _read(certificate_file, server)
    today = time.time()
    if found.ends < today:
        raise HandlergenError(f"the certificate {certificate_file} expired on {_day(found.ends)}", hint="get a new one")
    if found.begins > today:
        raise HandlergenError(f"the certificate {certificate_file} is not valid before {_day(found.begins)}")
    ca = _path(directory, settings.ca_file) if settings.ca_file else None
    for name in [settings.tls_name] if settings.tls_name else _hosts(settings):
        _verify(certificate_file, found, server, ca, name)
    return found


def with_tls_name(settings: ServerSettings, directory: Path) -> ServerSettings:
    """Return settings with the name that clients on this machine must expect in the certificate.

    Raises like `check_tls`. The name is the host of predictions, because a certificate need not name 127.0.0.1, where
    management listens; for 0.0.0.0, it is the certificate's first name.
    """
    name = host_and_port(settings.inference_address)[0]
    if name == _WILDCARD:
        file = _path(directory, settings.certificate_file)
        names = _read(file, _server(file, _path(directory, settings.private_key_file))).names
        if not names:
            raise HandlergenError(f"the certificate {file} names no host (subjectAltName)", hint="get a new one")
        name = names[0].replace("*", "any")  # *.example.com is valid for any.example.com
    named = replace(settings, tls_name=name)
    check_tls(named, directory)
    return named


def _path(directory: Path, file: str) -> Path:
    return Path(os.path.normpath(directory / file))  # the directory may not exist yet, and the file be beside it


def _hosts(settings: ServerSettings) -> list[str]:
    rest = (settings.inference_address, settings.management_address, settings.metrics_address)
    hosts = [host_and_port(address)[0] for address in rest if address.startswith("https:")]
    if settings.grpc_tls:
        hosts += [settings.grpc_inference_address, settings.grpc_management_address]
    return sorted(set(hosts))


def _server(certificate_file: Path, key_file: Path) -> ssl.SSLContext:
    for file in (certificate_file, key_file):
        try:
            text = file.read_text("utf-8", "replace")
        except FileNotFoundError:
            raise HandlergenError(f"there is no file {file}") from None
        except OSError as error:
            raise HandlergenError(f"{file} cannot be read: {error.strerror}") from error
        if file == key_file and not _PKCS8.fullmatch(text):
            raise HandlergenError(
                f"{key_file} is not an unencrypted key in PKCS#8 (-----BEGIN PRIVATE KEY----- and nothing else), the "
                "only form that TorchServe's gRPC reads",
                hint=f"openssl pkcs8 -topk8 -nocrypt -in {shlex.quote(str(key_file))} -out key.pem",
            )
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.maximum_version = ssl.TLSVersion.TLSv1_2
    context.set_ciphers(_CIPHERS)
    try:
        context.load_cert_chain(certificate_file, key_file)
    except ssl.SSLError as error:
        if error.reason in ("KEY_VALUES_MISMATCH", "NO_CERTIFICATE_ASSIGNED"):  # the latter: keys of two kinds
            raise HandlergenError(
                f"the key {key_file} does not belong to the certificate {certificate_file}",
                hint="a certificate is made for one key: use that one",
            ) from error
        raise HandlergenError(
            f"the certificate {certificate_file} with the key {key_file} cannot be used: {error.reason or error}",
            hint="the certificate must be a PEM file (-----BEGIN CERTIFICATE-----)",
        ) from error
    return context


def _read(file: Path, server: ssl.SSLContext) -> Certificate:
    """Return what a certificate says: as a client sees it that trusts just this one, whatever its dates and names."""
    client = Verification(file).context()
    client.verify_flags |= _NO_CHECK_TIME
    try:
        peer = _handshake(server, client)
    except ssl.SSLError as error:
        if error.reason in ("NO_SHARED_CIPHER", "SSLV3_ALERT_HANDSHAKE_FAILURE"):
            raise _not_rsa(file) from error
        raise HandlergenError(f"the certificate {file} cannot be used: {error.reason or error}") from error
    names = tuple(name for kind, name in peer.get("subjectAltName", ()) if kind in ("DNS", "IP Address"))
    return Certificate(names, ssl.cert_time_to_seconds(peer["notBefore"]), ssl.cert_time_to_seconds(peer["notAfter"]))


def _verify(file: Path, found: Certificate, server: ssl.SSLContext, ca: Path | None, name: str) -> None:
    try:
        _handshake(server, Verification(ca or file).context(), name)
    except ssl.SSLCertVerificationError as error:
        if "mismatch" in error.verify_message:
            raise HandlergenError(
                f"the certificate {file} is for {', '.join(found.names) or 'no host'}, not for {name}",
                hint="set --host to a name that clients use and that the certificate has, or to 0.0.0.0, which takes "
                "every address of this machine and any name",
            ) from error
        raise HandlergenError(
            f"the authority in {ca} did not sign the certificate {file}: {error.verify_message}",
            hint="--tls-ca names the authority that signed it; certificates between the two belong into the "
            "certificate's file, after the server's own",
        ) from error


def _handshake(server: ssl.SSLContext, client: ssl.SSLContext, name: str = "") -> dict[str, Any]:
    """Return the server's certificate as the client sees it. Raises ssl.SSLError where either side refuses."""
    client.check_hostname = bool(name)
    to_server, to_client = ssl.MemoryBIO(), ssl.MemoryBIO()
    sides = [
        client.wrap_bio(to_client, to_server, server_hostname=name or None),
        server.wrap_bio(to_server, to_client, server_side=True),
    ]
    waiting = list(sides)
    while waiting:
        for side in sides:
            try:
                side.do_handshake()
            except ssl.SSLWantReadError:
                continue
            if side in waiting:
                waiting.remove(side)
    return dict(sides[0].getpeercert() or {})


def _not_rsa(file: Path) -> HandlergenError:
    return HandlergenError(
        f"{file}: TorchServe takes RSA keys only, and this is another kind",
        hint=f"make an RSA key and have a certificate issued for it: {_NEW_KEY}",
    )


def _day(seconds: float) -> str:
    return datetime.fromtimestamp(seconds, timezone.utc).strftime("%Y-%m-%d %H:%M UTC")
