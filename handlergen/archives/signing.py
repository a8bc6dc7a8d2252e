"""Detached signatures of archives with the user's Ed25519 key, in OpenSSH's format.

`NAME.mar.sig` is what `ssh-keygen -Y sign -n handlergen -f KEY NAME.mar` writes, so that a signature can be made and
checked without handlergen. The format (OpenSSH's PROTOCOL.sshsig) signs the file's SHA-512, so that gigabytes of
weights need not be in memory, and a namespace, so that a signature made for another purpose is not valid here. The
archive itself is not changed.

Ed25519 comes from the package `cryptography` (`pip install 'handlergen[signing]'`).
"""

from __future__ import annotations

import base64
import binascii
import hashlib
import secrets
import struct
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from handlergen.errors import HandlergenError

if TYPE_CHECKING:
    from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey, Ed25519PublicKey

NAMESPACE = "handlergen"
"""The purpose that a signature must have been made for."""

SUFFIX = ".sig"

_KIND = b"ssh-ed25519"
_MAGIC = b"SSHSIG"
_HASH = b"sha512"
_BEGIN, _END = "-----BEGIN SSH SIGNATURE-----", "-----END SSH SIGNATURE-----"
_MAKE_ONE = "make one with: openssl genpkey -algorithm ed25519 -out KEY"
_SUSPICIOUS = "do not serve the archive unless you know why"
_LARGEST = 64 << 10
"""Maximum size of a key or signature file, in bytes."""


@dataclass(frozen=True)
class Signature:
    """A signature that was written or verified.

    Attributes:
        path: The signature's file.
        fingerprint: The key's fingerprint, as `ssh-keygen -l` shows it: `SHA256:...`.
    """

    path: Path
    fingerprint: str


def signature_path(archive: Path) -> Path:
    """Return the path of an archive's signature: NAME.mar.sig beside it."""
    return archive.with_name(archive.name + SUFFIX)


def read_private_key(path: Path | str) -> Ed25519PrivateKey:
    """Read an Ed25519 private key: PKCS#8 in PEM (`openssl genpkey -algorithm ed25519`) or OpenSSH's own format.

    Raises:
        HandlergenError: The file cannot be read, has no Ed25519 private key, or is encrypted.
    """
    _need_cryptography()
    from cryptography.exceptions import UnsupportedAlgorithm
    from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
    from cryptography.hazmat.primitives.serialization import load_pem_private_key, load_ssh_private_key

    path = Path(path)
    text = _read(path, "key")
    read = load_ssh_private_key if b"OPENSSH PRIVATE KEY" in text else load_pem_private_key
    try:
        key = read(text, password=None)
    except TypeError as error:  # cryptography's error for a key with a password
        hint = f"write it without the password: openssl pkey -in {path} -out KEY"
        if read is load_ssh_private_key:
            hint = f"ssh-keygen asks for the password: ssh-keygen -Y sign -n {NAMESPACE} -f {path} NAME.mar"
        raise HandlergenError(f"the key {path} is encrypted", hint=hint) from error
    except (ValueError, UnsupportedAlgorithm) as error:
        public = b"PUBLIC KEY" in text or text.startswith(_KIND)
        what = "is a public key, which cannot sign" if public else "is not a private key"
        raise HandlergenError(f"{path} {what}", hint=_MAKE_ONE) from error
    if not isinstance(key, Ed25519PrivateKey):
        raise _not_ed25519(path)
    return key


def read_public_key(path: Path | str) -> Ed25519PublicKey:
    """Read an Ed25519 public key: PEM (`openssl pkey -in KEY -pubout`) or a line as in `id_ed25519.pub`.

    Raises:
        HandlergenError: The file cannot be read, or has no Ed25519 public key.
    """
    _need_cryptography()
    from cryptography.exceptions import UnsupportedAlgorithm
    from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey
    from cryptography.hazmat.primitives.serialization import load_pem_public_key, load_ssh_public_key

    path = Path(path)
    text = _read(path, "key")
    if b"PRIVATE KEY" in text:
        hint = f"write it with: openssl pkey -in {path} -pubout, or ssh-keygen -y -f {path}"
        raise HandlergenError(f"{path} is a private key; expected its public key", hint=hint)
    try:
        key = (load_pem_public_key if b"-----BEGIN" in text else load_ssh_public_key)(text)
    except (ValueError, UnsupportedAlgorithm) as error:
        hint = "write one with: openssl pkey -in KEY -pubout"
        raise HandlergenError(f"{path} is not a public key", hint=hint) from error
    if not isinstance(key, Ed25519PublicKey):
        raise _not_ed25519(path)
    return key


def sign(archive: Path, key: Ed25519PrivateKey, *, sha256: str | None = None) -> Signature:
    """Write the signature of an archive beside it, in one step; it replaces an existing one.

    `sha256` is the expected SHA-256 of the archive, in hexadecimal.

    Raises:
        HandlergenError: The archive has another SHA-256.
        OSError: Reading or writing failed.
    """
    digest, seen = _digests(archive)
    if sha256 is not None and seen != sha256:
        raise HandlergenError(f"{archive} was replaced before it could be signed", hint="archive it again")
    public = _public_blob(key.public_key())
    blob = _MAGIC + struct.pack(">L", 1) + _string(public) + _string(NAMESPACE.encode()) + _string(b"")
    blob += _string(_HASH) + _string(_string(_KIND) + _string(key.sign(_signed(digest))))
    text = base64.b64encode(blob).decode()
    lines = [_BEGIN, *(text[start : start + 70] for start in range(0, len(text), 70)), _END]
    target = signature_path(archive)
    partial = target.with_name(f".{target.name}.{secrets.token_hex(8)}.part")
    try:
        with partial.open("x", encoding="ascii", newline="\n") as output:
            output.write("\n".join(lines) + "\n")
        partial.replace(target)
    finally:
        with suppress(FileNotFoundError):
            partial.unlink()
    return Signature(target, _fingerprint(public))


def verify(archive: Path, key: Ed25519PublicKey) -> Signature:
    """Check the signature that lies beside an archive.

    Raises:
        HandlergenError: There is none, it is damaged, of another key, made for something else, or of another file.
    """
    from cryptography.exceptions import InvalidSignature

    if not archive.is_file():
        raise HandlergenError(f"{archive} does not exist")
    path = signature_path(archive)
    if not path.is_file():
        hint = "sign it with `handlergen archive SOURCE --sign KEY`, or ask its author for the signature"
        raise HandlergenError(f"{archive} is not signed: there is no {path.name} beside it", hint=hint)
    signer, signature = _parsed(_read(path, "signature"), path)
    wanted = _public_blob(key)
    if signer != wanted:
        made = f"{_fingerprint(signer)}, not {_fingerprint(wanted)}"
        raise HandlergenError(f"{path} was made with another key: {made}", hint=_SUSPICIOUS)
    digest, _ = _digests(archive)
    try:
        key.verify(signature, _signed(digest))
    except InvalidSignature as error:
        message = f"{path} is not a signature of {archive}: one of them was changed or replaced since it was made"
        raise HandlergenError(message, hint=_SUSPICIOUS) from error
    return Signature(path, _fingerprint(wanted))


def _parsed(text: bytes, path: Path) -> tuple[bytes, bytes]:
    """Return the public key and the Ed25519 signature in a signature file that was made for archives."""
    lines = text.decode("ascii", "replace").strip().splitlines()
    try:
        if len(lines) < 3 or lines[0].strip() != _BEGIN or lines[-1].strip() != _END:
            raise ValueError
        blob = base64.b64decode("".join(line.strip() for line in lines[1:-1]), validate=True)
        if blob[:10] != _MAGIC + struct.pack(">L", 1):
            raise ValueError
        public, namespace, _, hashed, signed = _strings(blob[10:], 5)
        kind, signature = _strings(signed, 2)
    except (ValueError, binascii.Error, struct.error) as error:
        raise HandlergenError(f"{path} is not a signature, or it is damaged") from error
    if namespace != NAMESPACE.encode():
        what = f"its namespace is {namespace.decode('ascii', 'replace')!a}, not {NAMESPACE!r}"
        raise HandlergenError(f"{path} was not made for handlergen's archives: {what}")
    if hashed != _HASH or kind != _KIND or _strings(public, 2)[0] != _KIND:
        raise HandlergenError(f"{path} is an unsupported signature: only Ed25519 with SHA-512 is supported")
    return public, signature


def _signed(digest: bytes) -> bytes:
    """Return the bytes that are signed for a file with this SHA-512 (PROTOCOL.sshsig, section 3)."""
    return _MAGIC + _string(NAMESPACE.encode()) + _string(b"") + _string(_HASH) + _string(digest)


def _string(value: bytes) -> bytes:
    return struct.pack(">L", len(value)) + value


def _strings(blob: bytes, count: int) -> list[bytes]:
    """Read exactly `count` length-prefixed strings; raise ValueError or struct.error for anything else."""
    found = []
    for _ in range(count):
        (length,) = struct.unpack_from(">L", blob)
        if length > len(blob) - 4:
            raise ValueError
        found.append(blob[4 : 4 + length])
        blob = blob[4 + length :]
    if blob:
        raise ValueError
    return found


def _public_blob(key: Ed25519PublicKey) -> bytes:
    return _string(_KIND) + _string(key.public_bytes_raw())


def _fingerprint(public: bytes) -> str:
    return "SHA256:" + base64.b64encode(hashlib.sha256(public).digest()).decode().rstrip("=")


def _digests(archive: Path) -> tuple[bytes, str]:
    """Return the SHA-512 of a file and, in hexadecimal, its SHA-256; read it once."""
    first, second = hashlib.sha512(), hashlib.sha256()
    with archive.open("rb") as content:
        while chunk := content.read(4 << 20):
            first.update(chunk)
            second.update(chunk)
    return first.digest(), second.hexdigest()


def _read(path: Path, what: str) -> bytes:
    try:
        with path.open("rb") as file:
            content = file.read(_LARGEST + 1)
    except OSError as error:
        raise HandlergenError(f"the {what} {path} cannot be read: {error.strerror or error}") from error
    if len(content) > _LARGEST:
        raise HandlergenError(f"{path} is too large for a {what} file")
    return content


def _not_ed25519(path: Path) -> HandlergenError:
    return HandlergenError(f"{path} is not an Ed25519 key: only Ed25519 keys are supported", hint=_MAKE_ONE)


def _need_cryptography() -> None:
    try:
        import cryptography  # noqa: F401
    except ImportError as error:
        hint = "pip install 'handlergen[signing]'"
        raise HandlergenError("signatures require the package cryptography", hint=hint) from error
