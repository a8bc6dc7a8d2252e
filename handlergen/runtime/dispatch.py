"""What kind of request each of a batch is: prediction, explanation, description, KServe's."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

from .contract import Bundle
from .encode import encode
from .failures import Failure
from .hooks import Item
from .kserve import Opened, open_kserve
from .pipeline import Pipeline

_NO_EXPLAIN = Failure(
    501, "NotSupported", "This model has no explain hook, so it cannot explain its predictions"
)


class Dispatch:
    """Takes each request of a batch to what answers it.

    TorchServe tells by headers: `explain` is True or False at every address for predictions but `/invocations` and
    the like, `url_path` is there under `/predictions` and `/explanations` only, `describe` is True for
    `GET /models/NAME?customized=true`, which has no content. A client may send such headers too; under `/predictions`
    TorchServe's own `explain` comes after it, and `describe` counts only without that and without content, which
    every request for a prediction has (InferenceRequestHandler.java, ManagementRequestHandler.java).

    Args:
        bundle: Contract and settings.
        predictions: The pipeline.
        explanations: The same around the `explain` hook; None without one.
        describe: What describe answers.
        batch_size: The most requests that `predict` sees together, however many instances a KServe request has.
    """

    def __init__(
        self,
        bundle: Bundle,
        predictions: Pipeline,
        explanations: Pipeline | None,
        describe: Callable[[], Any],
        batch_size: int,
    ) -> None:
        self._bundle = bundle
        self._predictions = predictions
        self._explanations = explanations
        self._describe = describe
        self._batch_size = batch_size

    def run(self, items: Sequence[Item]) -> int:
        """Answer every request of a batch: each item ends with its `reply` or its `failure`.

        Returns:
            How many of them were no descriptions.
        """
        others = [item for item in items if not _is_plain(item)]
        if not others:
            self._predictions.run(items)
            return len(items)
        predictions = [item for item in items if _is_plain(item)]
        explanations: list[Item] = []
        opened: list[Opened] = []
        described = 0
        index = len(items)
        for item in others:
            if is_describe(item):
                described += 1
                self._answer_describe(item)
                continue
            explains = item.properties.get("explain") == "True"
            if explains and self._explanations is None:
                item.failure = told(item, _NO_EXPLAIN)
                continue
            parts = [item]
            if _is_kserve(item):
                request = self._open(item, index)
                if request is None:
                    continue
                opened.append(request)
                parts = request.parts
                index += len(parts)
            (explanations if explains else predictions).extend(parts)
        self._run(self._predictions, predictions)
        if self._explanations is not None:
            self._run(self._explanations, explanations)
        for request in opened:
            request.close(self._predictions.fail)
        return len(items) - described

    def _run(self, pipeline: Pipeline, items: list[Item]) -> None:
        together = self._bundle.settings.batch != "each" and pipeline is self._predictions
        size = max(1, self._batch_size if together else len(items))
        for start in range(0, len(items), size):
            pipeline.run(items[start : start + size])

    def _answer_describe(self, item: Item) -> None:
        try:
            item.reply = encode(self._describe())
        except BaseException as error:
            self._predictions.fail(item, error, "describe")

    def _open(self, item: Item, index: int) -> Opened | None:
        settings = self._bundle.settings
        try:
            return open_kserve(
                item,
                name=settings.name,
                version=settings.version,
                nan=settings.nan,
                limit=settings.max_response_bytes,
                first_index=index,
                keywords=self._bundle.contract.call == "keywords",
            )
        except BaseException as error:
            self._predictions.fail(item, error, "decode")
            if item.failure is not None:
                item.failure = told(item, item.failure)
            return None


def told(item: Item, failure: Failure) -> Failure:
    """A failure as a request's client reads it: one of KServe's reads `error`."""
    return replace(failure, for_kserve=True) if _is_kserve(item) else failure


def _is_kserve(item: Item) -> bool:
    """It came to one of KServe's addresses, or to `/invocations`."""
    return not (_is_plain(item) or is_describe(item) or isinstance(item.properties.get("url_path"), str))


def _is_plain(item: Item) -> bool:
    """A prediction by TorchServe's own address, or over gRPC."""
    explain = item.properties.get("explain")
    if explain == "False":
        return "url_path" in item.properties
    return not isinstance(explain, str) and not is_describe(item)


def is_describe(item: Item) -> bool:
    """`GET /models/NAME?customized=true`: TorchServe makes it a request with this header, and without any content."""
    properties = item.properties
    return (
        properties.get("describe") == "True"
        and not item.entry
        and not isinstance(properties.get("explain"), str)
    )
