"""What `map` costs beside the work that it arranges.

    python benchmarks/map_speed.py [--images 640] [--rows 10000] [--repeat 5]

Images: JPEG files of 1280 x 960 are decoded, scaled and normalised by PIL in `preprocess`; a small network on
the CPU (one thread) predicts in batches. Beside map's rate stand "decode only" (the same preprocess in a pool of
processes, one a core, each image's tensor thrown away) and "predict only" (the same batches, prepared beforehand).
Decoding and predicting share the cores of this machine, so that no arrangement can reach the better of the two: what
can be reached is cores / (decode seconds a core + predict seconds a core), the bound that is printed; the network is
made just heavy enough that predicting takes half as long as decoding on all cores takes. On a GPU the bound is the
lesser of the two rates. The same is measured with a device beside the cores, as a GPU is, in place of the network: it
takes a given time an image, in which the cores are free.

Rows: 10 000 rows of 8 numbers through a perceptron, beside a plain loop over the model's own forward in batches of the
same size, inputs ready. What map adds to a row (reading a line, JSON in and out, calls of hooks, the journal) does not
depend on the model: twice the plain loop is kept by a model whose forward takes at least that long a row, which is
printed. The time of loading is left out.

The kinds take turns, and medians are compared: the machine may be busy with something else. CPU seconds, which suffer
less from that, are shown beside.
"""

from __future__ import annotations

import argparse
import io
import json
import multiprocessing
import os
import resource
import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy
import torch
from PIL import Image

import handlergen
from handlergen.local.offline.engine import LocalEngine
from handlergen.local.offline.job import map_to_file
from handlergen.local.offline.preparation import available_cores
from handlergen.local.offline.sources import open_source

IMAGE_MODEL = """
from io import BytesIO
import os, time
import numpy as np
import torch
from PIL import Image
from torch import nn

torch.set_num_threads(1)

class Small(nn.Module):
    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        width = int(os.environ.get("WIDTH", "16"))
        self.layers = nn.Sequential(
            nn.Conv2d(3, width, 5, stride=4), nn.ReLU(), nn.Conv2d(width, 2 * width, 3, stride=2), nn.ReLU(),
            nn.AdaptiveAvgPool2d(4), nn.Flatten(), nn.Linear(32 * width, 10),
        )

    def forward(self, batch):
        wait_s = float(os.environ.get("DEVICE_MS", "0")) / 1e3
        if not wait_s:
            return self.layers(batch)
        time.sleep(wait_s * len(batch))
        return batch.mean((1, 2, 3))[:, None].repeat(1, 10)

    def preprocess(self, data):
        image = Image.open(BytesIO(data)).convert("RGB").resize((224, 224))
        return torch.from_numpy(np.asarray(image, dtype=np.float32) / 255).permute(2, 0, 1).contiguous()

    def postprocess(self, output):
        return {"class": int(output.argmax()), "scores": output}
"""

ROW_MODEL = """
import torch
from torch import nn

torch.set_num_threads(1)

class Perceptron(nn.Module):
    def __init__(self, hidden=%d):
        super().__init__()
        torch.manual_seed(0)
        self.layers = nn.Sequential(
            nn.Linear(8, hidden), nn.ReLU(), nn.Linear(hidden, hidden), nn.ReLU(), nn.Linear(hidden, 3)
        )

    def forward(self, batch):
        return self.layers(batch)

    def preprocess(self, data):
        return torch.tensor(data)

    def postprocess(self, output):
        return output
"""


_cpu: dict[str, list[float]] = {}
"""CPU seconds of every run, by kind, this process and those that it has waited for."""


def timed(work: Callable[[], Any]) -> float:
    began = time.perf_counter()
    work()
    return time.perf_counter() - began


def cpu_seconds() -> float:
    used = [resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)]
    return sum(each.ru_utime + each.ru_stime for each in used)


def in_turns(works: dict[str, Callable[[], float]], repeat: int) -> dict[str, list[float]]:
    times: dict[str, list[float]] = {name: [] for name in works}
    for _ in range(repeat):
        for name, work in works.items():
            before = cpu_seconds()
            times[name].append(work())
            _cpu.setdefault(name, []).append(cpu_seconds() - before)
    return times


def mapped(model: handlergen.LocalModel, source: Path, target: Path, batch: int) -> float:
    """Seconds that map takes, from the first row read to the last one written."""
    engine = LocalEngine(model, workers=None, threads=False, warn=print)
    summary = map_to_file(engine, open_source(str(source)), target, batch_size=batch, overwrite=True)
    assert summary.failed == 0
    return summary.seconds


_preprocess: Callable[[bytes], Any]


def decode(path: Path) -> None:
    torch.set_num_threads(1)
    _preprocess(path.read_bytes())


def images(directory: Path, count: int, batch: int, repeat: int) -> None:
    global _preprocess  # noqa: PLW0603 - what forked processes inherit
    (directory / "scans").mkdir()
    source = numpy.random.default_rng(0)
    for number in range(count):
        small = source.integers(0, 255, (60, 80, 3), dtype=numpy.uint8)
        target = io.BytesIO()
        Image.fromarray(small).resize((1280, 960), Image.Resampling.BICUBIC).save(target, "JPEG", quality=90)
        (directory / "scans" / f"{number:05}.jpg").write_bytes(target.getvalue())
    paths = sorted((directory / "scans").iterdir())
    (directory / "small.py").write_text(IMAGE_MODEL)
    cores = available_cores()
    with handlergen.load(directory / "small.py") as probe:
        module = __import__("small")
        network = module.Small().eval()
        _preprocess = network.preprocess
        ready = [network.preprocess(path.read_bytes()) for path in paths]
        batches = [torch.stack(ready[start : start + batch]) for start in range(0, count, batch)]

        def decode_only() -> float:
            with multiprocessing.get_context("fork").Pool(cores) as pool:
                pool.map(decode, paths[: 2 * cores])  # started before the clock
                return timed(lambda: pool.map(decode, paths, chunksize=max(1, batch // 4)))

        def predict_only() -> float:
            with torch.inference_mode():
                return timed(lambda: [network(each) for each in batches])

        works = {
            "decode only, all cores": decode_only,
            "predict only": predict_only,
            "map": lambda: mapped(probe, directory / "scans", directory / "scans.jsonl", batch),
        }
        predict_only()
        times = in_turns(works, repeat)
    middle = {name: statistics.median(values) for name, values in times.items()}
    wait_ms = float(os.environ.get("DEVICE_MS", "0"))
    device = f"a device that takes {wait_ms:g} ms an image" if wait_ms else "a network on the same cores"
    print(f"images: {count} JPEGs, batches of {batch}, {cores} cores, {device}; medians of {repeat}")
    for name, seconds in middle.items():
        print(f"  {name:<24} {count / seconds:8.1f} images/s   ({seconds:.2f} s)")
    decoding, predicting = middle["decode only, all cores"], middle["predict only"]
    if wait_ms:
        ratios = sorted(
            min(d, p) / m
            for d, p, m in zip(times["decode only, all cores"], times["predict only"], times["map"], strict=True)
        )
        shown = ", ".join(f"{ratio:.0%}" for ratio in ratios)
        slower = max(decoding, predicting) / middle["map"]
        print(f"  map reaches {statistics.median(ratios):.0%} of the faster of the two (rounds: {shown})")
        print(f"  and {slower:.0%} of the slower, which is what can be reached")
        _cpu.clear()
        return
    bound = max(decoding + predicting / cores, predicting)
    ratios = sorted(
        max(d + p / cores, p) / m
        for d, p, m in zip(times["decode only, all cores"], times["predict only"], times["map"], strict=True)
    )
    print(f"  bound of {cores} shared cores  {count / bound:8.1f} images/s")
    shown = ", ".join(f"{ratio:.0%}" for ratio in ratios)
    print(f"  map reaches {statistics.median(ratios):.0%} of the bound (median of the rounds: {shown})")
    cpu = {name: statistics.median(values) for name, values in _cpu.items()}
    own = cpu["decode only, all cores"] + cpu["predict only"]
    print(f"  CPU: map {cpu['map']:.2f} s, decode and predict alone {own:.2f} s = {own / cpu['map']:.0%}")
    _cpu.clear()
    print(f"  and {max(decoding, predicting) / middle['map']:.0%} of the slower of the two alone")


def rows(directory: Path, count: int, batch: int, hidden: int, repeat: int) -> None:
    name = f"perceptron{hidden}"
    (directory / f"{name}.py").write_text(ROW_MODEL % hidden)
    values = numpy.random.default_rng(0).random((count, 8)).round(3)
    (directory / "rows.jsonl").write_text("".join(json.dumps(row.tolist()) + "\n" for row in values))
    numpy.save(directory / "rows.npy", values.astype("float32"))
    with handlergen.load(directory / f"{name}.py") as model:
        network = __import__(name).Perceptron().eval()
        inputs = torch.tensor(values, dtype=torch.float32)

        def loop() -> float:
            with torch.inference_mode():
                return timed(lambda: [network(inputs[start : start + batch]) for start in range(0, count, batch)])

        loop()
        times = in_turns(
            {
                "plain loop": loop,
                "map": lambda: mapped(model, directory / "rows.jsonl", directory / "rows.out.jsonl", batch),
            },
            repeat,
        )
    middle = {kind: statistics.median(found) for kind, found in times.items()}
    extra = (middle["map"] - middle["plain loop"]) / count * 1e6
    print(
        f"rows: {count} of 8 numbers, hidden {hidden}, batches of {batch}: plain loop {middle['plain loop']:.3f} s, "
        f"map {middle['map']:.3f} s = {middle['map'] / middle['plain loop']:.2f} x ({extra:.1f} µs a row more)"
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--images", type=int, default=640)
    parser.add_argument("--rows", type=int, default=10_000)
    parser.add_argument("--batch", type=int, default=32)
    parser.add_argument("--repeat", type=int, default=5)
    parser.add_argument("--width", type=int, default=96)
    parser.add_argument(
        "--device-ms",
        type=float,
        default=7.0,
        help="how long a device beside the cores takes for an image (it waits; 0: leave that out)",
    )
    options = parser.parse_args()
    os.environ["WIDTH"] = str(options.width)
    with tempfile.TemporaryDirectory() as name:
        if options.images:
            images(Path(name), options.images, options.batch, options.repeat)
    if options.images and options.device_ms:
        os.environ["DEVICE_MS"] = str(options.device_ms)
        sys.modules.pop("small", None)
        with tempfile.TemporaryDirectory() as name:
            images(Path(name), options.images, options.batch, options.repeat)
    with tempfile.TemporaryDirectory() as name:
        for hidden in (64, 512, 1024, 1536):
            if options.rows:
                rows(Path(name), options.rows, options.batch, hidden, options.repeat)


if __name__ == "__main__":
    main()
