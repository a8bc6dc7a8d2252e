"""`handlergen inspect`: manifest, contract, settings and files of an archive."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from handlergen.cli.options import json_option
from handlergen.cli.printing import listed, print_json
from handlergen.errors import HandlergenError

if TYPE_CHECKING:
    from handlergen.archives.mar import Mar
    from handlergen.runtime.contract import Bundle


@click.command
@click.argument("mar", type=click.Path(path_type=Path))
@click.option("--all", "all_files", is_flag=True, help="Also list the files of handlergen's runtime.")
@click.option(
    "--verify-signature",
    "public_key",
    type=click.Path(dir_okay=False, path_type=Path),
    metavar="PUBKEY",
    help="Fail unless MAR.sig is a signature of MAR with this Ed25519 key (PEM or OpenSSH).",
)
@click.option("--sbom", "as_sbom", is_flag=True, help="Print a software bill of materials (CycloneDX 1.6, JSON).")
@json_option
def command(mar: Path, *, all_files: bool, public_key: Path | None, as_sbom: bool, as_json: bool) -> None:
    """Show the manifest, contract, settings and files of the archive MAR.

    Nothing is unpacked. An archive with links, or with absolute, duplicate or escaping names, is refused.

    \b
    Example:
      handlergen inspect model-store/digits.mar
      handlergen inspect digits.mar --json | jq .files
      handlergen inspect digits.mar --sbom > digits.cdx.json
      handlergen inspect digits.mar --verify-signature team.pub
    """
    from handlergen.archives.mar import read_mar
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
    if as_sbom:
        print_json(sbom(archive), ensure_ascii=False)
    elif as_json:
        signed = {"path": str(signature.path), "key": signature.fingerprint} if signature else None
        print_json({**_as_json(archive), "signature": signed}, ensure_ascii=False)
    else:
        click.echo(_as_text(archive, all_files=all_files))
        if signature:
            click.echo(f"\nvalid signature: {signature.path} with {signature.fingerprint}")


def _hint(mar: Path) -> str:
    """Return a hint for a path that is not an archive."""
    directory = mar if mar.is_dir() else mar.parent
    found = [path for path in sorted(directory.glob("*.mar")) if path != mar]
    if found:
        return f"archives here: {', '.join(map(str, found))}"
    return "`handlergen archive SOURCE` creates an archive; `handlergen check SOURCE` shows a source's contract"


def _as_json(archive: Mar) -> dict[str, Any]:
    bundle = archive.bundle
    return {
        "path": str(archive.path),
        "size": archive.size,
        "sha256": archive.sha256(),
        "manifest": archive.manifest,
        "handlergen": json.loads(bundle.to_json()) if bundle else None,
        "model_config": archive.model_config,
        "files": [dataclasses.asdict(file) for file in archive.files],
    }


def _as_text(archive: Mar, *, all_files: bool) -> str:
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
    rows, width = listed(((file.size, file.name, file.sha256) for file in archive.files), all_files=all_files)
    lines += ["", f"files ({len(archive.files)}): bytes, SHA-256, name"]
    lines += [f"  {size:>{width},}  {sha256:<64}  {_clean(name)}" for size, name, sha256 in rows]
    return "\n".join(lines)


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
    return [f"  {_clean(key):<{width}}  {_shown(value)}" for key, value in values.items()]


def _shown(value: Any) -> str:
    return _clean(value) if isinstance(value, str) else json.dumps(value, ensure_ascii=True, default=str)


def _clean(text: Any) -> str:
    """Return untrusted text without the control characters that a terminal would obey."""
    return "".join(character if character.isprintable() else "?" for character in str(text))
