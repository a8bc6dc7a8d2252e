"""How long `handlergen archive` takes for large weights, beside torch-model-archiver with its defaults.

    python benchmarks/archive_speed.py                 # 512 MB of random weights, three repeats of each
    python benchmarks/archive_speed.py --mb 64 --repeats 5 --json

Both run as their commands, from the same files, in turn, each into a fresh model store. Random bytes stand for trained
weights: both hardly shrink. A third row copies the weights file, as a yardstick for the disk.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

MODULE = '''"""Weights that nobody reads: only their size matters here."""


def predict(inputs):
    return inputs
'''

BASELINE_HANDLER = """def handle(data, context):
    return data
"""


def main() -> None:
    """Measure, then print a table or JSON."""
    parser = argparse.ArgumentParser(description="Time handlergen archive beside torch-model-archiver.")
    parser.add_argument("--mb", type=int, default=512, help="size of the weights in MiB (default: 512)")
    parser.add_argument("--repeats", type=int, default=3, help="runs of each (default: 3)")
    parser.add_argument("--compression", choices=["stored", "deflated"], default="stored")
    parser.add_argument("--json", action="store_true", help="print JSON")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="archive-speed-") as directory:
        report = measure(Path(directory), arguments.mb, arguments.repeats, arguments.compression)
    if arguments.json:
        print(json.dumps(report, indent=2))
        return
    print(f"{arguments.mb} MiB of random weights, {arguments.repeats} runs of each, in turn; seconds\n")
    print(f"{'':<34}{'median':>8}{'least':>8}{'most':>8}")
    for name, seconds in report["seconds"].items():
        print(f"{name:<34}{statistics.median(seconds):>8.2f}{min(seconds):>8.2f}{max(seconds):>8.2f}")
    print(
        f"\nhandlergen is {report['ratio']:.1f} times faster by the medians, "
        f"{report['ratio_of_least']:.1f} times by the fastest runs"
    )


def measure(directory: Path, mebibytes: int, repeats: int, compression: str) -> dict[str, Any]:
    """Seconds of every run by what ran, and how many times faster handlergen is."""
    project = directory / "project"
    project.mkdir()
    weights = project / "weights.bin"
    with weights.open("wb") as output:
        for _ in range(mebibytes):
            output.write(os.urandom(1 << 20))
    (project / "bulky.py").write_text(MODULE)
    (project / "baseline.py").write_text(BASELINE_HANDLER)
    # The archiver stages in the temp directory: both get the same one, and it is not shared with anybody.
    environment = {**os.environ, "TMPDIR": str(directory / "temp")}
    (directory / "temp").mkdir()

    def run(command: list[str]) -> Callable[[Path], None]:
        return lambda store: (
            subprocess.run([*command, str(store)], cwd=project, env=environment, check=True, stdout=subprocess.DEVNULL)
            and None
        )

    contenders: dict[str, Callable[[Path], None]] = {
        "torch-model-archiver, defaults": run(
            [
                sys.executable,
                "-c",
                "from model_archiver.model_packaging import generate_model_archive; generate_model_archive()",
                *("--model-name", "bulky", "--version", "1.0", "--handler", "baseline.py"),
                *("--serialized-file", "weights.bin", "--export-path"),
            ]
        ),
        f"handlergen archive, {compression}": run(
            [
                sys.executable,
                "-c",
                "from handlergen.cli import main; main()",
                *("archive", "bulky.py", "--extra-file", "weights.bin", "--compression", compression),
                "--model-store",
            ]
        ),
        "cp": lambda store: shutil.copyfile(weights, store / "copy") and None,
    }
    seconds: dict[str, list[float]] = {name: [] for name in contenders}
    for _ in range(repeats):
        for name, contender in contenders.items():
            store = directory / "store"
            store.mkdir()
            # What one contender left for the disk to write must not slow the next one down.
            os.sync()
            start = time.perf_counter()
            contender(store)
            seconds[name].append(time.perf_counter() - start)
            shutil.rmtree(store)
    slow, fast, _ = seconds.values()
    return {
        "mebibytes": mebibytes,
        "repeats": repeats,
        "seconds": seconds,
        "ratio": statistics.median(slow) / statistics.median(fast),
        "ratio_of_least": min(slow) / min(fast),
    }


if __name__ == "__main__":
    main()
