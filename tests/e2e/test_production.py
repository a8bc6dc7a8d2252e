"""docs/production.md: its commands run as they stand and in their order; its unit, scrape and proxy with them."""

from __future__ import annotations

import configparser
import contextlib
import json
import os
import re
import shlex
import shutil
import signal
import ssl
import subprocess
from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest
import yaml

from handlergen.server.lifecycle import stop
from handlergen.server.ports import free_port_settings, listeners
from tests.certificates import Authority
from tests.commands import HANDLERGEN, processes_of
from tests.histories import until

pytestmark = pytest.mark.e2e

PAGE = (Path(__file__).resolve().parents[2] / "docs" / "production.md").read_text("utf-8")
BLOCKS = re.findall(r"^```(\w+)\n(.*?)^```$", PAGE, re.MULTILINE | re.DOTALL)
DEFAULT_PORTS = {
    "inference_port": "8080",
    "management_port": "8081",
    "metrics_port": "8082",
    "grpc_inference_port": "7070",
    "grpc_management_port": "7071",
}

MODULE = """
def load(context):
    return 3

def preprocess(data):
    return data["x"]

def predict(inputs, model):
    return inputs * model
"""

NGINX = """
pid nginx.pid; error_log nginx.log; daemon off;
events {{}}
http {{
    access_log off;
    client_body_temp_path t1; proxy_temp_path t2; fastcgi_temp_path t3; uwsgi_temp_path t4; scgi_temp_path t5;
    {server}
}}
"""


class Machine:
    """A directory in place of /srv/models, free ports, and 127.0.0.1 in place of the page's host."""

    def __init__(self, home: Path) -> None:
        self.home = home
        self.ports = free_port_settings()
        self.proxy_port = free_port_settings()["inference_port"]
        self.environ = {**os.environ, "PATH": f"{Path(HANDLERGEN).parent}:{os.environ['PATH']}:/usr/sbin"}
        self.environ |= {"no_proxy": "*"}
        self.ca = ssl.create_default_context(cafile=home / "tls" / "ca.pem")

    def here(self, text: str) -> str:
        """The page's text with this machine's paths, host and ports."""
        flags = " ".join(f"--{name.replace('_', '-')} {port}" for name, port in self.ports.items())
        text = text.replace("handlergen config ", f"handlergen config {flags} ")
        text = text.replace("/srv/models/venv/bin/handlergen", HANDLERGEN).replace("/srv/models", str(self.home))
        text = text.replace("models.example.com", "127.0.0.1").replace("listen 8443", "listen 127.0.0.1:8443")
        for name, port in {**DEFAULT_PORTS, "proxy": "8443"}.items():
            text = re.sub(rf"\b{port}\b", str(self.ports.get(name, self.proxy_port)), text)
        return text

    def shell(self, commands: str) -> str:
        """Run a block of the page; what it printed."""
        output = self.home / "output.txt"  # no pipe: a server that is started would hold it open
        with output.open("w") as file:
            bash = ["bash", "-euo", "pipefail", "-c", commands]
            done = subprocess.run(
                bash, cwd=self.home, env=self.environ, stdout=file, stderr=file, check=False, timeout=500
            )
        assert done.returncode == 0, f"{commands}\n{output.read_text()}"
        return output.read_text()

    def start_unit(self, text: str) -> subprocess.Popen[bytes]:
        """Start a service's command as systemd would."""
        if verifier := shutil.which("systemd-analyze"):
            (self.home / "models.service").write_text(text)
            verify = [verifier, "verify", str(self.home / "models.service")]
            said = subprocess.run(verify, capture_output=True, text=True, check=False, timeout=120)
            assert "models.service" not in said.stderr
        unit = configparser.ConfigParser(interpolation=None)
        unit.optionxform = str  # type: ignore[assignment, method-assign]
        unit.read_string(text)
        service = unit["Service"]
        assert int(service["TimeoutStopSec"]) > 30 + 30  # --drain, and what TorchServe has to end
        name, _, value = service["Environment"].partition("=")
        with (self.home / "journal.txt").open("w") as journal:
            return subprocess.Popen(
                shlex.split(service["ExecStart"]),
                cwd=service["WorkingDirectory"],
                env={**self.environ, name: value},
                stdout=journal,
                stderr=journal,
            )

    @contextlib.contextmanager
    def proxy(self, server: str) -> Iterator[None]:
        """nginx with the page's server."""
        (self.home / "nginx.conf").write_text(NGINX.format(server=server))
        nginx = shutil.which("nginx", path=self.environ["PATH"])
        if nginx is None:
            pytest.skip("nginx is not installed; all that stands before it on the page was run")
        process = subprocess.Popen([nginx, "-e", "nginx.log", "-p", str(self.home), "-c", "nginx.conf"], cwd=self.home)
        try:
            until(lambda: self.proxy_port in listeners())
            yield
        finally:
            process.terminate()
            process.wait(60)

    def ask(self, path: str, **headers: str) -> int:
        """The status of a request through the proxy."""
        url = f"https://127.0.0.1:{self.proxy_port}{path}"
        return httpx.post(url, json={"x": 2}, headers=headers, verify=self.ca, trust_env=False).status_code


@pytest.fixture
def machine(tmp_path: Path) -> Iterator[Machine]:
    for tool in ("openssl", "curl"):
        if shutil.which(tool) is None:
            pytest.skip(f"{tool} is not installed")
    (tmp_path / "tls").mkdir()
    Authority(tmp_path / "tls" / "ca.pem").issue(tmp_path / "tls", "127.0.0.1")
    (tmp_path / "build").mkdir()
    (tmp_path / "build" / "digits.py").write_text(MODULE)
    (tmp_path / "build" / "request.json").write_text(json.dumps({"x": 2}))
    yield Machine(tmp_path)
    for place in (".", "restored", "replica"):
        config = (tmp_path / place / "config.properties").resolve()
        stop(config, drain=0)
        for process in processes_of(config):
            process.kill()


@pytest.mark.timeout(1500)
def test_every_command_of_the_page(machine: Machine) -> None:
    unit = None
    printed: dict[str, str] = {}
    with contextlib.ExitStack() as stack:
        for language, body in BLOCKS:
            text = machine.here(body)
            if language == "ini":
                unit = machine.start_unit(text)
                stack.callback(unit.kill)
            elif language == "yaml":
                scrape(text)
            elif language == "nginx":
                stack.enter_context(machine.proxy(text))
                assert machine.ask("/predictions/digits") == 401
                assert machine.ask("/models", **{"x-api-key": "KEY-OF-A-TEAM"}) == 404
            else:
                assert language == "bash"
                if "handlergen serve" in text and unit and unit.poll() is None:  # the page's next machine
                    unit.send_signal(signal.SIGTERM)
                    assert unit.wait(120) == 0
                printed[body] = machine.shell(text)
    answers = next(text for body, text in printed.items() if "handlergen invoke" in body)
    assert "ready: 1 model version\n66" in answers  # from invoke, then from curl
    assert "ERROR" not in answers
    (restored,) = (text for body, text in printed.items() if "tar -x" in body)
    assert "digits 1.0: 2 of 2 workers READY" in restored
    assert "digits 1.1" not in restored
    assert list(printed.values())[-1].endswith("\n6")


def scrape(prometheus: str) -> None:
    """Ask as Prometheus would with this configuration."""
    (job,) = yaml.safe_load(prometheus)["scrape_configs"]
    (target,) = job["static_configs"][0]["targets"]
    trusted = ssl.create_default_context(cafile=job["tls_config"]["ca_file"])

    def shown() -> bool:  # workers write their counts once a second
        answer = httpx.get(f"{job['scheme']}://{target}/metrics", verify=trusted, trust_env=False)
        return 'handlergen_answers_total{status="200",model="digits"' in answer.text

    until(shown)
