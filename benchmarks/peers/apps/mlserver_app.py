"""A custom runtime of MLServer, as its documentation writes them."""

import chosen
from mlserver import MLModel
from mlserver.types import InferenceResponse, ResponseOutput


class Runtime(MLModel):
    async def load(self):
        self.model = chosen.load()
        return True

    async def predict(self, payload):
        columns = {tensor.name: list(tensor.data) for tensor in payload.inputs}
        requests = [dict(zip(columns, row, strict=True)) for row in zip(*columns.values(), strict=True)]
        rows = [chosen.preprocess(request) for request in requests]
        answers = [chosen.postprocess(output) for output in chosen.predict_rows(rows, self.model)]
        return InferenceResponse(
            model_name=self.name,
            outputs=[_tensor(name, [answer[name] for answer in answers]) for name in answers[0]],
        )


def _tensor(name, values):
    if isinstance(values[0], list):
        shape, data = [len(values), len(values[0])], [number for value in values for number in value]
    else:
        shape, data = [len(values), 1], values
    return ResponseOutput(name=name, shape=shape, datatype="INT64" if isinstance(data[0], int) else "FP32", data=data)
