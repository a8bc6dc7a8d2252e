"""Everything that knows TorchServe: batches, streamed answers, duplicate requests."""
