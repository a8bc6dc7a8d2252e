"""A certificate authority of a test's own, and certificates that it signs."""

from __future__ import annotations

import ipaddress
from datetime import datetime, timedelta, timezone
from pathlib import Path

from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec, rsa
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat
from cryptography.x509.oid import NameOID

Key = rsa.RSAPrivateKey | ec.EllipticCurvePrivateKey


class Authority:
    """Signs certificates; its own one, which clients trust, is in `file`."""

    def __init__(self, file: Path) -> None:
        self.file = file
        self._key = rsa.generate_private_key(65537, 2048)
        self._name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, f"authority of {file.stem}")])
        file.write_bytes(self._signed(self._name, self._key, (), days=90).public_bytes(Encoding.PEM))

    def issue(self, directory: Path, *names: str, days: int = 90, key: Key | None = None) -> Path:
        """Write cert.pem for these host names and addresses, and key.pem, to a directory; return the directory.

        Args:
            days: Until it expires; below 0: since it has expired.
        """
        directory.mkdir(parents=True, exist_ok=True)
        key = key or rsa.generate_private_key(65537, 2048)
        subject = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "server")])
        (directory / "cert.pem").write_bytes(self._signed(subject, key, names, days=days).public_bytes(Encoding.PEM))
        (directory / "key.pem").write_bytes(key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption()))
        return directory

    def _signed(self, subject: x509.Name, key: Key, names: tuple[str, ...], *, days: int) -> x509.Certificate:
        now, own = datetime.now(timezone.utc), subject == self._name
        usage = dict.fromkeys(
            ("content_commitment", "data_encipherment", "key_agreement", "encipher_only", "decipher_only"), False
        )
        builder = (
            x509.CertificateBuilder(issuer_name=self._name, subject_name=subject, public_key=key.public_key())
            .serial_number(x509.random_serial_number())
            .not_valid_before(now - timedelta(days=60))
            .not_valid_after(now + timedelta(days=days))
            .add_extension(x509.BasicConstraints(ca=own, path_length=None), critical=True)
            .add_extension(x509.SubjectKeyIdentifier.from_public_key(key.public_key()), critical=False)
            .add_extension(x509.AuthorityKeyIdentifier.from_issuer_public_key(self._key.public_key()), critical=False)
            .add_extension(
                x509.KeyUsage(
                    digital_signature=not own, key_encipherment=not own, key_cert_sign=own, crl_sign=own, **usage
                ),
                critical=True,
            )
        )
        if names:
            builder = builder.add_extension(
                x509.SubjectAlternativeName([_name(name) for name in names]), critical=False
            )
        return builder.sign(self._key, hashes.SHA256())


def _name(name: str) -> x509.GeneralName:
    try:
        return x509.IPAddress(ipaddress.ip_address(name))
    except ValueError:
        return x509.DNSName(name)
