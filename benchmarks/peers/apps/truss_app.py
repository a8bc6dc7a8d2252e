"""What the container of a Truss runs (`main.py` of its server), on 127.0.0.1, which is the only difference.

python truss_app.py PORT      in a directory with config.yaml and model/model.py
"""

import functools
import sys

import uvicorn

_config = uvicorn.Config


@functools.wraps(_config, updated=())
def _local(*args, **kwargs):
    return _config(*args, **(kwargs | {"host": "127.0.0.1"}))


if __name__ == "__main__":
    uvicorn.Config = _local
    from truss_server import TrussServer

    TrussServer(int(sys.argv[1]), "config.yaml").start()
