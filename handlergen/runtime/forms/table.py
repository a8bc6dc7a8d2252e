"""The forms in which a module may be written, one row each: what differs between them outside their own files.

A form named `model-class` is read by `handlergen/inspection/forms/model_class.py` and run by `model_class.py` here.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass


@dataclass(frozen=True)
class FormRow:
    """One form.

    Attributes:
        name: As in the setting `form` and in the contract.
        batch: What `batch: auto` means for it: `each` or `collate`.
        value_error_is_400: A ValueError from preprocess is the client's mistake (400); otherwise it is a 500.
        converts_records: An annotation with a dataclass or TypedDict converts and validates the input, as one with a
            pydantic model does in every form.
        several_models: A request passes several models, whose hooks have roles of their own (`pre 1`).
        package: The package that its modules import, for the requirements; "" for none.
        runs_weights: Weights that hold a program (TorchScript, exported, ONNX) may replace `predict`.
    """

    name: str
    batch: str = "each"
    value_error_is_400: bool = True
    converts_records: bool = True
    several_models: bool = False
    runs_weights: bool = False
    package: str = ""

    @property
    def module(self) -> str:
        """Return the name as part of a Python module's name: `model_class`."""
        return self.name.replace("-", "_")


DEFAULT_FORM = "functions"
"""The form of starter projects, and of a source in which no form is recognised."""

FORMS: Mapping[str, FormRow] = {
    row.name: row
    for row in (
        FormRow(DEFAULT_FORM, runs_weights=True),
        # As Truss: a ValueError from preprocess is a 500, and only pydantic models convert.
        FormRow("model-class", value_error_is_400=False, converts_records=False),
        FormRow("module", batch="collate"),
        FormRow("flow", several_models=True),
        FormRow("sagemaker", converts_records=False),
        FormRow("lit-api", value_error_is_400=False, converts_records=False, package="litserve"),
        FormRow("cog", value_error_is_400=False, converts_records=False, package="cog"),
    )
}
"""By name, in the order of the documentation."""
