"""The archive's examples, asked before a worker is ready: they warm the model up, and show that its answers are right.

They take the way of every request, one by one and then in one batch, through the worker and the predictor process.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import count
from os import getpid
from typing import Any

from .codec.comparison import Difference
from .codec.encode import Encoded
from .diagnostics import logger
from .environment import Unsuitable
from .examples import Example, differences_text
from .pipeline.backend import Backend
from .pipeline.hooks import Item
from .pipeline.pipeline import open_items
from .torchserve.streaming import Collected

Wrong = list[tuple[Example, list[Difference]]]
_MOST_AT_ONCE = 32
_numbers = count(1)


class WrongAnswers(Unsuitable):
    """An example was not answered as its archive says; `user_traceback` has the differences."""

    def __init__(self, wrong: Wrong, number: int) -> None:
        first, found = wrong[0]
        more = f" and {len(wrong) - 1} more" if len(wrong) > 1 else ""
        super().__init__(
            f"{len(wrong)} of {number} examples of the archive are answered wrongly: {first.name}{more} ({found[0]})"
        )
        self.user_traceback = differences_text(wrong)


def ask_at_start(backend: Backend, examples: Sequence[Example], *, name: str, batch_size: int, compare: bool) -> int:
    """Ask every example; return how many were answered rightly.

    Where the split of the stages over two processes makes the difference, the backend relays whole requests from now
    on, and a warning says so.

    Args:
        name: The model's.
        batch_size: The most requests that come, or are predicted, at once.
        compare: Compare the answers, rather than only ask.

    Raises:
        WrongAnswers: An answer is wrong.
    """
    wrong = _asked(backend, examples, batch_size)
    if not compare:
        for example, found in wrong:
            logger().warning("model %s: example %s: %s", name, example.name, found[0])
        return len(examples) - len(wrong)
    if wrong:
        relayed = backend.relayed()
        if relayed is None or _asked(relayed[0], examples, batch_size):
            raise WrongAnswers(wrong, len(examples))
        example, found = wrong[0]
        why = f"example {example.name} is answered wrongly while the worker runs preprocess and postprocess: {found[0]}"
        relayed[1](why)
    return len(examples)


def _asked(backend: Backend, examples: Sequence[Example], batch_size: int) -> Wrong:
    """Ask the examples one by one, and all at once if requests come in batches; return those answered wrongly."""
    wrong: dict[str, tuple[Example, list[Difference]]] = {}
    rounds = [[example] for example in examples]
    size = min(batch_size, _MOST_AT_ONCE)
    if size > 1:
        repeated = [examples[number % len(examples)] for number in range(max(size, len(examples)))]
        rounds += [repeated[start : start + size] for start in range(0, len(repeated), size)]
    for together in rounds:
        items = _items(together)
        backend.answer(items)
        for example, item in zip(together, items):
            found = _differences(example, item)
            if found and len(together) > 1:
                batch = f"in a batch of {len(together)}"
                found = [each._replace(note=f"{batch}, {each.note}" if each.note else batch) for each in found]
            if found:
                wrong.setdefault(example.name, (example, found))
    backend.flush()
    return list(wrong.values())


def _items(examples: Sequence[Example]) -> list[Item]:
    requests: list[Any] = [example.request() for example in examples]
    # As TorchServe's: no other request has them, in spans and in the log.
    ids = [f"example-{example.name}-{getpid()}-{next(_numbers)}" for example in examples]
    items = open_items([content for content, _ in requests], [headers for _, headers in requests], ids)
    for item in items:
        item.outlet = Collected()
    return items


def _differences(example: Example, item: Item) -> list[Difference]:
    if item.failure is not None:
        return example.compare(item.failure.status, "", item.failure.body(item.request.id))
    reply: Encoded = item.reply
    chunks: Collected = item.outlet
    return example.compare(reply.status, chunks.content_type or reply.content_type, chunks.body + reply.body)
