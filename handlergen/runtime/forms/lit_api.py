"""The `lit-api` form: LitServe's `LitAPI`, constructed, set up and called as LitServe's loops call it.

What is passed and when is read in litserve/loops/simple_loops.py and streaming_loops.py. Batches are TorchServe's or
the predictor process's (`batch: list`); a class written for batches gets a batch of one otherwise.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from ..context import Context
from ..contract import Contract, RuntimeSettings
from ..pipeline.hooks import BoundHook, Hooks, Item, ModelHooks
from ..request import with_files
from .loading import UserModule


class LitApiModule(UserModule):
    """A subclass of LitAPI: setup, decode_request, batch, predict, unbatch, encode_response."""

    def __init__(self, contract: Contract, settings: RuntimeSettings, context: Context) -> None:
        super().__init__(contract, settings, context)
        self._constants["device"] = str(context.device)  # LitServe passes text: "cuda:0"

    def load(self) -> None:
        api = self._owner = self._user_class()(*self._settings.model_args, **self._settings.model_kwargs)
        api.device = self._constants["device"]
        self._call_once("load")

    def load_without_model(self) -> None:
        self._owner = self._unconstructed()

    def hooks(self) -> Hooks:
        decode, predict = self._bound("preprocess"), self._predict()
        # A form's files stand beside its fields, as in the form that LitServe passes.
        before = BoundHook("decode_request", lambda item: with_files(item.data, item.files))
        if decode is not None:
            before = replace(decode, call=lambda item: decode.call(_with_form(item)))
        if self._contract.details.get("batched") or self._settings.batch == "list":
            return (ModelHooks(before, replace(predict, call=self._in_batches(predict)), self._bound("postprocess")),)
        encode = self._bound("encode")
        if encode is not None:  # it takes the generator that predict returned
            call = predict.call
            predict = replace(predict, call=lambda item: encode.call(_with_outputs(item, call(item))))
        return (ModelHooks(before, predict, self._bound("postprocess")),)

    def _in_batches(self, predict: BoundHook) -> Any:
        join, separate, together = self._bound("collate"), self._bound("unbatch"), self._settings.batch == "list"

        def call(item: Item) -> Any:
            batch = Item(-1, {}, {}, item.request if together else [item.request])
            batch.inputs = item.inputs if together else [item.inputs]
            batch.inputs = join.call(batch) if join else self._owner.batch(batch.inputs)
            batch.outputs = predict.call(batch)
            outputs = separate.call(batch) if separate else list(batch.outputs)
            return outputs if together else outputs[0]

        return call


def _with_form(item: Item) -> Item:
    item.data = with_files(item.data, item.files)
    return item


def _with_outputs(item: Item, outputs: Any) -> Item:
    item.outputs = outputs
    return item


USER_MODULE = LitApiModule
