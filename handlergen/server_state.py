"""What `serve` writes down so that `stop` and `status` find the server from another shell."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass
from pathlib import Path

import psutil

STATE_DIR = ".handlergen"
MARKER = "HANDLERGEN_SERVER"
"""Environment variable that every process of a server carries: the frontend, its workers, their children."""

TEMP_PREFIX = "handlergen-"
_CREATE_TIME_SLACK_S = 1.0


@dataclass(frozen=True)
class ServerState:
    """A server that was started here.

    Attributes:
        pid: The frontend (Java).
        created: Its start, seconds since the epoch: tells it from a later process with the same pid.
        marker: Value of `MARKER` in its processes' environment.
        config: Its config.properties, absolute.
        temp_dir: Its own temp directory, removed when it stops.
        console: What the frontend printed.
        state_dir: HANDLERGEN_STATE_DIR of its processes; empty when it was not set.
    """

    pid: int
    created: float
    marker: str
    config: str
    temp_dir: str
    console: str
    state_dir: str = ""

    def running(self) -> bool:
        """Whether that very process is alive."""
        try:
            process = psutil.Process(self.pid)
            return (
                abs(process.create_time() - self.created) < _CREATE_TIME_SLACK_S
                and process.status() != psutil.STATUS_ZOMBIE
            )
        except psutil.Error:
            return False


def state_path(config: Path) -> Path:
    """Where the state of the server on this configuration is kept: `.handlergen/` beside it."""
    return config.resolve().parent / STATE_DIR / f"{config.name}.json"


def read_state(config: Path) -> ServerState | None:
    """The recorded state, None when there is none or it is not readable as one."""
    try:
        return ServerState(**json.loads(state_path(config).read_text("utf-8")))
    except (OSError, ValueError, TypeError):
        return None


def write_state(state: ServerState) -> None:
    """Record the state, readable by this user only. Raises OSError."""
    path = state_path(Path(state.config))
    path.parent.mkdir(mode=0o700, exist_ok=True)
    temporary = path.with_suffix(".tmp")
    temporary.write_text(json.dumps(asdict(state), indent=2) + "\n", "utf-8")
    temporary.chmod(0o600)
    temporary.replace(path)


def running_neighbours(config: Path) -> list[ServerState]:
    """Running servers on other configuration files of the same directory."""
    found = []
    for path in sorted(state_path(config).parent.glob("*.json")):
        state = read_state(path.parent.parent / path.stem)
        if state and path.stem != config.name and state.running():
            found.append(state)
    return found
