"""Hostile archives and settings at every verb that reads them: refused, and nothing written or run before."""

from __future__ import annotations

import io
import json
import re
import stat
import struct
import tempfile
import zipfile
import zlib
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pytest

from handlergen.archives.build import archive
from handlergen.archives.mar import unpack
from handlergen.errors import HandlergenError

# Each is a good archive with one thing changed.

Run = Callable[..., tuple[int, str, str]]
Make = Callable[[Path], bytes]
"""The path of a good archive to the bytes of a hostile one."""


def edited(
    *added: tuple[str | zipfile.ZipInfo, bytes],
    changed: Mapping[str, bytes] | None = None,
    dropped: str = "",
    method: int = zipfile.ZIP_STORED,
) -> Make:
    """With further entries, other contents, or one entry less."""

    def make(good: Path) -> bytes:
        output = io.BytesIO()
        with zipfile.ZipFile(good) as source, zipfile.ZipFile(output, "w", method) as target:
            for info in source.infolist():
                if info.filename != dropped:
                    target.writestr(info, (changed or {}).get(info.filename, source.read(info)))
            for name, content in added:
                target.writestr(name, content, method)
        return output.getvalue()

    return make


def renamed(before: str, after: bytes, *contents: tuple[str, bytes]) -> Make:
    """With an entry whose name zipfile would not write, put in its place afterwards."""
    assert len(before.encode()) == len(after)
    added = contents or ((before, b"x"),)
    return lambda good: edited(*added)(good).replace(before.encode(), after)


def with_mode(name: str, mode: int, content: bytes = b"/etc/passwd") -> Make:
    info = zipfile.ZipInfo(name)
    info.create_system = 3
    info.external_attr = (mode | 0o777) << 16
    return edited((info, content))


def flagged(bit: int) -> Make:
    """With a bit set in the flags of the last entry, in both of its headers."""

    def make(good: Path) -> bytes:
        data = bytearray(edited(("last.txt", b"x"))(good))
        for signature, offset in ((b"PK\x03\x04", 6), (b"PK\x01\x02", 8)):
            data[data.rindex(signature) + offset] |= bit
        return bytes(data)

    return make


def deflated(content: bytes) -> bytes:
    packer = zlib.compressobj(9, zlib.DEFLATED, -zlib.MAX_WBITS)
    return packer.compress(content) + packer.flush()


def swollen(good: Path) -> bytes:
    """What says that three gigabytes come out of three kilobytes."""
    packed = deflated(bytes(1 << 20)) * 3
    return with_entry("zeros", packed, size=3 << 30, crc=0, method=8)(good)


def lying(good: Path) -> bytes:
    """A hundred megabytes behind a header that says ten bytes."""
    return with_entry("zeros", deflated(bytes(100 << 20)), size=10, crc=zlib.crc32(bytes(10)), method=8)(good)


def with_entry(
    name: str, packed: bytes, *, size: int, crc: int, method: int = 0, flags: int = 0, local: str = ""
) -> Make:
    """With an entry written byte by byte; `local` is its name in its own header."""

    def make(good: Path) -> bytes:
        data = good.read_bytes()
        with zipfile.ZipFile(good) as opened:
            start = opened.start_dir
        end = data.rindex(b"PK\x05\x06")
        own = (local or name).encode()
        sizes = (0, 0, 0) if flags & 8 else (crc, len(packed), size)
        header = struct.pack("<4s5H3L2H", b"PK\x03\x04", 20, flags, method, 0, 33, *sizes, len(own), 0) + own
        central = struct.pack(
            "<4s6H3L5H2L", b"PK\x01\x02", 788, 20, flags, method, 0, 33, crc, len(packed), size,
            len(name), 0, 0, 0, 0, 0o100644 << 16, start,
        ) + name.encode()  # fmt: skip
        return with_directory(data[:start] + header + packed, data[start:end] + central, data[end:])

    return make


def with_directory(entries: bytes, directory: bytes, end: bytes, more: int = 1) -> bytes:
    count = struct.unpack_from("<H", end, 10)[0] + more
    tail = struct.pack("<4s4H2LH", b"PK\x05\x06", 0, 0, count, count, len(directory), len(entries), 0)
    return entries + directory + tail


def plain(name: str, content: bytes) -> bytes:
    """An entry's header and content, as they stand before the central directory."""
    fields = (20, 0, 0, 0, 33, zlib.crc32(content), len(content), len(content), len(name), 0)
    return struct.pack("<4s5H3L2H", b"PK\x03\x04", *fields) + name.encode() + content


def unlisted(good: Path) -> bytes:
    """An entry that TorchServe unpacks and the central directory does not name."""
    data = good.read_bytes()
    with zipfile.ZipFile(good) as opened:
        start = opened.start_dir
    end = data.rindex(b"PK\x05\x06")
    return with_directory(data[:start] + plain("../evil.py", b"x"), data[start:end], data[end:], 0)


def unlisted_inside(good: Path) -> bytes:
    """The same, hidden behind the end of a deflated stream but within its entry's bytes."""
    packed = deflated(b"x")
    packed += struct.pack("<4s3L", b"PK\x07\x08", zlib.crc32(b"x"), len(packed), 1)
    packed += plain("../evil.py", b"x")
    return with_entry("a.txt", packed, size=1, crc=zlib.crc32(b"x"), method=8, flags=8)(good)


def listed_twice(good: Path) -> bytes:
    """Two names for the same bytes: of such entries a few megabytes unpack to petabytes."""
    data = good.read_bytes()
    with zipfile.ZipFile(good) as opened:
        start = opened.start_dir
        info = max(opened.infolist(), key=lambda info: info.header_offset)
    end = data.rindex(b"PK\x05\x06")
    central = data[data.rindex(b"PK\x01\x02", start, end) : end]
    other = info.filename[:-1] + "_"
    return with_directory(
        data[:start], data[start:end] + central.replace(info.filename.encode(), other.encode()), data[end:]
    )


def manifest(**changes: Any) -> Make:
    """With other values in the manifest's `model`."""

    def make(good: Path) -> bytes:
        with zipfile.ZipFile(good) as opened:
            values = json.loads(opened.read("MAR-INF/MANIFEST.json"))
        values["model"].update(changes)
        return edited(changed={"MAR-INF/MANIFEST.json": json.dumps(values).encode()})(good)

    return make


def contract(change: Callable[[dict[str, Any]], object]) -> Make:
    """With other values in `handlergen.json`."""

    def make(good: Path) -> bytes:
        with zipfile.ZipFile(good) as opened:
            values = json.loads(opened.read("handlergen.json"))
        change(values)
        return edited(changed={"handlergen.json": json.dumps(values).encode()})(good)

    return make


def setting(key: str, value: Any) -> Make:
    return contract(lambda values: values["settings"].update({key: value}))


def found(key: str, value: Any) -> Make:
    return contract(lambda values: values["contract"].update({key: value}))


def text(name: str, content: str) -> Make:
    return edited(changed={name: content.encode()})


YAML_BOMB = "a: &a [x,x,x,x,x,x,x,x,x]\n" + "".join(
    f"{name}: &{name} [{','.join([f'*{before}'] * 9)}]\n" for before, name in zip("abcdefgh", "bcdefghi", strict=True)
)

NAMES: dict[str, tuple[Make, str]] = {
    "parent": (edited(("../evil.py", b"x")), "leads out of the archive"),
    "parent inside": (edited(("a/../../evil.py", b"x")), "leads out of the archive"),
    "absolute": (edited(("/etc/cron.d/evil", b"x")), "absolute"),
    "drive": (edited(("C:evil.py", b"x")), "absolute"),
    "backslash": (edited(("..\\evil.py", b"x")), "backslash"),
    "NUL": (renamed("evil.pyX.txt", b"evil.py\0.txt"), "control character"),
    "escape": (edited(("\x1b[2Jevil", b"x")), "control character"),
    "C1 control": (edited(("\x9b2Jevil", b"x")), "control character"),
    "dot": (edited(("./evil.py", b"x")), "not a plain relative path"),
    "no name": (edited(("a//b", b"x")), "not a plain relative path"),
    "no text": (renamed("eviü.py", b"evi\xff\xfe.py"), "not an archive, or it is damaged"),
    "long part": (edited(("a" * 256, b"x")), "too long"),
    "deep": (edited(("a/" * 100 + "b", b"x")), "too long"),
    "symbolic link": (with_mode("evil", stat.S_IFLNK), "a link or a special file"),
    "named pipe": (with_mode("evil", stat.S_IFIFO), "a link or a special file"),
    "twice": (renamed("b.py", b"a.py", ("a.py", b"1"), ("b.py", b"2")), "is a duplicate"),
    "case": (edited(("a.py", b"1"), ("A.py", b"2")), "is a duplicate"),
    "accents": (edited(("\u00e9.py", b"1"), ("e\u0301.py", b"2")), "is a duplicate"),
    "second manifest": (renamed("MAR-INF/MANIFEST.jsoX", b"MAR-INF/MANIFEST.json"), "is a duplicate"),
    "file as directory": (edited(("a", b"1"), ("a/b", b"2")), "is inside a file"),
    "directory as file": (edited(("a/b", b"2"), ("a", b"1")), "both a file and a directory"),
}  # fmt: skip

CONTENTS: dict[str, tuple[Make, str]] = {
    "encrypted": (flagged(1), "is encrypted"),
    "bzip2": (edited(("a", b"x" * 99), method=zipfile.ZIP_BZIP2), "a compression that TorchServe cannot read"),
    "bomb": (swollen, "it would unpack"),
    "lying bomb": (lying, "more than the 10 bytes that it declares"),
    "overlapping": (listed_twice, "belong to no entry, or to two"),
    "two names": (with_entry("good.py", b"x", size=1, crc=zlib.crc32(b"x"), local="evil.py"), "another name"),
    "unlisted": (unlisted, "belong to no entry, or to two"),
    "unlisted inside": (unlisted_inside, "ends before its declared end"),
    "something in front": (lambda good: b"#!/bin/sh\nrm -rf ~\n" + good.read_bytes(), "belong to no entry"),
    "stored with two sizes": (with_entry("a", b"xy", size=1, crc=zlib.crc32(b"x")), "two different sizes"),
    "wrong CRC": (with_entry("a", b"x", size=1, crc=1), "bad CRC-32"),
    "no deflate": (with_entry("a", b"\xff" * 9, size=9, crc=1, method=8), "cannot be unpacked"),
    "cut deflate": (with_entry("a", deflated(b"abc" * 99)[:-4], size=297, crc=1, method=8), "cut off"),
    "truncated": (lambda good: good.read_bytes()[:-30], "not an archive, or it is damaged"),
    "half": (lambda good: good.read_bytes()[: good.stat().st_size // 2], "not an archive, or it is damaged"),
    "empty": (lambda _: b"", "not an archive"),
    "garbage": (lambda _: b"PK\x03\x04" + bytes(range(256)) * 9, "not an archive"),
    "no manifest": (edited(dropped="MAR-INF/MANIFEST.json"), "not a TorchServe archive"),
}  # fmt: skip

TEXTS: dict[str, tuple[Make, str]] = {
    "handler of a shell": (manifest(handler="m.py; touch canary"), "is not a handler"),
    "handler of a shell, quoted": (manifest(handler="$(touch canary).py"), "is not a handler"),
    "handler elsewhere": (manifest(handler="../../evil.py"), "leads out of the archive"),
    "handler that is none": (manifest(handler=["m.py"]), "not a string"),
    "model name of a shell": (manifest(modelName="m`touch canary`"), "not a valid model name"),
    "model name elsewhere": (manifest(modelName="../m"), "not a valid model name"),
    "version in URLs": (manifest(modelVersion="1.0/../../models"), "not a valid model version"),
    "configuration elsewhere": (manifest(configFile="/etc/passwd"), "absolute"),
    "requirements elsewhere": (manifest(requirementsFile="../r.txt"), "leads out of the archive"),
    "manifest with doubled keys": (text("MAR-INF/MANIFEST.json", '{"model": {}, "model": {}}'), "duplicate key"),
    "deep manifest": (text("MAR-INF/MANIFEST.json", '{"a":' + "[" * 500 + "]" * 500 + "}"), "nested more than"),
    "very deep manifest": (text("MAR-INF/MANIFEST.json", "[" * 200_000), "nested too deeply"),
    "large manifest": (text("MAR-INF/MANIFEST.json", " " * (17 << 20)), "17,825,792 bytes"),
    "YAML aliases": (text("model-config.yaml", YAML_BOMB), r"alias \*a is not supported"),
    "YAML depth": (text("model-config.yaml", "a: " + "[" * 5000), "nested more than 64 deep"),
    "YAML blocks": (text("model-config.yaml", "- " * 5000), "nested more than 64 deep"),
    "YAML size": (text("model-config.yaml", "a: x\n" * 300_000), "characters"),
    "YAML object": (text("model-config.yaml", "a: !!python/object/apply:os.system [touch canary]"), "not YAML"),
    "YAML number": (text("model-config.yaml", "a: 1" + ":1" * 200_000), "digits is not supported"),
    "YAML keys": (text("model-config.yaml", "minWorkers: 1\nminWorkers: 2\n"), "duplicate key"),
    "no contract": (text("handlergen.json", "[]"), "is not a JSON object"),
    "hooks that are none": (found("hooks", []), "archive the model again"),
    "unknown form": (found("form", "pickle"), "no form"),
    "module of Python": (found("module", "os"), "not in the archive"),
    "module elsewhere": (found("module", "..evil"), "is not a valid name"),
    "module of a shell": (found("module", "m; import os"), "is not a valid name"),
    "hook that is code": (contract(lambda v: v["contract"]["hooks"]["predict"].update(name="a()")), "not a valid name"),
    "stages that are none": (found("details", {"stages": 5}), "its stages are not a list of models"),
    "stage without a type": (found("details", {"stages": [{"file": "m", "shown": "m"}]}), "not a list of models"),
    "contract's further key": (found("more", 1), "archive the model again"),
    "endless timeout": (setting("lock_timeout_s", float("1e400")), "is not a JSON number"),
    "huge timeout": (setting("lock_timeout_s", 1e300), "lock_timeout_s"),
    "negative timeout": (setting("lock_timeout_s", -1), "lock_timeout_s"),
    "timeout of text": (setting("lock_timeout_s", "60"), "lock_timeout_s"),
    "negative size": (setting("max_response_bytes", -1), "max_response_bytes"),
    "huge size": (setting("max_response_bytes", 10**300), "max_response_bytes"),
    "unknown batch": (setting("batch", {"each": 1}), "batch"),
    "weights elsewhere": (setting("weights", "/etc/passwd"), "not in the archive"),
    "secret that is none": (setting("secrets", [1]), "secrets"),
    "configuration that is none": (setting("config", 5), "config"),
    "deep configuration": (setting("config", json.loads('{"a":' * 300 + "1" + "}" * 300)), "nested more than"),
    "name of a shell": (setting("name", "m;touch canary"), "name"),
    "missing setting": (contract(lambda values: values["settings"].pop("lock")), "archive the model again"),
    "version that is none": (contract(lambda values: values.update(handlergen="\x1b[2J")), "not a version"),
}  # fmt: skip

HOSTILE = {**NAMES, **CONTENTS, **TEXTS}


SOURCE = """
import os
from pathlib import Path

Path(os.environ["CANARY"]).touch()

def predict(a):
    return a
"""

VERBS = {
    "inspect": ["inspect", "evil.mar"],
    "inspect as JSON": ["inspect", "evil.mar", "--json"],
    "predict": ["predict", "evil.mar", "[1]"],
    "map": ["map", "evil.mar", "rows.jsonl", "-o", "out.jsonl"],
}


@pytest.fixture(scope="module")
def good(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A good archive of a module that leaves a canary when it is imported."""
    home = tmp_path_factory.mktemp("good")
    (home / "chirps.py").write_text(SOURCE)
    return archive(home / "chirps.py", model_store=home, environ={}, devices="cpu").path


@pytest.fixture
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The working directory, with the temp directory in it."""
    (tmp_path / "temp").mkdir()
    (tmp_path / "rows.jsonl").write_text("[1]\n")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("CANARY", str(tmp_path / "canary"))
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path / "temp"))
    return tmp_path


def contents(directory: Path) -> dict[str, bytes | None]:
    return {
        str(path.relative_to(directory)): path.read_bytes() if path.is_file() else None for path in directory.rglob("*")
    }


@pytest.mark.parametrize("case", HOSTILE)
@pytest.mark.filterwarnings("ignore:Duplicate name")
def test_hostile_archives_are_refused_by_every_verb(case: str, good: Path, place: Path, run: Run) -> None:
    make, reason = HOSTILE[case]
    (place / "evil.mar").write_bytes(make(good))
    before = contents(place)
    for verb, command in VERBS.items():
        status, out, err = run(*command)
        printed = out + err
        assert status == 1, (verb, printed)
        assert printed.startswith("Error: "), (verb, printed)
        assert re.search(reason, printed), (verb, printed)
        assert len(printed) < 4000
        assert all(character.isprintable() or character == "\n" for character in printed), repr(printed)
        assert contents(place) == before, verb


@pytest.mark.parametrize("case", {**NAMES, **CONTENTS})
@pytest.mark.filterwarnings("ignore:Duplicate name")
def test_unpacking_alone_refuses_what_leads_astray(case: str, good: Path, place: Path) -> None:
    """Contents are read while they are written, so that a damaged one may be noticed late; a name may not."""
    make, reason = HOSTILE[case]
    (place / "evil.mar").write_bytes(make(good))
    with pytest.raises(HandlergenError) as caught:
        unpack(place / "evil.mar", place / "out")
    if case in NAMES:
        assert re.search(reason, caught.value.message)
        assert not (place / "out").exists()
    assert not list(place.rglob("evil.py"))


@pytest.mark.parametrize("verb", VERBS)
def test_the_same_archive_unchanged_is_taken(verb: str, good: Path, place: Path, run: Run) -> None:
    """The control: without the one change the verbs succeed, and those that run the model leave the canary."""
    (place / "evil.mar").write_bytes(edited()(good))
    status, out, err = run(*VERBS[verb])
    printed = out + err
    assert status == 0, printed
    assert (place / "canary").exists() == (verb in ("predict", "map"))


SETTINGS: dict[str, tuple[str, str]] = {
    "aliases": (YAML_BOMB, r"the alias \*a is not supported here"),
    "depth": ("config: " + "[" * 5000, "nested more than 64 deep"),
    "size": ("name: m\n" * 200_000, "too many for a settings file"),
    "object": ("name: !!python/object/apply:os.system [touch canary]", "not valid YAML"),
    "number": ("batch_size: 1" + ":1" * 200_000, "digits is not supported"),
    "doubled keys": ("name: m\nname: n\n", "duplicate key `name`"),
    "several documents": ("name: m\n---\nname: n\n", "not valid YAML"),
    "no text": ("name: \0", "not valid YAML"),
    "name of a shell": ("name: m;touch canary", "not a valid model name"),
    "name elsewhere": ("name: ../../m", "not a valid model name"),
    "version elsewhere": ("version: 1/../2", "not a valid model version"),
    "endless timeout": ("lock_timeout_s: .inf", "lock_timeout_s"),
    "huge timeout": ("lock_timeout_s: 1.0e+300", "lock_timeout_s"),
}

#: Only `archive` looks for the files.
FILES = {"extra file of a shell": ('extra_files: ["$(touch canary)"]', "does not exist")}


@pytest.mark.parametrize(
    ("case", "verb"),
    [(case, verb) for case in SETTINGS for verb in ("archive", "check", "predict", "generate")]
    + [("extra file of a shell", "archive")],
)
def test_hostile_settings_are_refused(case: str, verb: str, place: Path, run: Run) -> None:
    text, reason = {**SETTINGS, **FILES}[case]
    (place / "project").mkdir()
    (place / "project" / "m.py").write_text(SOURCE)
    (place / "project" / "handlergen.yaml").write_text(text)
    before = contents(place)
    status, out, err = run(verb, "project", *(["[1]"] if verb == "predict" else []))
    printed = out + err
    assert status in (1, 3), printed
    assert re.search(reason, printed), printed
    assert contents(place) == before


def test_a_hostile_truss_configuration_is_refused(place: Path, run: Run) -> None:
    (place / "project" / "model").mkdir(parents=True)
    (place / "project" / "model" / "model.py").write_text("class Model:\n    def predict(self, x): return x\n")
    (place / "project" / "config.yaml").write_text(YAML_BOMB)
    status, out, err = run("archive", "project")
    printed = out + err
    assert status in (1, 3)
    assert "the alias *a is not supported here" in printed
    assert not (place / "model-store").exists()
