"""handlergen: a copy of the model in each of four workers, and one copy in a predictor process."""

from __future__ import annotations

import subprocess
from functools import partial

from peers.subject import Launch, Place, Subject
from peers.torchserve import PATH, WORKERS, configure, program
from peers.workloads import MODELS


def _launch(place: Place, predictor: str) -> Launch:
    options = [
        *("--name", "served", "--device", "cpu", "--workers-per-device", str(WORKERS)),
        *("--predictor", predictor, "--extra-file", MODELS / "recording.py"),
    ]
    if place.workload.batch_size > 1:
        # A millisecond for a batch to fill, as the others that make batches are given.
        most = str(place.workload.batch_size)
        options += ["--batch", "collate", "--batch-size", most, "--max-batch", most, "--linger-ms", "1"]
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
