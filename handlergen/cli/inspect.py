"""`handlergen inspect`: show a `.mar`, compare it with what handlergen packs, list what it executes."""

from __future__ import annotations

import dataclasses
import json
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from handlergen.cli import options
from handlergen.cli.archive import listed
from handlergen.cli.examples import show_runs
from handlergen.cli.printing import print_json, warn
from handlergen.errors import HandlergenError
from handlergen.project.names import RUNTIME_PACKAGE

if TYPE_CHECKING:
    from handlergen.archives.audit import Audit
    from handlergen.archives.mar import Mar
    from handlergen.local.examples import ExampleRun
    from handlergen.runtime.contract import Bundle
    from handlergen.runtime.examples import Example

_HINT = "do not serve it unless you know who made it so; `handlergen archive SOURCE` packs the model again"


@click.command("inspect")
@click.argument("mar", type=click.Path(path_type=Path))
@click.option("--all", "all_files", is_flag=True, help="Also list the files of handlergen's runtime.")
@click.option(
    "--verify",
    "verified",
    is_flag=True,
    help="Fail also if the archive's version of handlergen is unknown here, or another program made the archive.",
)
@click.option(
    "--verify-signature",
    "public_key",
    type=options.FILE,
    metavar="PUBKEY",
    help="Fail unless MAR.sig is a signature of MAR with this Ed25519 key (PEM or OpenSSH).",
)
@click.option(
    "--examples",
    "ask_examples",
    is_flag=True,
    help="Also ask the archive's examples, by the installed runtime; exit status 1 if an answer is wrong.",
)
@click.option("--sbom", "as_sbom", is_flag=True, help="Print a software bill of materials (CycloneDX 1.6, JSON).")
@options.json
def command(
    mar: Path,
    *,
    all_files: bool,
    verified: bool,
    public_key: Path | None,
    ask_examples: bool,
    as_sbom: bool,
    as_json: bool,
) -> None:
    """Show the manifest, contract, settings and files of the archive MAR, and which of them are executed.

    The runtime and the generated handler are compared with those of the archive's version of handlergen; a difference
    is an error. Nothing is unpacked. An archive with links, or with absolute, duplicate or escaping names, is refused.

    \b
    Example:
      handlergen inspect model-store/digits.mar --verify
      handlergen inspect digits.mar --json | jq .files
      handlergen inspect digits.mar --sbom > digits.cdx.json
      handlergen inspect digits.mar --verify-signature team.pub
      handlergen inspect digits.mar --examples
    """
    from handlergen.archives.audit import audit
    from handlergen.archives.mar import archived_examples, read_mar
    from handlergen.archives.sbom import sbom
    from handlergen.archives.signing import read_public_key, verify

    if as_json and as_sbom:
        raise click.UsageError("--json and --sbom cannot be combined")
    signature = verify(mar, read_public_key(public_key)) if public_key else None
    try:
        archive = read_mar(mar)
    except HandlergenError as error:
        error.hint = error.hint or _hint(mar)
        raise
    audited = audit(archive)
    examples = archived_examples(mar)
    runs = _asked(mar, examples) if ask_examples and examples else []
    if as_sbom:
        print_json(sbom(archive), ensure_ascii=False)
    elif as_json:
        signed = {"path": str(signature.path), "key": signature.fingerprint} if signature else None
        described = [example.describe() for example in examples]
        asked = {"asked": [run.as_json() for run in runs]} if ask_examples else {}
        report = {**_as_json(archive, audited), "examples": described, **asked, "signature": signed}
        print_json(report, ensure_ascii=False)
    else:
        click.echo(_as_text(archive, audited, examples, all_files=all_files))
        if ask_examples:
            click.echo()
            show_runs(runs)
        if signature:
            click.echo(f"\nvalid signature: {signature.path} with {signature.fingerprint}")
    refusal = audited.refusal(mar, hint=_HINT)
    if refusal is not None and (audited.changed or verified):
        raise refusal
    if refusal is not None and audited.version is not None:
        warn(refusal.message)
    if runs:
        _require_right(runs)


def _asked(mar: Path, examples: Sequence[Example]) -> list[ExampleRun]:
    from handlergen.local.examples import run_examples  # imports torch

    return run_examples(mar, examples)


def _require_right(runs: list[ExampleRun]) -> None:
    from handlergen.local.examples import require_right

    require_right(runs, hint="another library or machine answers differently: do not serve it before you know why")


def _hint(mar: Path) -> str:
    """Return a hint for a path that is not an archive."""
    directory = mar if mar.is_dir() else mar.parent
    found = [path for path in sorted(directory.glob("*.mar")) if path != mar]
    if found:
        return f"archives here: {', '.join(map(str, found))}"
    return "`handlergen archive SOURCE` creates an archive; `handlergen check SOURCE` shows a source's contract"


def _as_json(archive: Mar, audited: Audit) -> dict[str, Any]:
    bundle = archive.bundle
    return {
        "path": str(archive.path),
        "size": archive.size,
        "sha256": archive.sha256(),
        "manifest": archive.manifest,
        "handlergen": json.loads(bundle.to_json()) if bundle else None,
        "model_config": archive.model_config,
        "audit": {"runtime": audited.runtime, "changed": audited.changed, "unverified": audited.unverified},
        "files": [{**dataclasses.asdict(file), "origin": audited.origins[file.name]} for file in archive.files],
    }


def _as_text(archive: Mar, audited: Audit, examples: Sequence[Example], *, all_files: bool) -> str:
    model = archive.manifest.get("model", {})
    lines = [
        f"{archive.path}: {_clean(archive.name)} {_clean(archive.version)}",
        "",
        "manifest",
        *_rows({**model, **{key: value for key, value in archive.manifest.items() if key != "model"}}),
    ]
    if archive.bundle is None:
        lines += ["", "not created by handlergen: no contract"]
    else:
        lines += ["", "contract", *_rows(_contract(archive.bundle)), "", "settings"]
        lines += _rows(json.loads(archive.bundle.to_json())["settings"])
    if archive.model_config:
        lines += ["", "model-config.yaml", *_rows(archive.model_config)]
    if examples:
        lines += ["", "examples", *_rows({each.name: _example(each) for each in examples})]
    notes = _notes(archive, audited)
    lines += ["", "executed", *_rows(_executed(archive, audited, notes))]
    rows, width = listed(((file.size, file.name, file.sha256) for file in archive.files), all_files=all_files)
    longest = max(map(len, notes.values()), default=0)
    lines += ["", f"files ({len(archive.files)}): bytes, SHA-256, how it is executed, name"]
    lines += [
        f"  {size:>{width},}  {sha256:<64}  {notes.get(name, ''):<{longest}}  {_clean(name)}"
        for size, name, sha256 in rows
    ]
    return "\n".join(lines)


def _example(example: Example) -> str:
    answer = "answered" if example.answer is None else example.answer.content_type or example.answer.digest
    size = sum(len(part.body) for part in example.parts.values())
    return f"{example.content_type}, {size:,} bytes -> {answer}"


def _notes(archive: Mar, audited: Audit) -> dict[str, str]:
    """Return how each file can be executed, by its name; nothing for data."""
    bundle = archive.bundle
    module = bundle.contract.module.replace(".", "/") if bundle else ""
    notes = {}
    for file in archive.files:
        origin = audited.origins[file.name]
        if origin == "user":
            own = file.name in (f"{module}.py", f"{module}/__init__.py")
            note = "module" if own else file.executes
        else:
            what = {"handlergen": f"handlergen {audited.version}", "changed": "CHANGED", "unknown": "UNKNOWN"}
            note = what.get(origin)
        if note:
            notes[file.name] = note
    return notes


def _executed(archive: Mar, audited: Audit, notes: dict[str, str]) -> dict[str, str]:
    """Return what a worker executes, or can execute, in a few rows."""
    rows = {}
    if archive.bundle is not None:
        count = sum(name.startswith(f"{RUNTIME_PACKAGE}/") for name in audited.origins)
        states = {
            "handlergen": f"as in handlergen {audited.version}",
            "changed": f"CHANGED: not as in handlergen {audited.version}",
            "unknown": f"UNKNOWN: handlergen {audited.version} is not known here",
        }
        rows["runtime"] = f"{count} files, {states[audited.runtime]}"
    others = Counter(
        notes[file.name] for file in archive.files if audited.origins[file.name] == "user" and file.name in notes
    )
    rows["other files"] = ", ".join(f"{count} {note}" for note, count in others.items()) or "none"
    if archive.requirements:
        rows["requirements"] = f"{len(archive.requirements)}, if the server has install_py_dep_per_model=true"
    return rows


def _contract(bundle: Bundle) -> dict[str, Any]:
    from handlergen.archives.render import ordered_hooks, signature
    from handlergen.inspection.stage_rule import Placement

    contract = bundle.contract
    rows: dict[str, Any] = {"form": contract.form, "module": contract.module}
    if contract.class_name:
        rows["class"] = contract.class_name
    rows.update({role: signature(hook) for role, hook in ordered_hooks(contract).items()})
    rows["model"] = Placement(bundle.settings.predictor, bundle.settings.stages).summary
    return {**rows, "written by": f"handlergen {bundle.handlergen}"}


def _rows(values: Any) -> list[str]:
    width = max((len(_clean(key)) for key in values), default=0)
    return [f"  {_clean(key):<{width}}  {_value_as_text(value)}" for key, value in values.items()]


def _value_as_text(value: Any) -> str:
    return _clean(value) if isinstance(value, str) else json.dumps(value, ensure_ascii=True, default=str)


def _clean(text: Any) -> str:
    """Return untrusted text without the control characters that a terminal would obey."""
    return "".join(character if character.isprintable() else "?" for character in str(text))
