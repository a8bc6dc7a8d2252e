"""All that knows TorchServe: batches, streamed answers, requests that it delivers twice."""
