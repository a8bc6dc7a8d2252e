"""TLS of a client: which authorities and which name a server's certificate must have, and what a failure means.

REST (OpenSSL) and gRPC (BoringSSL) verify the same certificate by the same two things. TorchServe cannot verify a
client's certificate: `ConfigManager.getSslContext` and `ModelServer.startGRPCServer` set no trust manager, so there is
no mutual TLS.
"""

from __future__ import annotations

import os
import ssl
from dataclasses import dataclass
from pathlib import Path

from handlergen.errors import HandlergenError, TlsError

CA_VARIABLE = "SSL_CERT_FILE"
"""OpenSSL's environment variable for a file with certificates of authorities."""


@dataclass(frozen=True)
class Verification:
    """What a client demands of a server's certificate.

    Attributes:
        ca: PEM file with the certificates of the authorities that may have signed it. None: the file that
            SSL_CERT_FILE names; without one, the system's authorities over REST, and gRPC's own over gRPC.
        name: Host name or IP address that it must be valid for; "": the host of the server's address.
    """

    ca: Path | None = None
    name: str = ""

    def context(self) -> ssl.SSLContext:
        """Return the context of a TLS connection. Raises HandlergenError: there are no certificates in the file."""
        try:
            context = ssl.create_default_context(cafile=self._file())
        except OSError as error:  # ssl.SSLError is one
            raise self._unreadable(error) from error
        # As gRPC does, and Python from 3.13 on: an authority between may be trusted, or a certificate by itself.
        context.verify_flags |= ssl.VERIFY_X509_PARTIAL_CHAIN
        return context

    def authorities(self) -> bytes | None:
        """Return the authorities' certificates in PEM, for gRPC; None: gRPC's own. Raises like `context`."""
        file = self._file()
        if file is None:
            return None
        self.context()  # gRPC would report a file without certificates as a failed connection
        return file.read_bytes()

    def _file(self) -> Path | None:
        named = os.environ.get(CA_VARIABLE)
        return self.ca or (Path(named) if named else None)

    def _unreadable(self, error: OSError) -> HandlergenError:
        reason = "it has no certificate in PEM" if isinstance(error, ssl.SSLError) else error.strerror
        source = "--ca, --tls-ca or handlergen_ca_file" if self.ca else CA_VARIABLE
        return HandlergenError(
            f"the authorities' certificates cannot be read from {self._file()}: {reason}",
            hint=f"{source} names this file; it must be a PEM file (-----BEGIN CERTIFICATE-----)",
        )


def certificate_refused(address: str, reason: str) -> TlsError:
    """Return the error for a certificate that verification refused; `reason` is OpenSSL's or BoringSSL's."""
    reason = reason.strip().rstrip(".")
    if "expired" in reason or "not yet valid" in reason:
        hint = "install a new certificate and restart the server; check this machine's clock"
    elif "mismatch" in reason or "Hostname" in reason:
        hint = (
            "use an address whose host the certificate names, or set handlergen_tls_name in the configuration to a "
            "name of the certificate"
        )
    else:
        hint = (
            f"name the authority that signed it: --ca PATH, {CA_VARIABLE}, or `handlergen config --tls-ca`, which "
            "writes handlergen_ca_file"
        )
    return TlsError(f"the certificate of the server at {address} is refused: {reason}", hint=hint)


def no_tls(address: str) -> TlsError:
    """Return the error for a server that does not answer a TLS handshake."""
    return TlsError(
        f"the server at {address} does not speak TLS",
        hint="another program listens there, or the server was started before its configuration said https",
    )


def only_tls(address: str) -> TlsError:
    """Return the error for a server that accepts nothing but TLS."""
    return TlsError(
        f"the server at {address} accepts only TLS",
        hint="the server's configuration must say https:// in its addresses and enable_grpc_ssl=true, as the one it "
        "was started on did",
    )
