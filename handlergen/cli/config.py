"""`handlergen config`: write config.properties, or explain it."""

from __future__ import annotations

import textwrap
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from handlergen.cli import options
from handlergen.cli.printing import print_json, warn
from handlergen.server.configuration import DEFAULT_CONFIG, DEFAULT_STORE, archive_command

if TYPE_CHECKING:
    from handlergen.server.properties import ServerSettings


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
@click.option("--force", is_flag=True, help="Overwrite a file with different contents.")
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
@click.option("--no-token-auth", is_flag=True, help="Require no tokens. Only for local experiments.")
@click.option("--model-api", is_flag=True, help="Allow registering and unregistering models at run time.")
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
    help="Queued requests per model.",
)
@click.option("--max-request-size", type=int, default=6_553_500, show_default=True, help="In bytes.")
@click.option("--max-response-size", type=int, default=6_553_500, show_default=True, help="In bytes.")
@click.option("--log-config", default="log4j2.xml", show_default=True, help="Written if it does not exist.")
@click.option("--metrics-config", default="metrics.yaml", show_default=True, help="Written if it does not exist.")
@options.json
def command(
    *,
    output: Path,
    show: bool,
    force: bool,
    model_store: Path,
    no_token_auth: bool,
    install_requirements: bool | None,
    as_json: bool,
    **values: Any,
) -> None:
    """Write TorchServe's config.properties with safe defaults.

    The server listens on 127.0.0.1, requires tokens, downloads no models, and does not log every request. To start it
    without handlergen, run `torchserve --start --ts-config config.properties --ncs` in the file's directory.

    \b
    Example:
      handlergen config --inference-port 9080
      handlergen config --show
    """
    from handlergen.server.configuration import relative_to_config, write_configuration
    from handlergen.server.doctor.configuration import exposures
    from handlergen.server.model_store import configuration_warnings, store_has_requirements
    from handlergen.server.properties import explain, read_properties, server_settings, unknown_keys

    if install_requirements is None:
        install_requirements = store_has_requirements(model_store)
    settings = server_settings(  # `values` are the options that are named like its parameters
        token_authorization=not no_token_auth,
        install_requirements=install_requirements,
        model_store=relative_to_config(model_store, output),
        **values,
    )
    written: list[Path] = []
    if not show:
        written = write_configuration(output, settings, force=force)
    elif output.exists():
        settings = read_properties(output)
    else:
        click.echo(f"there is no {output}; `handlergen config` would write this:", err=True)
    lines = explain(settings)
    warnings = [*unknown_keys(settings), *configuration_warnings(output, settings)]
    warnings += [f"{one.what}. {one.why}" for one in exposures(settings)]
    if not show:
        warnings += _machine_warnings(settings, output, hosts={values["host"], values["metrics_host"]})
    if as_json:
        report = {
            "file": str(output),
            "written": [str(path) for path in written],
            "lines": [asdict(line) for line in lines],
            "warnings": warnings,
        }
        print_json(report)
        return
    if show:
        section = ""
        for line in lines:
            if line.section != section:
                section = line.section
                click.echo(f"\n{section}")
            click.echo(f"  {line.key}={line.value}" + ("" if line.is_default else "   (not the default)"))
            click.echo(textwrap.fill(line.why, 100, initial_indent="      ", subsequent_indent="      "))
    for path in written:
        click.echo(f"wrote {path}")
    warn(*warnings)


def _machine_warnings(settings: ServerSettings, output: Path, *, hosts: set[str]) -> list[str]:
    """Return warnings about addresses or files that this machine lacks."""
    from handlergen.project.settings import shown
    from handlergen.server.ports import why_not_listen

    warnings = []
    for host in sorted(hosts):
        if reason := why_not_listen(host):
            warnings.append(f"a server on this machine cannot listen on {host}: {reason}")
    store = output.resolve().parent / settings.model_store
    if not store.is_dir():
        warnings.append(f"there is no model store {shown(store)} yet; `{archive_command(store)}` creates it")
    for file in (settings.log_config, settings.metrics_config):
        if not (output.resolve().parent / file).is_file():
            warnings.append(f"there is no {shown(output.resolve().parent / file)}, which {shown(output)} names")
    return warnings
