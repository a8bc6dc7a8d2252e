"""LitServe.

python litserve_app.py PORT WORKERS
"""

import sys

import chosen
import litserve


class Api(litserve.LitAPI):
    def setup(self, device):
        self.model = chosen.load()

    def decode_request(self, request):
        return chosen.preprocess(request)

    def predict(self, inputs):
        return chosen.predict(inputs, self.model)

    def encode_response(self, outputs):
        return chosen.postprocess(outputs)


if __name__ == "__main__":
    batching = {"max_batch_size": chosen.BATCH_SIZE, "batch_timeout": 0.001} if chosen.BATCH_SIZE > 1 else {}
    server = litserve.LitServer(Api(**batching), accelerator="cpu", workers_per_device=int(sys.argv[2]))
    server.run(host="127.0.0.1", port=int(sys.argv[1]), generate_client_file=False)
