"""Three stages that take known times, by `config`: served through handlergen as it is, and called by a hand-written
handler, so that both run the same user code.

`config` names the milliseconds: `before`, `predict`, `after`; `burn: true` spends those before and after as CPU time
(in Python, holding the GIL, the worst case), else they are waits, as for a download.
"""

import time


def preprocess(data, context):
    _spend(context.config["before"], context.config["burn"])
    return data["number"]


def predict(number, context):
    time.sleep(context.config["predict"] / 1e3)  # a device at work: the CPU is free
    return 2 * number + 1


def postprocess(number, context):
    _spend(context.config["after"], context.config["burn"])
    return {"answer": number}


def _spend(milliseconds, burn):
    if not burn:
        time.sleep(milliseconds / 1e3)
        return
    end = time.thread_time_ns() + int(milliseconds * 1e6)
    while time.thread_time_ns() < end:
        sum(range(200))
