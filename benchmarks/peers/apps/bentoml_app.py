"""BentoML: one copy of the model, requests in threads, a lock around predict."""

import threading

import bentoml
import chosen

THREADS = 16


@bentoml.service(workers=1, threads=THREADS)
class Served:
    def __init__(self):
        self.model = chosen.load()
        self.lock = threading.Lock()

    if chosen.BATCH_SIZE == 1:

        @bentoml.api
        def predict(self, request: dict) -> dict:
            inputs = chosen.preprocess(request)
            with self.lock:
                outputs = chosen.predict(inputs, self.model)
            return chosen.postprocess(outputs)

    else:

        @bentoml.api(batchable=True, max_batch_size=chosen.BATCH_SIZE)
        def predict(self, request: list[dict]) -> list[dict]:
            rows = [chosen.preprocess(each) for each in request]
            with self.lock:
                outputs = chosen.predict_rows(rows, self.model)
            return [chosen.postprocess(output) for output in outputs]
