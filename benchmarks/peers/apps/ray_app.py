"""Ray Serve: one replica, FastAPI's threads for requests, a lock around predict; `serve.batch` where batches pay.

python ray_app.py PORT DIRECTORY
"""

import signal
import sys
import threading

import chosen
import ray
from fastapi import Body, FastAPI
from ray import serve

app = FastAPI()


@serve.deployment(num_replicas=1, max_ongoing_requests=100)
@serve.ingress(app)
class Served:
    def __init__(self):
        self.model = chosen.load()
        self.lock = threading.Lock()

    if chosen.BATCH_SIZE == 1:

        @app.post("/predict")
        def predict(self, request: dict = Body()):  # noqa: B008 - FastAPI's way
            inputs = chosen.preprocess(request)
            with self.lock:
                outputs = chosen.predict(inputs, self.model)
            return chosen.postprocess(outputs)

    else:

        @app.post("/predict")
        async def predict(self, request: dict = Body()):  # noqa: B008
            return chosen.postprocess(await self.rows(chosen.preprocess(request)))

        @serve.batch(max_batch_size=chosen.BATCH_SIZE, batch_wait_timeout_s=0.001)
        async def rows(self, rows):
            return chosen.predict_rows(rows, self.model)


if __name__ == "__main__":
    ray.init(include_dashboard=False, _node_ip_address="127.0.0.1", _temp_dir=sys.argv[2], num_cpus=2)
    serve.start(http_options={"host": "127.0.0.1", "port": int(sys.argv[1])})
    serve.run(Served.bind(), name="served", route_prefix="/")
    signal.pause()
