"""What handlergen does, shown on this machine: `make demo`.

Trains a digit classifier, archives it, starts TorchServe, predicts over REST and gRPC, scales the workers and replaces
the model by its next version while requests flow, proves from recorded spans that predictions never overlapped, and
stops the server. Everything it writes lies in `build/demo`. Ctrl-C at any moment ends every process that it started.
"""

from __future__ import annotations

import contextlib
import itertools
import os
import shutil
import signal
import subprocess
import sys
import threading
import time
import uuid
from bisect import bisect_left
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from operator import attrgetter
from pathlib import Path
from types import FrameType

import psutil

from handlergen.client import Answer, Client
from handlergen.errors import HandlergenError, RequestFailed, ServerError
from handlergen.performance.recordings import (
    Span,
    beside,
    of_stage,
    overlapping,
    read_spans,
)
from handlergen.runtime.telemetry.stages import FIRST, STAGE
from handlergen.server.lifecycle import stop
from handlergen.server.ports import free_port_settings, unavailable
from handlergen.server.properties import ServerSettings

EXAMPLE = Path(__file__).resolve().parent / "digits"
WORKPLACE = EXAMPLE.parents[1] / "build" / "demo"
CONFIG = WORKPLACE / "config.properties"
SPANS = WORKPLACE / "spans"
PROGRAMS = Path(sys.executable).parent
MARK = "HANDLERGEN_DEMO"
"""Environment variable that every process started here carries, to be found by it at the end."""

CLIENTS = 8
PHASE_S = 2.0
PICTURE_NS = 40_000_000
COLUMNS = 100
END_S = 20.0


def heading(number: int, text: str) -> None:
    bold, plain = ("\033[1m", "\033[0m") if sys.stdout.isatty() else ("", "")
    print(f"\n{bold}{number}. {text}{plain}", flush=True)


def say(text: str = "") -> None:
    print(f"   {text}".rstrip(), flush=True)


class Demo:
    """Runs the commands that a user would type, in `build/demo`, and ends what they started."""

    def __init__(self) -> None:
        self.mark = uuid.uuid4().hex
        self.environ = {
            **os.environ,
            MARK: self.mark,
            "HANDLERGEN_TRACE_DIR": str(SPANS),
            "TORCHINDUCTOR_CACHE_DIR": str(WORKPLACE / "torch"),  # made by training, else in the temp directory
            "PYTHONUNBUFFERED": "1",
        }

    def run(self, *words: str) -> None:
        """Show a command and run it. It gets a session of its own, so that Ctrl-C reaches it once, through us.

        Raises:
            SystemExit: It failed; it has said why.
        """
        say(f"$ {' '.join(words)}")
        with subprocess.Popen(
            [PROGRAMS / words[0], *words[1:]],
            cwd=WORKPLACE,
            env=self.environ,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            start_new_session=True,
        ) as process:
            assert process.stdout is not None
            try:
                for line in process.stdout:
                    say(line.rstrip())
                status = process.wait()
            except BaseException:
                process.send_signal(signal.SIGINT)
                with contextlib.suppress(subprocess.TimeoutExpired):
                    process.wait(END_S)
                process.kill()
                raise
        if status:
            raise SystemExit(status)

    def processes(self) -> list[psutil.Process]:
        """What still runs of all that was started here."""
        found = []
        for process in psutil.process_iter():
            with contextlib.suppress(psutil.Error):
                if process.pid != os.getpid() and process.environ().get(MARK) == self.mark:
                    found.append(process)
        return found


@dataclass
class Traffic:
    """Clients that ask for held-out digits without pause, half over REST and half over gRPC."""

    client: Client
    images: Sequence[Path]
    right: int = 0
    wrong: int = 0
    misread: set[Path] = field(default_factory=set)
    failed: Counter[str] = field(default_factory=Counter)

    def __post_init__(self) -> None:
        self._numbers = itertools.count()
        self._over = threading.Event()
        self._lock = threading.Lock()
        self._threads = [threading.Thread(target=self._ask, daemon=True) for _ in range(CLIENTS)]

    @property
    def sent(self) -> int:
        with self._lock:
            return self.right + self.wrong + self.failed.total()

    def __enter__(self) -> Traffic:
        for thread in self._threads:
            thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._over.set()
        for thread in self._threads:
            thread.join(END_S)

    def _ask(self) -> None:
        while not self._over.is_set():
            number = next(self._numbers)
            image = self.images[number % len(self.images)]
            outcome = ask(self.client, image, over_grpc=number % 2 == 1)
            with self._lock:
                if isinstance(outcome, Answer):
                    right = outcome.json()["digit"] == true_digit(image)
                    self.right += right
                    if not right:
                        self.wrong += 1
                        self.misread.add(image)
                else:
                    self.failed[first_line(outcome)] += 1


def true_digit(image: Path) -> int:
    return int(image.name.partition("_")[0])


def ask(client: Client, image: Path, *, over_grpc: bool) -> Answer | HandlergenError:
    """Return the answer for one image, or why there is none."""
    try:
        if over_grpc:
            return client.predict_grpc("digits", inputs={"data": image.read_bytes()})
        return client.predict("digits", file=image)
    except (RequestFailed, ServerError) as error:
        return error


def first_line(error: HandlergenError) -> str:
    return str(error).splitlines()[0]


def read(outcome: Answer | HandlergenError) -> str:
    if isinstance(outcome, HandlergenError):
        return first_line(outcome)
    answer = outcome.json()
    return f"{answer['digit']}  ({answer['probability']:.1%})"


def choose_ports() -> list[str]:
    """No flags when TorchServe's usual ports are free, else flags for others."""
    usual = ServerSettings()
    if not unavailable(usual.addresses()):
        return []
    ports = free_port_settings().items()
    return [word for name, port in ports for word in (f"--{name.replace('_', '-')}", str(port))]


def predict_some(client: Client, images: Sequence[Path]) -> None:
    """One image of each digit, asked for twice."""
    say("true digit   over REST     over gRPC")
    first = {true_digit(image): image for image in reversed(images)}
    for digit, image in sorted(first.items()):
        rest, grpc = (read(ask(client, image, over_grpc=over_grpc)) for over_grpc in (False, True))
        say(f"    {digit}        {rest:<13} {grpc}")


def change_under_load(demo: Demo, client: Client, images: Sequence[Path]) -> tuple[int, int]:
    """1 -> 4 -> 2 workers, then another version, while requests flow.

    Returns the time (ns) with four workers, for the picture.
    """
    with Traffic(client, images) as traffic:
        time.sleep(PHASE_S)
        demo.run("handlergen", "scale", "digits", "--workers", "4")
        start = time.monotonic_ns()
        time.sleep(PHASE_S)
        end = time.monotonic_ns()
        demo.run("handlergen", "scale", "digits", "--workers", "2")
        demo.run("handlergen", "update", "digits", os.path.relpath(EXAMPLE, WORKPLACE), "--version", "2.0")
        time.sleep(PHASE_S)
    say()
    say(f"{traffic.sent} requests sent meanwhile by {CLIENTS} clients, half REST, half gRPC:")
    say(f"{traffic.right:>6} answered with the true digit")
    say(f"{traffic.wrong:>6} answered with another digit{_why(traffic.misread, images)}")
    say(f"{traffic.failed.total():>6} lost")
    if traffic.failed:
        raise SystemExit(f"requests were lost: {dict(traffic.failed)}")
    return start, end


def _why(misread: set[Path], images: Sequence[Path]) -> str:
    """Wrong answers are the network's, not the server's: they are always for the same few images."""
    if not misread:
        return ""
    return f": the network misreads {len(misread)} of the {len(images)} images, which come again and again"


def busiest_window(spans: Sequence[Span], length_ns: int) -> int:
    """Return the start, in ns, of the window of this length that contains most spans (which do not overlap)."""
    ends = sorted(span.end_ns for span in spans)
    starts = sorted(span.start_ns for span in spans)
    counts = [(bisect_left(ends, start + length_ns) - number, start) for number, start in enumerate(starts)]
    most = max(count for count, _ in counts)
    best = [start for count, start in counts if count == most]
    return best[len(best) // 2]


def timeline(spans: Iterable[Span], start_ns: int, end_ns: int) -> dict[str, str]:
    """Return worker -> one line of `COLUMNS` characters: what it was doing in the middle of each column.

    `p` preprocessing, `.` waiting for the device, `#` predicting, `a` preparing the answer, blank: idle. Two workers
    show `#` in one column only if their predictions overlapped. What a predictor process does for a request is shown
    in the row of the request's worker.
    """
    width = (end_ns - start_ns) / COLUMNS
    ordered = sorted(spans, key=attrgetter("start_ns"))
    workers = {span.request_id: span.worker for span in ordered if span.stage == FIRST}
    rows: dict[str, list[str]] = {}
    for span in ordered:
        if span.end_ns <= start_ns or span.start_ns >= end_ns:
            continue
        worker = workers.get(span.request_id.partition(",")[0], span.worker)
        row = rows.setdefault(worker, [" "] * COLUMNS)
        for column in range(COLUMNS):
            if span.start_ns <= start_ns + (column + 0.5) * width < span.end_ns:
                row[column] = STAGE[span.stage].symbol
    return {worker: "".join(rows[worker]) for worker in sorted(rows)}


def prove(spans: Sequence[Span], start: int, end: int) -> None:
    """What the spans, recorded by the workers themselves, say."""
    predictions = of_stage(spans, "predict")
    preprocessing = of_stage(spans, "preprocess")
    together = overlapping(predictions)
    beside_others = beside(preprocessing, predictions)
    copies, workers = (len({span.pid for span in some}) for some in (predictions, preprocessing))
    copy = "one process, the model's only copy" if copies == 1 else f"{copies} processes, a copy in each"
    say(f"{len(predictions)} predictions by {copy}; {len(together)} pairs overlapped")
    say(
        f"{len(preprocessing)} requests preprocessed by {workers} workers, {len(beside_others)} of them while "
        "another was predicted"
    )
    say()
    inside = [span for span in predictions if start <= span.start_ns and span.end_ns <= end]
    if not inside:
        return
    left = busiest_window(inside, PICTURE_NS)
    say(f"{PICTURE_NS // 1_000_000} ms with four workers, a line each:  # predict   p preprocess   a answer   . waits")
    for row in timeline(spans, left, left + PICTURE_NS).values():
        say(f"|{row}|")
    if together:
        raise SystemExit("two predictions overlapped: this must never happen")


@contextlib.contextmanager
def interruptible() -> Iterator[None]:
    """The first Ctrl-C (or SIGTERM, or the terminal closing) ends the demo; further ones don't end the ending."""
    signals = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)

    def interrupt(number: int, _frame: FrameType | None) -> None:
        for each in signals:
            signal.signal(each, signal.SIG_IGN)
        raise KeyboardInterrupt(signal.Signals(number).name)

    for each in signals:
        signal.signal(each, interrupt)
    try:
        yield
    finally:
        for each in signals:
            signal.signal(each, signal.SIG_IGN)


def show(demo: Demo) -> None:
    heading(1, "Train: scikit-learn's handwriting, a small convolutional network")
    demo.run("python", str(os.path.relpath(EXAMPLE / "train.py", WORKPLACE)))
    images = sorted((EXAMPLE / "held-out").glob("*.png"))

    heading(2, "Archive: examples/digits/digits.py and its weights become model-store/digits.mar")
    demo.run("handlergen", "archive", os.path.relpath(EXAMPLE, WORKPLACE), "--record-examples")

    heading(3, "Serve: TorchServe, on a config.properties")
    demo.run("handlergen", "config", "--model-api", *choose_ports())
    say("the next command runs `torchserve --start --ts-config config.properties`, and waits")
    demo.run("handlergen", "serve")

    with Client.from_config(CONFIG, timeout=60) as client:
        heading(4, "Predict: digits that the network has never seen")
        demo.run("handlergen", "invoke", "digits", "--file", os.path.relpath(images[0], WORKPLACE))
        predict_some(client, images)

        heading(5, "Scale: 1 worker, then 4, then 2; and update to version 2.0, while requests flow")
        start, end = change_under_load(demo, client, images)

    heading(6, "Proof: predictions one at a time on the device, everything else beside them")
    prove(read_spans(SPANS, model="digits"), start, end)

    heading(7, "Stop")
    demo.run("handlergen", "stop")


def main() -> None:
    WORKPLACE.mkdir(parents=True, exist_ok=True)
    stop(CONFIG, drain=0)  # what an earlier demo could not end itself
    shutil.rmtree(WORKPLACE)
    WORKPLACE.mkdir()
    demo = Demo()
    try:
        with interruptible():
            show(demo)
    except KeyboardInterrupt:
        print("\nInterrupted; stopping.", flush=True)
        raise SystemExit(130) from None
    except HandlergenError as error:
        raise SystemExit(f"Error: {error.message}") from error
    finally:
        stop(CONFIG)
        left = demo.processes()
        for process in left:
            process.kill()
        say(f"processes left: {len(left)}")
    say(f"all that was written: {os.path.relpath(WORKPLACE)}")


if __name__ == "__main__":
    main()
