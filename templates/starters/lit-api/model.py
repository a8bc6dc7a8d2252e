"""A starter model as LitServe writes them: a LitAPI. It doubles a list of numbers; put your model in its place."""

import litserve
import torch


class Doubler(litserve.LitAPI):
    def setup(self, device):
        """Once per copy of the model: put it on the device, which is text ("cuda:0", "cpu")."""
        self.device = device
        self.model = lambda numbers: numbers * 2

    def decode_request(self, request):
        """A request's content to what predict takes. Runs beside the predictions of other requests."""
        return request["numbers"]

    def predict(self, x):
        """What decode_request returned to outputs. Only one predict at a time runs on a device."""
        return self.model(torch.tensor(x, dtype=torch.float32, device=self.device))

    def encode_response(self, output):
        """Outputs to the answer. Runs beside the predictions of other requests, and sees them on the CPU."""
        return output
