"""The ports that the configuration wants: free, held by its own server, or by somebody else."""

from __future__ import annotations

from collections.abc import Iterator

import psutil

from handlergen.doctor.finding import Finding, error, note, ok, warning
from handlergen.doctor.situation import Situation
from handlergen.ports import command_of, listeners, taken

_FRONTEND = "org.pytorch.serve.ModelServer"
_FREE = "stop that program, or choose another port: handlergen config --help"


def ports(situation: Situation) -> Iterator[Finding]:
    """Each address, against who listens."""
    held = listeners()
    running = situation.running
    addresses = situation.settings.addresses()
    free, own, stock = [], [], set()
    for purpose, (host, port) in addresses.items():
        problem = taken({purpose: (host, port)})
        holder = held.get(port)
        if running is not None and holder == running.pid:
            own.append(port)
        elif running is not None:
            yield warning(
                f"the running server (pid {running.pid}) does not listen on port {port} ({purpose})",
                "The configuration was changed after it had been started, or somebody else holds the port.",
                situation.restart,
            )
        elif holder is not None and _is_stock_server(holder, situation):
            stock.add(holder)
        elif problem:
            who = f", by {command_of(holder)}" if holder is not None and port in held else ""
            text = problem[0] if "in use" not in problem[0] else f"port {port} ({purpose}) is in use{who}"
            yield error(text, "The server cannot start.", _FREE)
        else:
            free.append(port)
    if own and running is not None:
        yield ok(f"ports {_listed(own)}: the running server (pid {running.pid})")
    for pid in sorted(stock):
        yield note(
            f"a TorchServe that `handlergen serve` did not start (pid {pid}) runs here and holds these ports",
            "`handlergen status`, `invoke` and `scale` work with it; `serve` is refused, `stop` does not know it.",
            "torchserve --stop",
        )
    if free:
        yield ok(f"ports {_listed(free)} are free")


def _is_stock_server(pid: int, situation: Situation) -> bool:
    try:
        process = psutil.Process(pid)
        return _FRONTEND in process.cmdline() and process.cwd() == str(situation.directory)
    except psutil.Error:
        return False


def _listed(numbers: list[int]) -> str:
    return ", ".join(str(number) for number in numbers)
