"""Three stages that take known times; which, the request's number tells: below 1000 none, then as in `TIMES_MS`."""

import time

from recording import loaded, predicting

TIMES_MS = (
    (0, 0, 0),  # does nothing: what is measured is the server
    (10, 10, 10),  # waits for a download, a device, a database; the CPU is free meanwhile
    (8, 10, 4),  # CPU time in Python, holding the GIL; the device; CPU time again
)
BURNS = 2


def load():
    loaded()


def preprocess(data):
    number = data["number"]
    kind = number // 1000
    if kind:
        _spend(TIMES_MS[kind][0], kind)
    return number


def predict(number):
    kind = number // 1000
    with predicting():
        if kind:
            time.sleep(TIMES_MS[kind][1] / 1e3)
        return 2 * number + 1


def postprocess(answer):
    kind = answer // 2000
    if kind:
        _spend(TIMES_MS[kind][2], kind)
    return {"answer": answer}


def _spend(milliseconds, kind):
    if kind != BURNS:
        time.sleep(milliseconds / 1e3)
        return
    end = time.thread_time_ns() + milliseconds * 1_000_000
    while time.thread_time_ns() < end:
        sum(range(200))
