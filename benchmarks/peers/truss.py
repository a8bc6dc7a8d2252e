"""Truss's inference server, without the container that it is usually built into.

A Truss is deployed as an image whose working directory holds the server's code (`truss/templates/server` of the
package), the shared code as `_truss_shared`, config.yaml and model/. The same files are laid out here. Its semaphore
lets one predict run at a time (`predict_concurrency: 1`, the default); preprocess and postprocess run in threads.

Pinned: 0.18.36 wants a certifi that was not to be had when this was written (2026.10.19). Its `truss_server.py` and
`model_wrapper.py` are those of 0.18.35, byte for byte.
"""

from __future__ import annotations

import shutil

from peers.subject import APPS, Launch, Place, Subject
from peers.venvs import Environment

ENVIRONMENT = Environment("truss", bundled=("truss==0.18.35", "truss/templates/server/requirements.txt"))


def _launch(place: Place) -> Launch:
    [templates] = place.python.parent.parent.glob("lib/python3*/site-packages/truss/templates")
    app = place.directory / "app"
    shutil.copytree(templates / "server", app)
    shutil.copytree(templates / "shared", app / "_truss_shared")
    (app / "model").mkdir()
    (app / "model" / "__init__.py").touch()
    shutil.copy(APPS / "truss_model.py", app / "model" / "model.py")
    (app / "config.yaml").write_text(CONFIG)
    run = 'cd "$1" && PYTHONPATH="$1:$PYTHONPATH" exec "$2" "$3" "$4"'
    command = ["sh", "-c", run, "sh", app, place.python, APPS / "truss_app.py", str(place.ports[0])]
    return Launch(command, {"HOME": str(place.directory)})


CONFIG = """\
model_name: served
model_class_name: Model
model_class_filename: model.py
model_module_dir: model
data_dir: data
input_type: Any
model_framework: custom
model_type: Model
runtime:
  predict_concurrency: 1
secrets: {}
environment_variables: {}
requirements: []
system_packages: []
external_package_dirs: []
"""

SUBJECTS = (
    Subject(
        "truss",
        "Truss",
        _launch,
        environment=ENVIRONMENT,
        path="/v1/models/model:predict",
        serializes="semaphore",
        distributions=("truss",),
    ),
)
