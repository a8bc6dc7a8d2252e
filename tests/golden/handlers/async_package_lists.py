"""TorchServe handler for `detector.hooks`, written by handlergen 0.0.0.

There is no logic here: requests go to the package handlergen_runtime beside this file, which calls the hooks
of that module. To change what happens, change the module or handlergen.yaml and archive again.
"""

from typing import Any

from handlergen_runtime.environment import require_environment

require_environment()

from handlergen_runtime.worker import Worker  # noqa: E402
from ts.torch_handler.base_handler import BaseHandler  # noqa: E402


class DetectorHandler(BaseHandler):
    """Serves `detector.hooks` (form: functions).

        preprocess   hooks.fetch(data)  (async)
        predict      hooks.run(keyword_number_0, keyword_number_1, keyword_number_2, keyword_number_...)
        postprocess  hooks.stream(outputs)  (async, streams)

    Several requests at once: predict gets the list of their inputs and returns as many outputs.
    Predictions are not serialized: this archive was made with lock: none.
    """

    def initialize(self, context: Any) -> None:
        """Import the user's module and load the model, once per worker."""
        self.worker = Worker.start(context)
        self.context = context
        self.initialized = True

    def preprocess(self, data: Any) -> Any:
        """Decode the requests of one batch and make model inputs of them."""
        return self.worker.preprocess(data, self.context)

    def inference(self, data: Any, *args: Any, **kwargs: Any) -> Any:
        """Run the model on prepared inputs."""
        return self.worker.predict(data)

    def postprocess(self, data: Any) -> Any:
        """Make answers of the model's outputs and encode them."""
        return self.worker.postprocess(data, self.context)

    def handle(self, data: Any, context: Any) -> Any:
        """Answer one batch: the three stages above, overlapped between its requests."""
        return self.worker.handle(data, context)
