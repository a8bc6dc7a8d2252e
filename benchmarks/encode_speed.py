"""How fast answers are encoded, beside orjson's and the standard library's own calls.

    python benchmarks/encode_speed.py [--elements 1000000] [--repeat 7]

Prints, for each kind of answer, the time of `encode` with orjson over orjson's own time (to stay under 1.5 for
arrays) and without orjson over the standard library's (to stay at 1), and what the do-nothing path costs:
decode + Request + encode of a small JSON object (to stay under 10 microseconds). Best of the repeats.
"""

from __future__ import annotations

import argparse
import json
import timeit
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import numpy
import orjson
import torch

from handlergen.runtime.codec import encode as encoding
from handlergen.runtime.codec.content import decode
from handlergen.runtime.codec.encode import encode
from handlergen.runtime.request import Request


def milliseconds(calls: Sequence[Callable[[], object]], repeat: int) -> list[float]:
    """The best time of each call; they take turns, so that a busy moment of the machine meets all of them."""
    rounds = [[timeit.timeit(call, number=1) for call in calls] for _ in range(repeat)]
    return [min(times) * 1e3 for times in zip(*rounds, strict=True)]


def without_orjson(answer: Any) -> None:
    installed, encoding.orjson = encoding.orjson, None
    encode(answer)
    encoding.orjson = installed


def stdlib(value: Any) -> bytes:
    return json.dumps(value, separators=(",", ":")).encode()


def by_orjson(value: Any) -> bytes:
    return orjson.dumps(value, option=orjson.OPT_SERIALIZE_NUMPY | orjson.OPT_NON_STR_KEYS)


def answers(elements: int) -> dict[str, tuple[Any, Any, Callable[[], Any]]]:
    """Name → the answer, what orjson gets, and what makes the standard library's input."""
    doubles = numpy.random.default_rng(0).random(elements)
    floats = doubles.tolist()
    singles = doubles.astype("float32")
    tensor = torch.from_numpy(singles)
    integers = (doubles * 1000).astype("int64")
    rows = [{"label": "cat", "score": 0.5, "box": [1, 2, 3, 4]} for _ in range(elements // 10)]
    by_number = dict.fromkeys(range(elements // 10), 0.5)
    return {
        "list of floats": (floats, floats, lambda: floats),
        "float64 array": (doubles, doubles, doubles.tolist),
        "float64 array in a dict": ({"a": doubles}, {"a": doubles}, lambda: {"a": doubles.tolist()}),
        "float32 array": (singles, singles, singles.tolist),
        "float32 tensor": (tensor, singles, tensor.tolist),
        "int64 array": (integers, integers, integers.tolist),
        "list of dicts": (rows, rows, lambda: rows),
        "dict with int keys": (by_number, by_number, lambda: by_number),
        "list of float64 scalars": (list(doubles), list(doubles), lambda: list(doubles)),
    }


def main() -> None:
    options = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    options.add_argument("--elements", type=int, default=1_000_000)
    options.add_argument("--repeat", type=int, default=7)
    args = options.parse_args()

    print(f"{'answer':26}{'encode':>10}{'orjson':>10}{'ratio':>8}{'encode':>13}{'stdlib':>10}{'ratio':>8}")
    print(f"{'':26}{'ms':>10}{'ms':>10}{'':8}{'no orjson, ms':>13}{'ms':>10}")
    for name, (answer, for_orjson, for_stdlib) in answers(args.elements).items():
        calls = (
            partial(encode, answer),
            partial(by_orjson, for_orjson),
            partial(without_orjson, answer),
            lambda make=for_stdlib: stdlib(make()),
        )
        ours, theirs, slow, plain = milliseconds(calls, args.repeat)
        print(f"{name:26}{ours:10.1f}{theirs:10.1f}{ours / theirs:8.2f}{slow:13.1f}{plain:10.1f}{slow / plain:8.2f}")

    entry = {"body": {"text": "hello", "top": 3}}
    properties = {
        "body": {"content-type": "application/json"},
        "explain": "False",
        "Accept": "*/*",
        "User-Agent": "curl/8",
        "Host": "localhost:8080",
        "Content-Length": "28",
        "Content-Type": "application/json",
        "url_path": "",
    }
    answer = {"label": 3, "probability": 0.93, "scores": [0.93, 0.05, 0.02]}

    def nothing() -> None:
        Request(properties, "id")
        decode(entry, properties)
        encode(answer, limit=6_553_500)

    print(f"do nothing: {min(timeit.repeat(nothing, number=20_000, repeat=args.repeat)) / 20_000 * 1e6:.2f} us")


if __name__ == "__main__":
    main()
