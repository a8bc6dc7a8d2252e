"""`model/model.py` of a Truss."""

import chosen


class Model:
    def __init__(self, **kwargs):
        self._model = None

    def load(self):
        self._model = chosen.load()

    def preprocess(self, request):
        return chosen.preprocess(request)

    def predict(self, inputs):
        return chosen.predict(inputs, self._model)

    def postprocess(self, outputs):
        return chosen.postprocess(outputs)
