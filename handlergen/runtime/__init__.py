"""What travels inside a `.mar`, copied as it is to the package `handlergen_runtime`.

Standard library and torch only (TorchServe's `ts` is imported where it is used), relative imports only: this
package knows nothing of the rest of handlergen, and runs where handlergen is not installed.
"""
