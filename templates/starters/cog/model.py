"""A starter model as Cog writes them: a predictor. It doubles a list of numbers; put your model in its place."""

import torch
from cog import BasePredictor, Input


class Predictor(BasePredictor):
    def setup(self):
        """Once per copy of the model: make it."""
        self.device = "cuda" if torch.cuda.is_available() else "cpu"
        self.model = lambda numbers: numbers * 2

    def predict(self, numbers: list[float] = Input(description="what to double")) -> list[float]:
        """The keys of a request's JSON object to the answer. Only one predict at a time runs on a device."""
        return self.model(torch.tensor(numbers, device=self.device))
