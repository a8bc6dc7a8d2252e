"""model-config.yaml, as text: golden, YAML with the types TorchServe asks for, and even placement."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml

from handlergen.archives.model_config import model_config, worker_layout
from handlergen.project.settings import Settings

CONFIGS = Path(__file__).parent / "model_configs"

CASES: dict[str, tuple[Settings, int, bool]] = {
    "defaults": (Settings(name="m"), 0, False),
    "auto_four_gpus": (Settings(name="m"), 4, False),
    "cpu_with_requirements": (Settings(name="m", devices="cpu", workers_per_device=2), 4, True),
    "listed_gpus": (
        Settings(
            name="m",
            devices=(0, 2),
            workers_per_device=3,
            batch_size=8,
            max_batch_delay_ms=20,
            response_timeout_s=60,
            startup_timeout_s=600,
            queue_size=500,
        ),
        0,
        False,
    ),
}


def written(case: str) -> str:
    settings, gpus, has_requirements = CASES[case]
    return model_config(settings, gpus=gpus, has_requirements=has_requirements)


@pytest.mark.parametrize("case", CASES)
def test_text(case: str, golden: Callable[[Path, str], None]) -> None:
    golden(CONFIGS / f"{case}.yaml", written(case))


def test_no_golden_config_is_left_over() -> None:
    assert {path.stem for path in CONFIGS.glob("*.yaml")} == set(CASES)


@pytest.mark.parametrize("case", CASES)
def test_every_value_has_the_type_that_torchserve_reads(case: str) -> None:
    # archive/model/ModelConfig.java ignores a value of another type, with a warning.
    wanted: dict[str, type] = {
        "minWorkers": int,
        "maxWorkers": int,
        "batchSize": int,
        "maxBatchDelay": int,
        "responseTimeout": int,
        "startupTimeout": int,
        "jobQueueSize": int,
        "deviceType": str,
        "deviceIds": list,
        "useVenv": bool,
    }
    config: dict[str, Any] = yaml.safe_load(written(case))
    assert {key: type(value) for key, value in config.items()} == {key: wanted[key] for key in config}
    optional = {"deviceType", "deviceIds", "useVenv"}
    assert wanted.keys() - optional <= config.keys()
    assert config["minWorkers"] == config["maxWorkers"]


def test_a_delay_of_zero_would_mean_a_hundred() -> None:
    config = yaml.safe_load(model_config(Settings(name="m", max_batch_delay_ms=0), gpus=0, has_requirements=False))
    assert config["maxBatchDelay"] == 1


def test_timeouts_are_rounded_up_to_whole_seconds() -> None:
    settings = Settings(name="m", response_timeout_s=1.2, startup_timeout_s=0.5)  # type: ignore[arg-type]
    config = yaml.safe_load(model_config(settings, gpus=0, has_requirements=False))
    assert (config["responseTimeout"], config["startupTimeout"]) == (2, 1)


@pytest.mark.parametrize("gpus", [2, 3, 8])
def test_auto_places_the_same_number_of_workers_on_every_gpu(gpus: int) -> None:
    place = worker_layout(Settings(name="m", workers_per_device=3), gpus=gpus)
    assert place.device_ids is not None
    # TorchServe gives worker i the id at i modulo their number.
    taken = [place.device_ids[worker % len(place.device_ids)] for worker in range(place.workers)]
    assert {taken.count(index) for index in range(gpus)} == {3}


def test_an_archive_made_without_a_gpu_may_use_one() -> None:
    laptop = worker_layout(Settings(name="m"), gpus=0)
    assert laptop == worker_layout(Settings(name="m"), gpus=1)
    assert (laptop.device_type, laptop.device_ids) == (None, None)


def test_cpu_stays_on_the_cpu_whatever_is_there() -> None:
    place = worker_layout(Settings(name="m", devices="cpu"), gpus=8)
    assert (place.device_type, place.device_ids) == ("cpu", None)
    assert place.workers == Settings().workers_per_device


def test_listed_gpus_do_not_depend_on_this_machine() -> None:
    settings = Settings(name="m", devices=(5, 1), workers_per_device=2)
    assert worker_layout(settings, gpus=0) == worker_layout(settings, gpus=8)
    assert worker_layout(settings, gpus=0).device_ids == (5, 1)
    assert worker_layout(settings, gpus=0).workers == 4
