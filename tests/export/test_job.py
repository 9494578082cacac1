"""What a user may ask an export for, and the sentence when it doesn't exist."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from export.job import Job
from rtprune.errors import InvalidInput


def job(tmp_path: Path, **changes: object) -> Job:
    asked: dict[str, Any] = {
        "checkpoint": tmp_path,
        "target": "cpu",
        "modes": "base",
        "output": tmp_path / "engines",
    }
    return Job.of(**(asked | changes))


def test_modes_become_sides(tmp_path: Path) -> None:
    assert job(tmp_path, modes="gundam, tiny").modes == ("tiny", "gundam")
    assert job(tmp_path, modes="gundam,tiny").sides == (512, 640, 1024)
    assert job(tmp_path, modes="tiny,small,base,large,gundam").sides == (512, 640, 1024, 1280)


def test_defaults_by_target(tmp_path: Path) -> None:
    assert (job(tmp_path).vision_precision, job(tmp_path).decoder_precision) == ("fp32", "auto")
    gpu = job(tmp_path, target="gpu")
    assert (gpu.vision_precision, gpu.decoder_precision) == ("fp16", "bf16")


@pytest.mark.parametrize(
    ("changes", "sentence"),
    [
        ({"modes": "base,huge"}, "There is no mode 'huge'; there are tiny, small, base, large, gundam."),
        ({"modes": " , "}, "No mode was named"),
        ({"target": "tpu"}, "There is no target 'tpu'; there are cpu and gpu."),
        (
            {"vision_precision": "int4"},
            "The vision can't be exported as 'int4' for target cpu; possible: fp32.",
        ),
        (
            {"decoder_precision": "int8"},
            "can't be exported as 'int8' for target cpu; possible: auto, fp32, bf16.",
        ),
        ({"vision_max_batch": 0}, "at least 1 image, not 0"),
        ({"output": Path("/proc")}, "/proc is a mount point"),
        ({"output": Path(__file__)}, "is a file; the engines need a folder"),
    ],
)
def test_what_does_not_exist_is_told_in_one_sentence(
    tmp_path: Path, changes: dict[str, Any], sentence: str
) -> None:
    with pytest.raises(InvalidInput) as error:
        job(tmp_path, **changes)
    assert sentence in str(error.value)
    assert "\n" not in str(error.value)
