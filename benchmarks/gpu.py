"""The two placements on a GPU, without TorchServe and Java: workers as processes of this script, in a closed loop.

    python benchmarks/gpu.py [--workers 4] [--seconds 8] [--layers 24] [--cpu]

For a machine that has torch, numpy and a GPU and nothing else; handlergen is used from this tree. Each placement in
turn: how busy the device was (recorded spans), whether predictions overlapped, requests/s, how many processes had a
CUDA context and how much memory they took (nvidia-smi). Then what a transfer takes of the time in the lock, from
ordinary memory and from the page-locked memory that inputs are staged in before it, and what the staging takes. `--cpu`
runs the same without a GPU, to try the script.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

HERE = Path(__file__).resolve().parent
sys.path.insert(0, str(HERE.parent))

import torch  # noqa: E402

from handlergen.archives.staging import make_bundle  # noqa: E402
from handlergen.inspection.project import open_project  # noqa: E402
from handlergen.performance.recordings import busy_share, of_stage, overlapping, read_spans  # noqa: E402
from handlergen.runtime.device.device import Device  # noqa: E402

SKIP_S = 1.0


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--workers", type=int, default=4)
    parser.add_argument("--seconds", type=float, default=8.0)
    parser.add_argument("--layers", type=int, default=24, help="of 2048 x 2048, 16.8 MB each (default: 24)")
    parser.add_argument("--cpu", action="store_true")
    parser.add_argument("--serve", metavar="DIRECTORY", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.serve:
        return work(Path(arguments.serve), arguments)
    print("| placement | requests/s | device busy | overlaps | processes on the GPU | GPU memory, MB |")
    print("| --- | ---: | ---: | ---: | ---: | ---: |")
    for placement in ("process", "worker"):
        with tempfile.TemporaryDirectory(prefix="handlergen-gpu-") as directory:
            print(measure(Path(directory), placement, arguments), flush=True)
    print("\n| inputs, bytes | staging, ms | transfer when staged, ms | transfer when not, ms |")
    print("| ---: | ---: | ---: | ---: |")
    for size in (1 << 16, 3 * 224 * 224 * 4, 32 * 3 * 224 * 224 * 4):
        print(transfer(Device(None if arguments.cpu else 0), size), flush=True)
    return 0


def transfer(device: Device, size: int, repeats: int = 30) -> str:
    """One line of the second table: medians, the two ways in turns."""
    staging, staged, not_staged = [], [], []
    for _ in range(repeats + 3):
        inputs = torch.ones(size, dtype=torch.uint8)  # new memory each time, as a request's
        moments = [time.perf_counter()]
        laid_out = device.stage(inputs)
        moments.append(time.perf_counter())
        for value in (laid_out, inputs):
            device.put(value)
            device.wait()
            moments.append(time.perf_counter())
        for times, began, ended in zip((staging, staged, not_staged), moments[:-1], moments[1:], strict=True):
            times.append((ended - began) * 1000)
    medians = [statistics.median(times[3:]) for times in (staging, staged, not_staged)]
    return f"| {size} | " + " | ".join(f"{median:.3f}" for median in medians) + " |"


def measure(directory: Path, placement: str, arguments: argparse.Namespace) -> str:
    """One line of the table."""
    shutil.copy(HERE / "handlers" / "mlp.py", directory / "mlp.py")
    project = open_project(
        directory / "mlp.py",
        overrides={"predictor": placement, "config": {"layers": arguments.layers}, "batch": "each"},
        environ={},
    )
    (directory / "handlergen.json").write_text(make_bundle(project).to_json(), encoding="utf-8")
    spans = directory / "spans"
    before, _ = gpu_memory()
    environ = {
        **os.environ,
        "HANDLERGEN_STATE_DIR": str(directory / "state"),
        "HANDLERGEN_TRACE_DIR": str(spans),
        "PYTHONPATH": f"{directory}{os.pathsep}{HERE.parent}",
    }
    command = [sys.executable, str(Path(__file__).resolve()), "--serve", str(directory)]
    command += ["--seconds", str(arguments.seconds), *(["--cpu"] if arguments.cpu else [])]
    workers = [
        subprocess.Popen(command, env=environ, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
        for _ in range(arguments.workers)
    ]
    for worker in workers:  # until all have loaded
        assert worker.stdout is not None
        while worker.stdout.readline().strip() != "ready":
            if worker.poll() is not None:
                raise RuntimeError("a worker could not load the model")
    start = time.monotonic_ns()
    for worker in workers:
        assert worker.stdin is not None
        worker.stdin.write("go\n")
        worker.stdin.flush()
    time.sleep(arguments.seconds / 2)
    used, contexts = gpu_memory()
    answered = 0
    for worker in workers:
        out, _ = worker.communicate()
        (told,) = re.findall(r'{"answered": (\d+)}', out)  # beside metrics, perhaps on one's line
        answered += int(told)
    window = (start + int(SKIP_S * 1e9), start + int((arguments.seconds - 0.5) * 1e9))
    predictions = of_stage(read_spans(spans), "predict")
    return (
        f"| {placement} | {answered / arguments.seconds:.0f} | {busy_share(predictions, *window):.3f} "
        f"| {len(overlapping(predictions))} | {contexts} | {used - before} |"
    )


def work(directory: Path, arguments: argparse.Namespace) -> int:
    """A worker: answers requests, one after the other, for some seconds."""
    from handlergen.local.requests import LocalContext, body_request
    from handlergen.runtime.contract import Bundle
    from handlergen.runtime.worker import Worker, backend_of

    bundle = Bundle.from_json((directory / "handlergen.json").read_text(encoding="utf-8"))
    worker = Worker(bundle, directory, gpu_id=None if arguments.cpu else 0, batch_size=1, backend=backend_of(bundle))
    content = b'{"number": 1}'
    _, properties = body_request(content, "application/json")

    def answer(number: int) -> bytes:
        context = LocalContext([f"{os.getpid()}-{number}"], [dict(properties)], None)
        return worker.handle([{"body": bytearray(content)}], context)[0]

    for number in range(5):
        assert json.loads(answer(number)) == {"answer": 3}
    print("ready", flush=True)
    sys.stdin.readline()
    end, answered = time.monotonic() + arguments.seconds, 0
    while time.monotonic() < end:
        answer(answered)
        answered += 1
    time.sleep(0.5)  # the predictor process writes its spans ten times a second
    print(json.dumps({"answered": answered}), flush=True)
    worker.close()
    return 0


def gpu_memory() -> tuple[int, int]:
    """MB in use on the first GPU, and how many processes compute on it; zeros without nvidia-smi."""
    try:
        used, processes = (
            subprocess.run(
                ["nvidia-smi", *query, "--format=csv,noheader,nounits", "--id=0"],
                check=True,
                capture_output=True,
                text=True,
            ).stdout.split()
            for query in (["--query-gpu=memory.used"], ["--query-compute-apps=pid"])
        )
    except (OSError, subprocess.CalledProcessError):
        return 0, 0
    return int(used[0]), len(processes)


if __name__ == "__main__":
    sys.exit(main())
