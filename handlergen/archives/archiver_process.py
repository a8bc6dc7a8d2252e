"""One run of torch-model-archiver in a process of its own; not imported by handlergen.

`handlergen.archives.packing` hands this file's text to a Python interpreter. A process of its own because the
archiver configures the root logger (`logging.basicConfig` in generate_model_archive) and stages in a
directory of the temp directory that it deletes first (ModelExportUtils.copy_artifacts:
`tempfile.gettempdir()/<model name>`): here that is a private, empty one, whatever other threads do.

Reads JSON from stdin: `path` (sys.path), `temp` (the temp directory to use), `config`
(ModelArchiverConfig's fields).
"""

from __future__ import annotations

import json
import sys


def run() -> None:
    """Pack as the request on stdin says; raises what torch-model-archiver raises."""
    request = json.load(sys.stdin)
    # The interpreter was started with its own idea of where modules are; the caller's is the one that has
    # them.
    sys.path[:] = request["path"]

    import tempfile

    tempfile.tempdir = request["temp"]

    from model_archiver import ModelArchiver, ModelArchiverConfig

    ModelArchiver.generate_model_archive(ModelArchiverConfig(**request["config"]))


if __name__ == "__main__":
    run()
