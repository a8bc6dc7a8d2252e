"""Ray Serve: one replica, its requests in threads, and a lock of the user's own around predict."""

from __future__ import annotations

import tempfile

from peers.subject import APPS, Launch, Place, Subject
from peers.venvs import Environment

ENVIRONMENT = Environment("ray", ("ray[serve]",))


def _launch(place: Place) -> Launch:
    # Its sockets' paths must be shorter than the place's may be.
    directory = tempfile.mkdtemp(prefix="ray-")
    (place.directory / "ray").symlink_to(directory)
    return Launch(
        [place.python, APPS / "ray_app.py", str(place.ports[0]), directory],
        {
            "RAY_USAGE_STATS_ENABLED": "0",
            "RAY_worker_niceness": "0",
        },  # of 15 by default, which hurts beside others
    )


SUBJECTS = (
    Subject(
        "ray",
        "Ray Serve, threads and a lock",
        _launch,
        environment=ENVIRONMENT,
        serializes="the user's lock",
        distributions=("ray",),
    ),
)
