"""`handlergen config`: write config.properties, or explain it."""

from __future__ import annotations

import difflib
import textwrap
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click
from click.core import ParameterSource

from handlergen.cli import options
from handlergen.cli.printing import print_json, warn
from handlergen.server.configuration import DEFAULT_CONFIG, DEFAULT_STORE, archive_command

if TYPE_CHECKING:
    from handlergen.server.properties import ExplainedLine, ServerSettings


_TLS_FILES = ("certificate_file", "private_key_file", "ca_file")


@click.command("config")
@click.option(
    "-o",
    "--output",
    type=options.FILE,
    default=Path(DEFAULT_CONFIG),
    show_default=True,
    help="The file to write. TorchServe must be started in its directory.",
)
@click.option(
    "--show",
    is_flag=True,
    help="Explain every line of the file, or of the defaults when there is no file; write nothing.",
)
@click.option("--force", is_flag=True, help="Change an existing file: the settings that are given, and no other line.")
@click.option("--diff", is_flag=True, help="Print the lines that would change; write nothing.")
@click.option(
    "--model-store",
    type=options.DIRECTORY,
    default=Path(DEFAULT_STORE),
    show_default=True,
    help="Directory of the archives.",
)
@click.option("--host", default="127.0.0.1", show_default=True, help="Host name or IPv4 address for predictions.")
@click.option("--inference-port", type=int, default=8080, show_default=True)
@click.option("--management-port", type=int, default=8081, show_default=True, help="Always on 127.0.0.1.")
@click.option("--metrics-port", type=int, default=8082, show_default=True)
@click.option(
    "--metrics-host",
    default="127.0.0.1",
    show_default=True,
    help="Host name or IPv4 address for a Prometheus elsewhere. Metrics need no token.",
)
@click.option("--grpc-inference-port", type=int, default=7070, show_default=True)
@click.option("--grpc-management-port", type=int, default=7071, show_default=True, help="Always on 127.0.0.1.")
@click.option(
    "--tls-cert",
    "certificate_file",
    type=options.FILE,
    help="Use TLS for REST and gRPC, with this certificate: PEM, with those between it and its authority.",
)
@click.option("--tls-key", "private_key_file", type=options.FILE, help="Its key: RSA, PKCS#8, not encrypted.")
@click.option(
    "--tls-ca",
    "ca_file",
    type=options.FILE,
    help="The authority's certificate, for handlergen's own commands.  [default: SSL_CERT_FILE, else the system's]",
)
@click.option(
    "--token-auth/--no-token-auth",
    "token_authorization",
    default=True,
    help="Require a token for every call; without tokens only for local experiments.  [default: --token-auth]",
)
@click.option(
    "--token-minutes",
    "token_expiration_min",
    type=float,
    default=60.0,
    show_default=True,
    help="Minutes until a token ends.",
)
@click.option(
    "--model-api/--no-model-api",
    default=False,
    help="Allow registering and unregistering models at run time.  [default: --no-model-api]",
)
@click.option(
    "--install-requirements/--no-install-requirements",
    default=None,
    help="Install an archive's requirements.txt when its model is loaded.  [default: if an archive has one]",
)
@click.option(
    "--queue-size",
    "job_queue_size",
    type=int,
    default=100,
    show_default=True,
    help="Queued requests per model of another tool. An archive of handlergen has its own: queue_size.",
)
@click.option("--max-request-size", type=int, default=6_553_500, show_default=True, help="In bytes.")
@click.option("--max-response-size", type=int, default=6_553_500, show_default=True, help="In bytes.")
@click.option("--log-config", default="log4j2.xml", show_default=True, help="Written if it does not exist.")
@click.option("--metrics-config", default="metrics.yaml", show_default=True, help="Written if it does not exist.")
@options.json
def command(*, output: Path, show: bool, force: bool, diff: bool, as_json: bool, **values: Any) -> None:
    """Write TorchServe's config.properties with safe defaults, or change settings in it.

    The server listens on 127.0.0.1, requires tokens, downloads no models, and does not log every request. In an
    existing file, only the settings that are given change, with --force. To start the server without handlergen, run
    `torchserve --start --ts-config config.properties --ncs` in the file's directory.

    \b
    Example:
      handlergen config --inference-port 9080
      handlergen config --host models.example.com --tls-cert cert.pem --tls-key key.pem
      handlergen config --model-api --force
      handlergen config --show
    """
    from handlergen.server.certificates import with_tls_name
    from handlergen.server.configuration import configuration_texts, relative_to_config, write_configuration
    from handlergen.server.doctor.configuration import exposures
    from handlergen.server.model_store import configuration_warnings, store_has_requirements
    from handlergen.server.properties import changes, explain, read_properties, server_settings, unknown_keys

    origin = click.get_current_context().get_parameter_source
    given = {name: value for name, value in values.items() if origin(name) is not ParameterSource.DEFAULT}
    for name in given.keys() & {"model_store", *_TLS_FILES}:
        given[name] = relative_to_config(given[name], output)
    old = read_properties(output) if output.exists() else None
    if old is None:
        given.setdefault("model_store", relative_to_config(values["model_store"], output))
        given.setdefault("install_requirements", store_has_requirements(values["model_store"]))
    settings = old if show and old is not None else server_settings(old, **given)
    if settings.certificate_file and not show and given.keys() & {"host", *_TLS_FILES}:
        settings = with_tls_name(settings, output.resolve().parent)
    written: list[Path] = []
    if diff and not as_json:
        _show_diff(configuration_texts(output, settings))
        return
    if not (show or diff):
        written = write_configuration(output, settings, force=force)
    elif old is None:
        click.echo(f"there is no {output}; `handlergen config` would write this:", err=True)
    changed = changes(old, settings) if old is not None else {}
    lines = explain(settings)
    warnings = [*unknown_keys(settings), *configuration_warnings(output, settings)]
    warnings += [f"{one.what}. {one.why}" for one in exposures(settings)]
    if not show:
        warnings += _machine_warnings(settings, output)
    if as_json:
        report = {
            "file": str(output),
            "written": [str(path) for path in written],
            "changed": {key: {"from": before, "to": after} for key, (before, after) in changed.items()},
            "lines": [asdict(line) for line in lines],
            "warnings": warnings,
        }
        print_json(report)
        return
    if show:
        _show_lines(lines)
    for key, (before, after) in changed.items():
        click.echo(f"{key}: {before or '(none)'} -> {after or '(none)'}")
    for path in written:
        click.echo(f"wrote {path}")
    if old is not None and not show and output not in written:
        click.echo(f"{output} stays as it is")
    warn(*warnings)


def _show_diff(texts: dict[Path, tuple[str, str]]) -> None:
    for path, (before, after) in texts.items():
        lines = difflib.unified_diff(before.splitlines(True), after.splitlines(True), str(path), str(path), n=1)
        click.echo("".join(lines), nl=False)


def _show_lines(lines: list[ExplainedLine]) -> None:
    section = ""
    for line in lines:
        if line.section != section:
            section = line.section
            click.echo(f"\n{section}")
        click.echo(f"  {line.key}={line.value}" + ("" if line.is_default else "   (not the default)"))
        click.echo(textwrap.fill(line.why, 100, initial_indent="      ", subsequent_indent="      "))


def _machine_warnings(settings: ServerSettings, output: Path) -> list[str]:
    """Return warnings about addresses or files that this machine lacks."""
    from handlergen.project.settings import shown
    from handlergen.server.ports import why_not_listen
    from handlergen.server.properties import host_and_port

    warnings = []
    for host in sorted({host_and_port(each)[0] for each in (settings.inference_address, settings.metrics_address)}):
        if reason := why_not_listen(host):
            warnings.append(f"a server on this machine cannot listen on {host}: {reason}")
    store = output.resolve().parent / settings.model_store
    if not store.is_dir():
        warnings.append(f"there is no model store {shown(store)} yet; `{archive_command(store)}` creates it")
    for file in (settings.log_config, settings.metrics_config):
        if not (output.resolve().parent / file).is_file():
            warnings.append(f"there is no {shown(output.resolve().parent / file)}, which {shown(output)} names")
    return warnings
