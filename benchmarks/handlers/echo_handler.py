"""The least that a TorchServe handler can be: what it costs is TorchServe."""


class EchoHandler:
    def initialize(self, context):
        self.initialized = True

    def handle(self, data, context):
        return [row["body"] for row in data]
