"""Load tests of a running model: a load generator, what recorded spans say meanwhile, and where the time goes."""

from handlergen.bench.measure import Measurement, measure

__all__ = ["Measurement", "measure"]
