"""Archives and servers to measure: handlergen's, and the ones somebody would make by hand."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import sysconfig
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager, nullcontext
from pathlib import Path
from typing import Any, NamedTuple

from handlergen.archives.build import archive
from handlergen.server.configuration import write_configuration
from handlergen.server.lifecycle import serve
from handlergen.server.ports import free_port_settings
from handlergen.server.properties import server_settings

HANDLERS = Path(__file__).parent.parent / "handlers"
_TIMEOUT_S = 600.0

STOCK = {"log_config": "", "metrics_mode": "log", "metrics_config": "", "system_metrics_cmd": ""}
"""What TorchServe does unless told otherwise about logs; its metrics go to logs too. All else is as handlergen's."""


class Server(NamedTuple):
    """A running TorchServe: the address of its predictions, its frontend's process, its configuration."""

    address: tuple[str, int]
    pid: int
    config: Path


class Stand:
    """A directory with a model store, to start servers in.

    Args:
        directory: Empty, and the caller's to remove.
    """

    def __init__(self, directory: Path) -> None:
        self._directory = directory
        self.store = directory / "model-store"
        self.store.mkdir()
        self.trace_dir = directory / "spans"
        self.trace_dir.mkdir()

    def archive(
        self,
        name: str,
        module: str,
        *,
        workers: int,
        batch_size: int,
        config: Mapping[str, Any],
        **settings: Any,
    ) -> None:
        """Archive a module of `handlers/` with handlergen; `settings` are more of its settings."""
        archive(
            HANDLERS / f"{module}.py",
            model_store=self.store,
            name=name,
            workers_per_device=workers,
            batch_size=batch_size,
            config=dict(config),
            devices="cpu",
            **settings,
        )

    def archive_by_hand(
        self,
        name: str,
        handler: str,
        *,
        workers: int,
        batch_size: int,
        config: Mapping[str, Any],
        extra_files: tuple[str, ...] = (),
    ) -> None:
        """Archive a hand-written handler of `handlers/` with torch-model-archiver, under the same settings."""
        model_config = {
            "minWorkers": workers,
            "maxWorkers": workers,
            "batchSize": batch_size,
            "maxBatchDelay": 1,
            "responseTimeout": 120,
            "startupTimeout": 300,
            "deviceType": "cpu",
            "handler": dict(config),
        }
        config_file = self._directory / f"{name}.yaml"
        config_file.write_text(json.dumps(model_config))  # JSON is YAML
        # It deletes $TMPDIR/NAME before it starts.
        private = self._directory / f"archiver-{name}"
        private.mkdir()
        subprocess.run(
            [
                Path(sysconfig.get_path("scripts")) / "torch-model-archiver",
                *("--model-name", name, "--version", "1.0", "--export-path", self.store),
                *("--handler", HANDLERS / f"{handler}.py", "--config-file", config_file),
                *(("--extra-files", ",".join(str(HANDLERS / file) for file in extra_files)) if extra_files else ()),
            ],
            check=True,
            stdout=subprocess.DEVNULL,
            env=os.environ | {"TMPDIR": str(private)},
        )

    @contextmanager
    def server(
        self,
        *,
        stock_log: bool = False,
        trace: bool = False,
        name: str = "handlergen",
        console_read: bool = False,
    ) -> Iterator[Server]:
        """Run TorchServe over the model store.

        Token authorization is off: it costs every subject the same, and is not what is measured.

        Args:
            stock_log: With TorchServe's own log configuration instead of handlergen's.
            trace: Record spans in `trace_dir`.
            name: Of its directory; two that run at once need two.
            console_read: What it prints goes through a pipe to a program that reads it, as in a container, and not
                into a file.

        Raises:
            HandlergenError: It did not start.
        """
        # A log4j2.xml in the working directory would be picked up: each kind of server has its own directory.
        directory = self._directory / ("stock" if stock_log else name)
        directory.mkdir(exist_ok=True)
        settings = server_settings(
            token_authorization=False,
            model_store=str(self.store),
            **(STOCK if stock_log else {}),
            **free_port_settings(),
        )
        write_configuration(directory / "config.properties", settings, force=True)
        environ = {name: value for name, value in os.environ.items() if name != "HANDLERGEN_TRACE_DIR"}
        # Its own locks: a model served elsewhere on this machine must not take turns with the measured ones.
        environ["HANDLERGEN_STATE_DIR"] = str(self._directory / "state")
        if trace:
            environ["HANDLERGEN_TRACE_DIR"] = str(self.trace_dir)
        with ExitStack() as stack:
            with _printing_to_a_reader(stack) if console_read else nullcontext():
                running = stack.enter_context(
                    serve(
                        directory / "config.properties",
                        timeout=_TIMEOUT_S,
                        environ=environ,
                        console=console_read,
                    )
                )
            yield Server(running.settings.addresses()["inference"], running.pid, directory / "config.properties")


@contextmanager
def _printing_to_a_reader(stack: ExitStack) -> Iterator[None]:
    """What this process starts meanwhile prints into a pipe, whose reader ends with the last of them.

    Args:
        stack: Waits for that.
    """
    reader = subprocess.Popen(["cat"], stdin=subprocess.PIPE, stdout=subprocess.DEVNULL)
    stack.callback(reader.wait)
    assert reader.stdin is not None
    sys.stdout.flush()
    before = os.dup(1)
    try:
        os.dup2(reader.stdin.fileno(), 1)
        yield
    finally:
        os.dup2(before, 1)
        os.close(before)
        reader.stdin.close()
