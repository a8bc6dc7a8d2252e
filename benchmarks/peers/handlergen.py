"""handlergen: a copy of the model in each of four workers, and one copy in a predictor process.

Where batches pay, the process has 16 workers of one request each: it makes batches of what they bring, and TorchServe,
which makes none, does not wait the millisecond that is its least.
"""

from __future__ import annotations

import subprocess
from functools import partial

from peers.subject import Launch, Place, Subject
from peers.torchserve import PATH, WORKERS, configure, program
from peers.workloads import MODELS

_WORKERS_THAT_BRING_BATCHES = 16


def _launch(place: Place, predictor: str) -> Launch:
    workers, batch_size = WORKERS, place.workload.batch_size
    options = ["--name", "served", "--device", "cpu", "--predictor", predictor]
    options += ["--extra-file", MODELS / "recording.py"]
    if batch_size > 1:
        # A millisecond for a batch to fill, as the others that make batches are given.
        options += ["--batch", "collate", "--max-batch", str(batch_size), "--linger-ms", "1"]
        if predictor == "process":
            workers, batch_size = _WORKERS_THAT_BRING_BATCHES, 1
    options += ["--workers-per-device", str(workers), "--batch-size", str(batch_size)]
    command = [program("handlergen"), "archive", MODELS / f"{place.workload.module}.py", *options]
    subprocess.run(command, cwd=place.directory, check=True, stdout=subprocess.DEVNULL)
    configure(place)
    state = {"HANDLERGEN_STATE_DIR": str(place.directory / "state")}  # locks of its own
    return Launch([program("handlergen"), "serve", "--foreground"], state)


SUBJECTS = tuple(
    Subject(
        f"handlergen-{predictor}",
        title,
        partial(_launch, predictor=predictor),
        path=PATH,
        serializes=by,
        distributions=("torchserve",),
    )
    for predictor, title, by in (
        ("process", "**handlergen**, `predictor: process`", "predictor process"),
        ("worker", "**handlergen**, `predictor: worker`", "device lock"),
    )
)
