"""Which files of the runtime a request enters, in each of the three placements, on a real TorchServe.

Each of the server's Python processes loads a `sitecustomize` that notes every call into `handlergen_runtime`; what was
entered between the sending of a request and its answer is printed, the worker's and the predictor process's files
together. The first requests, which import things, are not counted.
"""

from __future__ import annotations

import argparse
import os
import tempfile
import time
from pathlib import Path

import handlergen
from handlergen.server.configuration import write_configuration
from handlergen.server.ports import free_port_settings
from handlergen.server.properties import server_settings

MODULE = """
def load(context):
    return 2

def preprocess(data):
    return [float(value) for value in data]

def predict(inputs, model):
    return [value * model for value in inputs]

def postprocess(outputs):
    return {"doubled": outputs}
"""

SITECUSTOMIZE = """
import os, sys, threading, time
_file = os.open(os.path.join(os.environ["REQUEST_PATH_DIR"], str(os.getpid())), os.O_WRONLY | os.O_CREAT | os.O_APPEND)
def _note(frame, event, _argument):
    name = frame.f_code.co_filename
    if event == "call" and "/handlergen_runtime/" in name:
        os.write(_file, f"{time.monotonic_ns()} {name.rpartition('/handlergen_runtime/')[2]}\\n".encode())
threading.setprofile(_note)
sys.setprofile(_note)
"""

PLACEMENTS = {
    "predictor: worker": {"predictor": "worker"},
    "predictor: process": {"predictor": "process", "stages": "worker"},
    "stages: predictor": {"predictor": "process", "stages": "predictor"},
}


def entered(settings: dict[str, str]) -> list[str]:
    """Return the runtime's files that one request enters, sorted."""
    with tempfile.TemporaryDirectory() as name:
        place = Path(name)
        notes = place / "notes"
        notes.mkdir()
        (place / "sitecustomize.py").write_text(SITECUSTOMIZE)
        (place / "double.py").write_text(MODULE)
        handlergen.archive(place / "double.py", model_store=place / "model-store", workers_per_device=1, **settings)
        write_configuration(place / "config.properties", server_settings(**free_port_settings()))
        environ = {**os.environ, "PYTHONPATH": str(place), "REQUEST_PATH_DIR": str(notes)}
        running = handlergen.serve(place / "config.properties", environ=environ)
        try:
            with running.client() as client:
                for _ in range(5):
                    client.predict("double", [1, 2])
                time.sleep(1)
                start = time.monotonic_ns()
                assert client.predict("double", [1, 2]).json() == {"doubled": [2, 4]}
                end = time.monotonic_ns()
        finally:
            running.stop()
        lines = [line.split(maxsplit=1) for path in notes.iterdir() for line in path.read_text().splitlines()]
        return sorted({file for moment, file in lines if start <= int(moment) <= end})


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.parse_args()
    for placement, settings in PLACEMENTS.items():
        files = entered(settings)
        print(f"{placement}: {len(files)} files")
        for file in files:
            print(f"  {file}")


if __name__ == "__main__":
    main()
