"""Signatures and bills of materials of archives."""

from __future__ import annotations

import base64
import hashlib
import json
import os
import pwd
import shutil
import subprocess
import sys
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from handlergen import __version__
from handlergen.archives import deterministic_zip
from handlergen.archives.build import archive
from handlergen.archives.mar import read_mar
from handlergen.archives.sbom import sbom
from handlergen.archives.signing import read_private_key, read_public_key, sign, signature_path, verify
from handlergen.errors import HandlergenError, ServerError
from handlergen.server.model_store import require_signatures
from handlergen.server.properties import ServerSettings
from tests.archives import write_mar

pytest.importorskip("cryptography", reason="the extra handlergen[signing] is not installed")

from cryptography.hazmat.primitives import serialization as forms
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

Run = Callable[..., tuple[int, str, str]]
SOURCE = "def predict(a, b):\n    return a + b\n"


def _openssh_works() -> bool:
    """OpenSSH does nothing for a user without a name, as in a container that runs with any number."""
    try:
        pwd.getpwuid(os.getuid())
    except KeyError:
        return False
    return shutil.which("ssh-keygen") is not None


def write_keys(directory: Path, name: str, key: Any = None) -> tuple[Path, Path]:
    """KEY and PUBKEY files of a new Ed25519 key, or of `key`, in PEM."""
    key = key or Ed25519PrivateKey.generate()
    private, public = directory / f"{name}.pem", directory / f"{name}.pub.pem"
    private.write_bytes(key.private_bytes(forms.Encoding.PEM, forms.PrivateFormat.PKCS8, forms.NoEncryption()))
    public.write_bytes(key.public_key().public_bytes(forms.Encoding.PEM, forms.PublicFormat.SubjectPublicKeyInfo))
    return private, public


@pytest.fixture
def keys(tmp_path: Path) -> tuple[Path, Path]:
    return write_keys(tmp_path, "key")


@pytest.fixture
def source(tmp_path: Path) -> Path:
    (tmp_path / "add.py").write_text(SOURCE)
    return tmp_path / "add.py"


def made(source: Path, **more: Any) -> Any:
    return archive(source, model_store=source.parent / "store", environ={}, devices="cpu", **more)


def test_a_signed_archive_is_the_same_bytes_and_its_signature_good(source: Path, keys: tuple[Path, Path]) -> None:
    plain = made(source).path.read_bytes()
    result = made(source, sign=keys[0], force=True)
    assert result.path.read_bytes() == plain
    assert result.signature is not None
    assert result.signature.path == result.path.with_name("add.mar.sig")
    assert verify(result.path, read_public_key(keys[1])) == result.signature
    again = result.signature.path.read_bytes()
    made(source, sign=keys[0], force=True)
    assert result.signature.path.read_bytes() == again  # Ed25519 signs alike each time
    assert {path.name for path in result.path.parent.iterdir()} == {"add.mar", "add.mar.sig"}


@pytest.mark.skipif(not _openssh_works(), reason="OpenSSH is not installed, or this user has no name")
def test_openssh_reads_our_signatures_and_we_read_its(
    source: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    subprocess.run(["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-C", "me", "-f", "ssh"], check=True)
    result = made(source, sign="ssh")
    assert result.signature is not None
    (tmp_path / "allowed").write_text(f"me {(tmp_path / 'ssh.pub').read_text()}")
    check = ["ssh-keygen", "-Y", "verify", "-f", "allowed", "-I", "me", "-n", "handlergen"]
    with result.path.open("rb") as content:
        said = subprocess.run(
            [*check, "-s", result.signature.path], stdin=content, capture_output=True, text=True, check=False
        )
    assert said.returncode == 0, said.stderr
    assert result.signature.fingerprint in said.stdout
    result.signature.path.unlink()
    subprocess.run(["ssh-keygen", "-q", "-Y", "sign", "-n", "handlergen", "-f", "ssh", result.path], check=True)
    assert verify(result.path, read_public_key("ssh.pub")).fingerprint == result.signature.fingerprint
    subprocess.run(["ssh-keygen", "-q", "-Y", "sign", "-n", "git", "-f", "ssh", "add.py"], check=True)
    shutil.copy("add.py.sig", signature_path(result.path))
    with pytest.raises(HandlergenError, match="not made for handlergen's archives: its namespace is 'git'"):
        verify(result.path, read_public_key("ssh.pub"))


def changed_archive(path: Path, _home: Path) -> None:
    data = bytearray(path.read_bytes())
    data[100] ^= 1
    path.write_bytes(data)


def other_key(path: Path, home: Path) -> None:
    sign(path, read_private_key(write_keys(home, "other")[0]))


def changed_signature(path: Path, _home: Path) -> None:
    lines = signature_path(path).read_text().splitlines()
    blob = bytearray(base64.b64decode("".join(lines[1:-1])))
    blob[-1] ^= 1
    lines[1:-1] = [base64.b64encode(blob).decode()]
    signature_path(path).write_text("\n".join(lines))


LIE = f"""-----BEGIN SSH SIGNATURE-----
{base64.b64encode(b"SSHSIG" + bytes([0, 0, 0, 1]) + bytes([255] * 4)).decode()}
-----END SSH SIGNATURE-----
"""
TAMPERED: dict[str, tuple[Callable[[Path, Path], object], str]] = {
    "archive": (changed_archive, "is not a signature of"),
    "signature": (changed_signature, "is not a signature of"),
    "another key": (other_key, "was made with another key"),
    "none": (lambda path, _: signature_path(path).unlink(), "is not signed: there is no add.mar.sig"),
    "empty": (lambda path, _: signature_path(path).write_text(""), "is not a signature, or"),
    "garbage": (lambda path, _: signature_path(path).write_bytes(bytes(range(256))), "is not a signature, or"),
    "cut": (lambda p, _: signature_path(p).write_text(signature_path(p).read_text()[:200]), "not a signature, or"),
    "large": (lambda path, _: signature_path(path).write_text("-" * 100_000), "too large for a signature"),
    "a lie about lengths": (lambda path, _: signature_path(path).write_text(LIE), "is not a signature, or"),
}  # fmt: skip


@pytest.mark.parametrize("case", TAMPERED)
def test_what_was_tampered_with_is_refused(case: str, source: Path, keys: tuple[Path, Path], run: Run) -> None:
    path = made(source, sign=keys[0]).path
    tamper, reason = TAMPERED[case]
    tamper(path, source.parent)
    status, out, err = run("inspect", str(path), "--verify-signature", str(keys[1]))
    assert (status, out) == (1, "")
    assert reason in err
    with pytest.raises(ServerError, match=reason):
        require_signatures(path.parent, ["add.mar"], ServerSettings(), keys[1])


def test_the_store_of_a_server_that_requires_signatures(source: Path, keys: tuple[Path, Path]) -> None:
    store = made(source, sign=keys[0]).path.parent
    require_signatures(store, ["add.mar"], ServerSettings(), keys[1])
    with pytest.raises(ServerError, match="model_api is on") as caught:
        require_signatures(store, ["add.mar"], ServerSettings(model_api=True), keys[1])
    assert caught.value.hint == "`handlergen config --no-model-api --force` switches it off; no server was started"
    (store / "unpacked").mkdir()
    with pytest.raises(ServerError, match="unpacked cannot be signed"):
        require_signatures(store, ["add.mar"], ServerSettings(), keys[1])


def encrypted(home: Path) -> Path:
    (home / "k").write_bytes(
        Ed25519PrivateKey.generate().private_bytes(
            forms.Encoding.PEM, forms.PrivateFormat.PKCS8, forms.BestAvailableEncryption(b"x")
        )
    )
    return home / "k"


def garbage(home: Path) -> Path:
    (home / "k").write_bytes(bytes(range(256)))
    return home / "k"


@pytest.mark.parametrize(
    ("make", "signing", "verifying"),
    [
        (lambda home: home / "nowhere", "cannot be read: No such file", "cannot be read: No such file"),
        (lambda home: home, "cannot be read: Is a directory", "cannot be read: Is a directory"),
        (garbage, "is not a private key", "is not a public key"),
        (encrypted, "is encrypted", "is a private key"),
        (lambda home: write_keys(home, "k")[1], "a public key, which cannot sign", None),
        (lambda home: write_keys(home, "k")[0], None, "is a private key"),
        (lambda home: write_keys(home, "k", ec.generate_private_key(ec.SECP256R1()))[0], "only Ed25519 keys", None),
        (lambda home: write_keys(home, "k", ec.generate_private_key(ec.SECP256R1()))[1], None, "only Ed25519 keys"),
    ],
)  # fmt: skip
def test_keys_that_are_none(
    make: Callable[[Path], Path], signing: str | None, verifying: str | None, source: Path
) -> None:
    key = make(source.parent)
    if signing is not None:
        with pytest.raises(HandlergenError, match=signing):
            made(source, sign=key)
        assert not (source.parent / "store" / "add.mar").exists()
    if verifying is not None:
        with pytest.raises(HandlergenError, match=verifying):
            read_public_key(key)


def test_without_cryptography_it_says_what_to_install(
    source: Path, keys: tuple[Path, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "cryptography", None)
    with pytest.raises(HandlergenError) as caught:
        made(source, sign=keys[0])
    assert caught.value.hint == "pip install 'handlergen[signing]'"


def test_an_old_signature_beside_a_new_archive_is_warned_of(source: Path, keys: tuple[Path, Path]) -> None:
    made(source, sign=keys[0])
    source.write_text(SOURCE.replace("+", "-"))
    result = made(source, force=True)
    assert any("add.mar.sig is older than" in warning for warning in result.warnings)
    with pytest.raises(HandlergenError, match="is not a signature of"):
        verify(result.path, read_public_key(keys[1]))


def test_the_commands_say_what_they_did(
    source: Path, keys: tuple[Path, Path], monkeypatch: pytest.MonkeyPatch, run: Run
) -> None:
    monkeypatch.chdir(source.parent)
    status, out, _ = run("archive", "add.py", "--verify", "--sign", str(keys[0]), "--json")
    report = json.loads(out)
    assert status == 0
    assert report["verified"] is True
    key = report["signature"]["key"]
    assert key.startswith("SHA256:")
    mar = report["path"]
    status, out, _ = run("inspect", mar, "--verify-signature", str(keys[1]), "--json")
    shown = json.loads(out)
    assert shown["signature"] == {"path": f"{mar}.sig", "key": key}
    assert shown["sha256"] == report["sha256"] == hashlib.sha256(Path(mar).read_bytes()).hexdigest()
    with zipfile.ZipFile(mar) as opened:
        assert {file["name"]: file["sha256"] for file in shown["files"]} == {
            name: hashlib.sha256(opened.read(name)).hexdigest() for name in opened.namelist()
        }
    told = run("inspect", mar, "--verify-signature", str(keys[1]))[1]
    assert f"valid signature: {mar}.sig with {key}" in told
    assert run("inspect", mar, "--json", "--sbom")[0] == 2


def test_verifying_notices_what_is_not_reproducible(
    source: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    genuine = deterministic_zip.write_zip
    path = made(source, verify=True).path
    assert deterministic_zip.irregularity(path) is None

    def careless(*args: Any, **named: Any) -> None:
        monkeypatch.setattr(deterministic_zip, "_MODE", 0o100755)
        genuine(*args, **named)
        monkeypatch.setattr(deterministic_zip, "_MODE", 0o100644)

    monkeypatch.setattr(deterministic_zip, "write_zip", careless)
    with pytest.raises(HandlergenError, match=r"not reproducible: .* has attributes"):
        made(source, verify=True, force=True)
    assert deterministic_zip.irregularity(path) is None  # the archive that was there before
    other = tmp_path / "other.zip"
    with zipfile.ZipFile(other, "w") as opened:
        opened.writestr("b", "")
        opened.writestr("a", "")
    assert deterministic_zip.irregularity(other) == "its entries are not sorted"


REQUIREMENTS = """
# what the model needs
torch==2.13.0 --hash=sha256:00 \\
    --hash=sha256:11
--extra-index-url https://user:password@example.org/simple
Pillow[webp] >=10 ; python_version > "3"
ruamel.yaml===0.18
own @ https://user:password@example.org/own-1.0.whl
numpy==1.*
"""


def bill(source: Path) -> tuple[Any, dict[str, Any]]:
    (source.parent / "requirements.txt").write_text(REQUIREMENTS)
    archived = read_mar(made(source, requirements=["requirements.txt"]).path)
    return archived, sbom(archived)


def test_the_bill_of_materials_names_every_file_and_requirement(source: Path) -> None:
    archived, found = bill(source)
    model = found["metadata"]["component"]
    assert (model["type"], model["name"], model["version"]) == ("machine-learning-model", "add", "1.0")
    assert model["hashes"] == [{"alg": "SHA-256", "content": hashlib.sha256(archived.path.read_bytes()).hexdigest()}]
    files = {each["name"]: each["hashes"][0]["content"] for each in found["components"] if each["type"] == "file"}
    assert files == {file.name: file.sha256 for file in archived.files}
    assert files["add.py"] == hashlib.sha256(SOURCE.encode()).hexdigest()
    libraries = {each["name"]: each.get("version") for each in found["components"] if each["type"] == "library"}
    assert libraries == {
        "handlergen": __version__, "torch": "2.13.0", "pillow": None, "ruamel-yaml": "0.18", "own": None,
        "numpy": None,
    }  # fmt: skip
    assert "password" not in json.dumps(found)
    assert found == sbom(read_mar(archived.path))


def test_the_bill_of_materials_is_valid_cyclonedx(source: Path) -> None:
    pytest.importorskip("cyclonedx", reason="the extra handlergen[dev] is not installed")
    from cyclonedx.schema import SchemaVersion
    from cyclonedx.validation.json import JsonStrictValidator

    text = json.dumps(bill(source)[1])
    validator = JsonStrictValidator(SchemaVersion.V1_6)
    assert validator.validate_str(text) is None
    assert validator.validate_str(text.replace('"SHA-256"', '"SHA-257"')) is not None


def test_the_bill_of_materials_of_somebody_elses_archive(tmp_path: Path) -> None:
    found = sbom(read_mar(write_mar(tmp_path / "other.mar", {}, {"requirements.txt": "a==1\n"})))
    parts = [each["bom-ref"] for each in found["components"]]
    assert parts == ["requirement:1", "file:MAR-INF/MANIFEST.json", "file:requirements.txt"]
