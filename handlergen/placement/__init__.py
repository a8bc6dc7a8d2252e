"""Where predict, preprocess and postprocess run: `predictor` and `stages`, resolved by reading the source.

With a predictor process there is one copy of the model for all workers of a device. preprocess and postprocess then
run in the workers if they use nothing that only the process with the model has. `reasons` says what they use of it.
"""

from __future__ import annotations

from handlergen.placement.deciding import place
from handlergen.placement.result import Placement, Reason

__all__ = ["Placement", "Reason", "place"]
