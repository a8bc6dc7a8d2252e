"""The module of the tests: fails in every way that a request asks for, and writes down when it predicted."""

MODULE = '''
import ctypes
import json
import os
import signal
import threading
import time
from pathlib import Path

import torch


def fault(what):
    """What a request wants to go wrong here."""
    if what is None:
        return
    if what == "kill":
        os.kill(os.getpid(), signal.SIGKILL)
    elif what == "segfault":
        ctypes.string_at(0)
    elif what == "exit":
        os._exit(3)
    elif what == "hang":
        time.sleep(1000)
    elif what == "spin":  # holds on to the interpreter as compiled code does that never gives it back
        ctypes.PyDLL(None).sleep(1000)
    elif what == "memory":
        raise MemoryError("no memory")
    elif what == "cuda memory":
        raise RuntimeError("CUDA out of memory. Tried to allocate 2.00 GiB")
    elif what == "cancelled":
        import asyncio
        raise asyncio.CancelledError("inside")
    elif what == "system exit":
        raise SystemExit(4)
    elif what == "broken":
        from handlergen.runtime.device.device import Device

        def wait(self):
            raise RuntimeError("CUDA error: an illegal memory access was encountered")

        Device.wait = wait
        raise RuntimeError("CUDA error: an illegal memory access was encountered")
    elif what == "fork":
        if os.fork() == 0:
            time.sleep(60)
            os._exit(0)
    elif what == "error":
        raise RuntimeError("as asked")
    else:
        time.sleep(what)


def load(context):
    Path("loads").open("a").write(f"{os.getpid()}\\n")
    reason = Path("cannot-load")
    if reason.exists():
        text = reason.read_text()
        fault(json.loads(text) if text.startswith('"') else None)
        raise RuntimeError(text)
    print("loaded by", os.getpid(), flush=True)
    return torch.ones(2)


def preprocess(data):
    fault(data.get("pre"))
    return data


def predict(inputs, model):
    begin = time.monotonic()
    try:
        fault(inputs.get("predict"))
    finally:
        span = json.dumps([os.getpid(), inputs.get("n", 0), begin, time.monotonic()])
        Path("history").open("a").write(span + "\\n")
    return {"n": inputs.get("n", 0), "predictor": os.getpid()}


def postprocess(outputs):
    return {**outputs, "worker": os.getpid()}
'''
