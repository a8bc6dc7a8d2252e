"""Archives that were changed after they were packed, each in one way, and what the verbs say of them."""

from __future__ import annotations

import json
import re
import zipfile
from collections.abc import Callable
from pathlib import Path

import pytest

from handlergen import __version__
from handlergen.archives import audit as auditing
from handlergen.archives.audit import RELEASES, audit, release_list
from handlergen.archives.build import archive
from handlergen.archives.mar import read_mar
from handlergen.archives.sbom import sbom
from handlergen.archives.signing import sign
from handlergen.errors import HandlergenError
from handlergen.local.model import load
from handlergen.server.model_store import configuration_warnings
from handlergen.server.properties import ServerSettings

ROOT = Path(__file__).resolve().parents[2]
SOURCE = "def predict(a, b):\n    return a + b\n"
WORKER, HANDLER, CONTRACT = "handlergen_runtime/worker.py", "handlergen_handler.py", "handlergen.json"

Run = Callable[..., tuple[int, str, str]]
Files = dict[str, bytes]


@pytest.fixture
def packed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "add.py").write_text(SOURCE)
    return archive("add.py", environ={}, devices="cpu").path


def rewrite(path: Path, change: Callable[[Files], object]) -> None:
    with zipfile.ZipFile(path) as opened:
        files = {info.filename: opened.read(info) for info in opened.infolist()}
    change(files)
    with zipfile.ZipFile(path, "w") as opened:
        for name, content in files.items():
            opened.writestr(name, content)


def replace(name: str, old: bytes, new: bytes) -> Callable[[Files], object]:
    def change(files: Files) -> None:
        assert old in files[name]
        files[name] = files[name].replace(old, new)

    return change


def put(name: str, content: bytes = b"import os\n") -> Callable[[Files], object]:
    return lambda files: files.update({name: files.get(name, b"") + content})


CHANGES: dict[str, tuple[Callable[[Files], object], str]] = {
    "a line appended to a runtime file": (put(WORKER), f"handlergen {__version__}: {WORKER} is changed"),
    "a runtime file removed": (lambda files: files.pop(WORKER), f"{WORKER} is missing"),
    "a runtime file added": (put("handlergen_runtime/worker.so", b"\x7fELF"), "handlergen_runtime/worker.so is added"),
    "cached bytecode of the runtime": (
        put("handlergen_runtime/__pycache__/worker.cpython-311.pyc"),
        "worker.cpython-311.pyc is added",
    ),
    "the handler changed": (put(HANDLER), f"{HANDLER} is not what handlergen {__version__} generates"),
    "the handler removed": (lambda files: files.pop(HANDLER), f"{HANDLER} is missing"),
    "a hook of the contract changed": (
        replace(CONTRACT, b'"name": "predict"', b'"name": "other"'),
        f"{HANDLER} is not what handlergen {__version__} generates for {CONTRACT}",
    ),
    "the lock of the contract changed": (replace(CONTRACT, b'"device"', b'"none"'), f"generates for {CONTRACT}"),
    "another handler in the manifest": (
        replace("MAR-INF/MANIFEST.json", HANDLER.encode(), b"add.py:predict"),
        "its manifest names the handler 'add.py:predict'",
    ),
    "TorchServe's C++ backend in the manifest": (
        replace("MAR-INF/MANIFEST.json", b'"python"', b'"LSP"'),
        "its manifest names the runtime 'LSP'",
    ),
    "a module that replaces torch": (put("torch.py"), "torch.py: it would replace 'torch'"),
    "a package that replaces yaml": (put("yaml/__init__.py"), "yaml/__init__.py: it would replace 'yaml'"),
    "a compiled module that replaces json": (put("json.cpython-311-x86_64-linux-gnu.so"), "would replace Python's own"),
    "a module that Python runs first": (put("sitecustomize.py"), "sitecustomize.py: Python would run it"),
    "a package that replaces the handler": (
        put("handlergen_handler/__init__.py"),
        "handlergen_handler/__init__.py: every archive has handlergen's own",
    ),
    "cached bytecode of the module": (put("__pycache__/add.cpython-311.pyc"), "is cached bytecode"),
}


@pytest.mark.parametrize("kind", CHANGES)
def test_each_change_is_told_and_refused(packed: Path, kind: str, run: Run) -> None:
    assert run("inspect", str(packed), "--verify")[::2] == (0, "")
    change, said = CHANGES[kind]
    rewrite(packed, change)
    status, out, err = run("inspect", str(packed))
    assert status == 1
    assert f"{packed} is not as handlergen {__version__} packs it:" in err
    assert said in err
    report = json.loads(run("inspect", str(packed), "--json")[1])["audit"]
    assert any(said in line for line in report["changed"])
    assert ("CHANGED: not as in handlergen" in out) == (report["runtime"] == "changed") == ("runtime" in kind)
    for verb in (("predict", str(packed), '{"a": 1, "b": 2}'), ("map", str(packed), "rows.jsonl", "-o", "-")):
        Path("rows.jsonl").write_text('{"a": 1, "b": 2}\n')
        status, out, err = run(*verb)
        assert (status, out) == (1, "")
        assert said in err
        assert "--any-runtime" in err
    config = packed.parent.parent / "config.properties"
    (warning,) = configuration_warnings(config, ServerSettings())  # those of `serve`, `config` and `doctor`
    assert said in warning


def test_a_changed_archive_runs_when_that_is_asked_for(packed: Path, run: Run) -> None:
    rewrite(packed, put(WORKER))
    status, out, err = run("predict", str(packed), '{"a": 1, "b": 2}', "--any-runtime")
    assert (status, out.strip()) == (0, "3")
    assert f"Warning: {packed} is not as handlergen {__version__} packs it" in err


def test_a_good_signature_of_a_changed_archive_is_not_enough(packed: Path, tmp_path: Path, run: Run) -> None:
    ed25519 = pytest.importorskip("cryptography.hazmat.primitives.asymmetric.ed25519")
    from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat

    key = ed25519.Ed25519PrivateKey.generate()
    (tmp_path / "key.pub").write_bytes(key.public_key().public_bytes(Encoding.OpenSSH, PublicFormat.OpenSSH))
    rewrite(packed, put(WORKER))
    sign(packed, key)
    status, out, err = run("inspect", str(packed), "--verify-signature", "key.pub")
    assert status == 1
    assert "valid signature" in out
    assert f"{WORKER} is changed" in err


def test_an_unknown_version_is_told_and_fails_only_a_verification(packed: Path, run: Run) -> None:
    rewrite(packed, replace(CONTRACT, __version__.encode(), b"99.0"))
    status, out, err = run("inspect", str(packed))
    assert status == 0
    assert "UNKNOWN: handlergen 99.0 is not known here" in out
    assert err.startswith(f"Warning: {packed} cannot be verified:")
    assert run("inspect", str(packed), "--verify")[0] == 1
    origins = {file["name"]: file["origin"] for file in json.loads(run("inspect", str(packed), "--json")[1])["files"]}
    assert (origins[WORKER], origins["add.py"]) == ("unknown", "user")
    with pytest.raises(HandlergenError, match="cannot be verified"):
        load(packed)


def test_an_archive_of_an_earlier_release_runs_with_a_warning(
    packed: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, run: Run
) -> None:
    """Its handler may have other words, as the template of then had."""
    monkeypatch.setattr(auditing, "RELEASES", tmp_path)
    old = b"# an older runtime\n"

    def to_release(files: Files) -> None:
        replace(CONTRACT, __version__.encode(), b"0.0.9")(files)
        replace(HANDLER, b"There is no logic here", b"Here is no logic")(files)
        put(WORKER, old)(files)

    rewrite(packed, to_release)
    digests = {file.name: file.sha256 for file in read_mar(packed).files if file.name.startswith("handlergen_runtime/")}
    (tmp_path / "0.0.9.sha256").write_text("".join(f"{digest}  {name}\n" for name, digest in digests.items()))
    status, out, err = run("inspect", str(packed), "--verify")
    assert (status, err) == (0, "")
    assert "as in handlergen 0.0.9" in out
    status, out, err = run("predict", str(packed), '{"a": 1, "b": 2}')
    assert (status, out.strip()) == (0, "3")
    assert f"its runtime is that of handlergen 0.0.9; the installed one is of {__version__}" in err
    rewrite(packed, put(HANDLER, b"import os\n"))
    assert audit(read_mar(packed)).changed == (f"{HANDLER} is not what handlergen 0.0.9 generates for {CONTRACT}",)


def test_the_bill_of_materials_tells_who_wrote_what(packed: Path) -> None:
    def property_of(name: str, key: str) -> str | None:
        (file,) = [each for each in sbom(read_mar(packed))["components"] if each["name"] == name]
        return next((each["value"] for each in file["properties"] if each["name"] == f"handlergen:{key}"), None)

    def runtime() -> dict[str, object]:
        return sbom(read_mar(packed))["components"][0]  # type: ignore[no-any-return]

    assert [property_of(name, "origin") for name in (WORKER, HANDLER, CONTRACT, "add.py")] == [
        *("handlergen", "handlergen", "metadata", "user"),
    ]
    assert runtime()["purl"] == f"pkg:pypi/handlergen@{__version__}"
    rewrite(packed, put(WORKER))
    assert [property_of(name, "origin") for name in (WORKER, HANDLER)] == ["changed", "handlergen"]
    assert "purl" not in runtime()
    assert f"{WORKER} is changed" in json.dumps(runtime()["pedigree"])


@pytest.mark.parametrize(
    ("name", "content", "kind"),
    [
        ("more/helper.py", b"", "Python"),
        ("model.bin", b"\x80\x04N.", "pickle"),
        ("saved.weights", b"PK\x03\x04" + bytes(26) + b"saved/data.pkl", "pickle"),
        ("objects.npy", b"\x93NUMPY\x01\x00v\x00{'descr': '|O', ", "pickle"),
        ("lib/fast.so.1", b"\x7fELF", "native code"),
        ("tool", b"#!/bin/sh\n", "script"),
        ("labels.json", b"{}", None),
    ],
)
def test_what_else_can_be_executed_is_listed(packed: Path, run: Run, name: str, content: bytes, kind: str) -> None:
    rewrite(packed, put(name, content))
    status, out, _ = run("inspect", str(packed), "--verify")
    assert status == 0
    (line,) = [line for line in out.splitlines() if line.endswith(f"  {name}")]
    assert re.search(rf"\b{kind}\b", line) if kind else re.fullmatch(r" +\S+  \S+ +\S+", line)
    assert ("1 " + kind in out) if kind else ("other files  1 module\n" in out)


def test_every_release_has_its_list_of_the_runtime() -> None:
    """`release_list()` writes it; a runtime that is released does not change any more."""
    released = re.findall(r"^## \[(\d[\w.+-]*)\]", (ROOT / "CHANGELOG.md").read_text(encoding="utf-8"), re.MULTILINE)
    assert {path.stem for path in RELEASES.glob("*.sha256")} == set(released)
    for version in released:
        listed = (RELEASES / f"{version}.sha256").read_text(encoding="utf-8")
        assert re.fullmatch(r"([0-9a-f]{64}  handlergen_runtime/[\w/]+\.py\n)+", listed), version
        assert version != __version__ or listed == release_list()
