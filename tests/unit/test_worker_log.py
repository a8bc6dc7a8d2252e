"""Reading the cause of a worker's death from log texts as TorchServe 0.12.0 writes them."""

from __future__ import annotations

from handlergen.server.readiness import load_failures, registration_failures, silent_deaths

MODEL_DIR = "/tmp/handlergen-4r_kn2io/models/74fc773a10d5421e85c4b8ec6a50c857"
SITE = "/venv/lib/python3.11/site-packages/ts"


def log(text: str, *, worker: str = "W-9000", stream: str = "stdout", model: str = "digits_1.0") -> str:
    head = f"2026-11-20T12:35:22,298 [INFO ] {worker}-{model}-{stream} MODEL_LOG - "
    return "".join(f"{head}{line}\n" for line in text.splitlines())


START = """s_name_part0=/tmp/x/.ts.sock, s_name_part1=9000, pid=12
Listening on port: /tmp/x/.ts.sock.9000
Torch worker started.
model_name: digits, batchSize: 1
"""

RUNTIME_ERROR = f"""Failed to load model digits, exception cannot load
Traceback (most recent call last):
  File "{MODEL_DIR}/digits.py", line 9, in helper
    raise ValueError('weights are broken')
ValueError: weights are broken

The above exception was the direct cause of the following exception:

Traceback (most recent call last):
  File "{SITE}/model_service_worker.py", line 133, in load_model
    service = model_loader.load(
              ^^^^^^^^^^^^^^^^^^
  File "{MODEL_DIR}/handlergen_handler.py", line 6, in initialize
    self.worker = Worker.start(context)
  File "{MODEL_DIR}/digits.py", line 6, in load
    raise RuntimeError('cannot load') from e
RuntimeError: cannot load
Backend worker process died.
Traceback (most recent call last):
  File "{SITE}/model_service_worker.py", line 301, in <module>
    worker.run_server()
RuntimeError: 500 - Unknown exception
"""

OTHER_ERROR = f"""Backend worker process died.
Traceback (most recent call last):
  File "{SITE}/model_service_worker.py", line 301, in <module>
    worker.run_server()
  File "{MODEL_DIR}/package/inner.py", line 3, in initialize
    helper()
KeyError: 'x'
"""


def test_the_users_frames_of_a_chained_error_with_paths_in_the_archive():
    (failure,) = load_failures(log(START + RUNTIME_ERROR))
    assert (failure.model, failure.worker) == ("digits_1.0", "W-9000")
    assert failure.traceback.splitlines() == [
        "Traceback (most recent call last):",
        '  File "digits.py", line 9, in helper',
        "    raise ValueError('weights are broken')",
        "ValueError: weights are broken",
        "",
        "The above exception was the direct cause of the following exception:",
        "",
        "Traceback (most recent call last):",
        '  File "digits.py", line 6, in load',
        "    raise RuntimeError('cannot load') from e",
        "RuntimeError: cannot load",
    ]


def test_an_error_that_torchserve_does_not_catch_comes_after_its_word():
    (failure,) = load_failures(log(START + OTHER_ERROR))
    assert failure.traceback.splitlines()[1:] == [
        '  File "package/inner.py", line 3, in initialize',
        "    helper()",
        "KeyError: 'x'",
    ]


def test_workers_are_told_apart_when_their_lines_mix():
    first = log(START + RUNTIME_ERROR).splitlines(keepends=True)
    second = log(START + OTHER_ERROR, worker="W-9001").splitlines(keepends=True)
    mixed = ""
    while first or second:
        for lines in (first, second):
            mixed += lines.pop(0) if lines else ""
    assert [(f.worker, f.traceback[-15:]) for f in load_failures(mixed)] == [
        ("W-9000", "or: cannot load"),
        ("W-9001", "r()\nKeyError: 'x'"[-15:]),
    ]


def test_a_traceback_that_the_model_only_logged_is_no_failure():
    logged = 'something odd\nTraceback (most recent call last):\n  File "x.py", line 1\nValueError: handled\n'
    assert load_failures("no log line at all\n" + log(START + logged + "ready now\n")) == []


def test_a_worker_that_cannot_even_start():
    text = f"""Traceback (most recent call last):
  File "{SITE}/model_service_worker.py", line 15, in <module>
    import yaml
ModuleNotFoundError: No module named 'yaml'
"""
    (failure,) = load_failures(log(text + text, stream="stderr"))
    assert failure.reason == f"TorchServe needs the package yaml, and the Python that runs {SITE} has none"
    other = text.replace("ModuleNotFoundError: No module named 'yaml'", "OSError: libyaml.so: no such file")
    (failure,) = load_failures(log(other + other, stream="stderr"))
    # There is no frame but TorchServe's: then they are shown, once.
    assert failure.reason == "TorchServe's own imports fail: OSError: libyaml.so: no such file"
    assert failure.traceback == other.rstrip()


REPORTED = f"""handlergen: the model could not be loaded: ValueError: weights are broken
Traceback (most recent call last):
  File "{MODEL_DIR}/digits.py", line 9, in load
    raise ValueError("weights are broken")
ValueError: weights are broken
"""
REPEATED = """Failed to load model digits, exception ValueError: weights are broken
Traceback (most recent call last):
  File "/venv/lib/python3.11/site-packages/ts/model_service_worker.py", line 133, in load_model
    service = model_loader.load(
RuntimeError: ValueError: weights are broken
"""


def test_the_report_of_a_worker_is_read_whatever_torchserve_and_the_standard_error_add():
    lines = log(START + REPORTED + REPEATED).splitlines(keepends=True)
    mixed = "".join(line + log("a warning", stream="stderr") for line in lines)
    (failure,) = load_failures(mixed)
    assert (failure.reason, failure.complete) == ("ValueError: weights are broken", True)
    assert failure.traceback.splitlines() == [
        "Traceback (most recent call last):",
        '  File "digits.py", line 9, in load',
        '    raise ValueError("weights are broken")',
        "ValueError: weights are broken",
    ]
    begun = log(START + REPORTED)
    assert [each.complete for each in load_failures(begun[: begun.index("    raise")])] == [False]


CRASH = f"""Fatal Python error: Segmentation fault

Stack (most recent call first):
  File "{MODEL_DIR}/digits.py", line 4 in load
  File "{MODEL_DIR}/handlergen_runtime/worker.py", line 121 in start
  File "{SITE}/model_service_worker.py", line 133 in load_model

Extension modules: numpy.core._multiarray_umath, torch._C (total: 2)
"""


def test_a_signal_in_load_is_named_and_one_in_a_request_is_no_failed_load():
    (failure,) = load_failures(log(START) + log(CRASH, stream="stderr"))
    assert failure.reason == "the worker was ended by signal 11 (SIGSEGV)"
    assert failure.traceback.splitlines()[2:] == [
        "Stack (most recent call first):",
        '  File "digits.py", line 4 in load',
    ]
    request = CRASH.replace("133 in load_model", "210 in handle_connection")
    assert load_failures(log(START) + log(request, stream="stderr")) == []


def test_a_worker_that_torchserve_ended_while_it_answered_is_no_failed_load():
    hung_up = f"""Backend worker process died.
Traceback (most recent call last):
  File "{SITE}/model_service_worker.py", line 301, in <module>
    worker.run_server()
  File "{SITE}/model_service_worker.py", line 187, in handle_connection
    cl_socket.sendall(resp)
BrokenPipeError: [Errno 32] Broken pipe
"""
    assert load_failures(log(START + hung_up)) == []
    own = hung_up.replace(f'{SITE}/model_service_worker.py", line 187', f'{MODEL_DIR}/digits.py", line 5')
    (failure,) = load_failures(log(START + own))
    assert failure.reason == "BrokenPipeError: [Errno 32] Broken pipe"


def test_the_second_life_of_a_worker_is_its_own():
    failures = load_failures(log(START + RUNTIME_ERROR + START))
    assert len(failures) == 1
    assert len(load_failures(log(START + RUNTIME_ERROR + START + RUNTIME_ERROR))) == 2


DEATH = "org.pytorch.serve.wlm.BatchAggregator - Load model failed: bad, error: Worker died."
TS_LOG = f"""2026-11-20T12:37:40,303 [WARN ] pool-3-thread-1 org.pytorch.serve.metrics.MetricCollector - not yet.
2026-11-20T12:37:42,446 [WARN ] W-9001-bad_1.0 {DEATH}
2026-11-20T12:37:42,519 [WARN ] W-9000-bad_1.0 {DEATH}
2026-11-20T12:37:43,001 [WARN ] main org.pytorch.serve.ModelServer - Failed to load model: /models of mine/broken.mar
org.pytorch.serve.archive.model.InvalidModelException: Model archive is corrupted
\tat org.pytorch.serve.archive.model.ModelArchive.validate(ModelArchive.java:1)
"""


def test_deaths_without_a_traceback_are_counted():
    assert silent_deaths(TS_LOG) == {"bad": ["Worker died.", "Worker died."]}


PIP_LOG = """2026-11-20T12:55:05,381 [ERROR] main org.pytorch.serve.wlm.ModelManager - \
Custom pip package installation failed for model req:
ERROR: No matching distribution found for nothing

2026-11-20T12:55:05,385 [WARN ] main org.pytorch.serve.ModelServer - Failed to load model: /store/req.mar
org.pytorch.serve.archive.model.ModelException: Custom pip package installation failed for model req
\tat org.pytorch.serve.wlm.ModelManager.setupModelDependencies(ModelManager.java:378)
"""


def test_what_pip_said_is_part_of_the_reason():
    assert "No matching distribution found for nothing" in registration_failures(PIP_LOG)["req.mar"]


def test_why_an_archive_was_refused():
    assert registration_failures(TS_LOG) == {
        "broken.mar": "org.pytorch.serve.archive.model.InvalidModelException: Model archive is corrupted"
    }
