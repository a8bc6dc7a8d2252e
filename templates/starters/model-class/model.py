"""A starter model as Truss writes them: one class. It doubles a list of numbers; put your model in its place."""

import torch


class Model:
    def __init__(self, config, data_dir, secrets):
        """Receives what it names of config, data_dir, secrets, environment and lazy_data_resolver.

        config is the mapping `config:` of handlergen.yaml; data_dir is data/ beside this file (pack it:
        `extra_files: [data]`); secrets are those that handlergen.yaml names, read from the server's environment.
        """
        self.device = "cuda" if torch.cuda.is_available() else "cpu"
        self.model = None

    def load(self):
        """Once per worker: make the model. If this fails, it is tried once more."""
        self.model = lambda numbers: numbers * 2

    def preprocess(self, inputs):
        """A request's content (JSON arrives decoded, files as bytes) to what predict takes.

        Runs beside the predictions of other requests. Any of the hooks may be async.
        """
        return inputs

    def predict(self, inputs):
        """What preprocess returned to outputs. Only one predict at a time runs on a device.

        Yield instead of returning, and the client gets each part as it is made; there must be no postprocess then.
        """
        return self.model(torch.tensor(inputs, dtype=torch.float32, device=self.device))

    def postprocess(self, outputs):
        """Outputs to the answer: numbers, lists, dicts, tensors, arrays, bytes.

        Runs beside the predictions of other requests, and sees the outputs on the CPU.
        """
        return outputs
