"""The table of a request's stages, in order: for spans, metrics, reports and traces."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class RequestStage:
    """A timed step of a request.

    Attributes:
        name: In spans, and the label `stage` of the histogram `handlergen_stage_seconds`.
        label: For people.
        light, dark: Colours in charts in light and dark mode, `#rrggbb`.
        symbol: One character, in a timeline of text.
        description: A few words.
        on_device: The request has the device to itself; each request has one such stage.
        by_predictor: Recorded by the process that predicts, which need not be the worker.
    """

    name: str
    label: str
    light: str
    dark: str
    symbol: str
    description: str
    on_device: bool = False
    by_predictor: bool = False


_HOOK = "the model's own, beside predictions of other requests"
STAGES = (
    RequestStage("decode", "decode", "#9a8418", "#d2bc55", "p", "read what was sent"),
    RequestStage("preprocess", "preprocess", "#3c83c5", "#5aa2e6", "p", _HOOK),
    RequestStage("lock_wait", "lock wait", "#7f8c98", "#6e7b87", ".", "ready, waiting for the device", False, True),
    RequestStage("predict", "predict", "#d96c0a", "#f0913a", "#", "on the device, one at a time", True, True),
    RequestStage("explain", "explain", "#8e63b8", "#b58be0", "#", "on the device, too", True, True),
    RequestStage("postprocess", "postprocess", "#1c6b48", "#5fd6a3", "a", _HOOK),
    RequestStage("encode", "encode", "#3f9470", "#3d8a68", "a", "write the answer"),
)

STAGE = {stage.name: stage for stage in STAGES}
STAGE_NAMES = tuple(STAGE)
ON_DEVICE = tuple(stage.name for stage in STAGES if stage.on_device)
BY_PREDICTOR = tuple(stage.name for stage in STAGES if stage.by_predictor)
FIRST, LAST = STAGE_NAMES[0], STAGE_NAMES[-1]


def label_of(name: str) -> str:
    """Return a stage's label; the name in words for a stage of another version's recording."""
    return STAGE[name].label if name in STAGE else name.replace("_", " ")
