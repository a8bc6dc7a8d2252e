"""The first request that a user sends to a compiled model, with and without examples in the archive.

`torch.compile` compiles at the first call, for seconds. With examples that happens before the worker is READY. For each
placement the first request's time, the median of the next ones, and their ratio, on a real TorchServe with one worker;
of several starts, the median ratio.
"""

from __future__ import annotations

import argparse
import statistics
import tempfile
import time
from pathlib import Path

import handlergen
from handlergen.server.configuration import write_configuration
from handlergen.server.ports import free_port_settings
from handlergen.server.properties import server_settings

MODULE = """
import torch

def load(context):
    torch.manual_seed(0)
    linear, act = torch.nn.Linear, torch.nn.GELU()
    return torch.compile(torch.nn.Sequential(linear(64, 256), act, linear(256, 256), act, linear(256, 8)))

def preprocess(data):
    return torch.tensor(data, dtype=torch.float32)[None]

def predict(inputs, model):
    return model(inputs)[0]

def postprocess(outputs):
    return outputs.tolist()
"""
REQUEST = [number / 64 for number in range(64)]


def measured(placement: str, *, with_examples: bool, later: int) -> tuple[float, float, float]:
    """Return seconds until READY, of the first request, and the median of the later ones."""
    with tempfile.TemporaryDirectory() as name:
        place = Path(name)
        (place / "compiled.py").write_text(MODULE)
        examples = [{"name": "ramp", "json": REQUEST, "runs": True}] if with_examples else []
        settings = {"workers_per_device": 1, "predictor": placement, "examples": examples}
        handlergen.archive(place / "compiled.py", model_store=place / "model-store", **settings)
        write_configuration(place / "config.properties", server_settings(**free_port_settings()))
        start = time.monotonic()
        running = handlergen.serve(place / "config.properties")
        try:
            ready = time.monotonic() - start
            with running.client() as client:
                client.ping()  # the connection stands
                times = []
                for _ in range(later + 1):
                    start = time.monotonic()
                    client.predict("compiled", REQUEST)
                    times.append(time.monotonic() - start)
        finally:
            running.stop()
    return ready, times[0], statistics.median(times[1:])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--later", type=int, default=100, help="requests after the first")
    parser.add_argument("--starts", type=int, default=3, help="of the server, for each row")
    arguments = parser.parse_args()
    print("placement  examples   READY after   first request   median of the next   ratio")
    for placement in ("worker", "process"):
        for with_examples in (False, True):
            starts = [
                measured(placement, with_examples=with_examples, later=arguments.later) for _ in range(arguments.starts)
            ]
            ready, first, median = sorted(starts, key=lambda start: start[1] / start[2])[len(starts) // 2]
            shown = "yes" if with_examples else "no"
            print(
                f"{placement:<9}  {shown:<8}  {ready:9.1f} s  {first * 1e3:11.1f} ms  {median * 1e3:16.1f} ms"
                f"  {first / median:6.1f}"
            )


if __name__ == "__main__":
    main()
