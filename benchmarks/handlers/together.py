"""As `staged.py`, with a predict over a list: 4 ms and 1 ms more for each request in it."""

import time


def preprocess(data):
    _burn(2)
    return data["number"]


def predict(numbers):
    time.sleep((4 + len(numbers)) / 1e3)
    return [2 * number + 1 for number in numbers]


def postprocess(number):
    _burn(1)
    return {"answer": number}


def _burn(milliseconds):
    end = time.thread_time_ns() + int(milliseconds * 1e6)
    while time.thread_time_ns() < end:
        sum(range(200))
