"""What a request may ask for."""

from __future__ import annotations

from typing import Any

import pytest
from pydantic import ValidationError

from rtprune.errors import InvalidInput
from rtprune.modes import MODES
from rtprune.preprocess.options import check_options
from rtprune.settings import Settings

ALL: dict[str, Any] = {"built_sides": frozenset({512, 640, 1024, 1280}), "context_length": 8192}


def test_the_defaults() -> None:
    options = check_options(Settings(), **ALL)
    assert (options.mode, options.retention, options.max_tokens) == ("large", None, 4096)
    assert (options.ngram, options.window, options.time_limit) == (30, 90, 300.0)


def test_a_retention_is_rounded_to_six_decimals() -> None:
    assert check_options(Settings(), **ALL, retention=0.699999988).retention == 0.7


@pytest.mark.parametrize(
    ("setting", "pruned"),
    [
        ("auto", {"large": None, "gundam": None, "base": 1.0, "small": 1.0, "tiny": 1.0}),
        ("dynamic", dict.fromkeys(MODES)),
        ("off", dict.fromkeys(MODES, 1.0)),
        ("0.75", dict.fromkeys(MODES, 0.75)),
    ],
)
def test_the_server_s_retention_is_for_requests_that_name_none(
    setting: str, pruned: dict[str, float | None], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("RTPRUNE_RETENTION", setting)
    settings = Settings()
    assert {mode: check_options(settings, **ALL, mode=mode).retention for mode in MODES} == pruned
    for mode in MODES:
        assert check_options(settings, **ALL, mode=mode, retention=-1).retention is None
        assert check_options(settings, **ALL, mode=mode, retention=0.5).retention == 0.5
        assert check_options(settings, **ALL, mode=mode, retention=1).retention == 1.0


@pytest.mark.parametrize("setting", ["Dynamic", "0", "-1", "1.01", "nan", "none", ""])
def test_a_setting_that_is_no_retention_is_refused(setting: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RTPRUNE_RETENTION", setting)
    with pytest.raises(ValidationError, match="retention"):
        Settings()


def test_a_mode_without_an_engine_says_so() -> None:
    with pytest.raises(
        InvalidInput, match=r"MODE gundam needs .* 640 px, which was not built .*: tiny, base\."
    ):
        check_options(Settings(), built_sides=frozenset({512, 1024}), context_length=8192, mode="gundam")


@pytest.mark.parametrize("value", [(0, 0), (0, -5), (1, 1), (3, 1000)])
def test_ngram_rules_that_are_allowed(value: tuple[int, int]) -> None:
    options = check_options(Settings(), **ALL, no_repeat_ngram=value)
    assert options.ngram == value[0]


@pytest.mark.parametrize(
    ("option", "value"),
    [
        ("mode", "Base"),
        ("retention", float("inf")),
        ("retention", 4e-7),
        ("retention", 0.0),
        ("retention", -0.5),
        ("retention", float("nan")),
        ("max_tokens", 8193),
        ("no_repeat_ngram", (2, 1)),
        ("no_repeat_ngram", (5, 10**6)),
        ("time_limit", 1e9),
        ("time_limit", float("nan")),
    ],
)
def test_what_is_refused_names_the_input(option: str, value: Any) -> None:
    with pytest.raises(InvalidInput, match=f"^{option.upper()} must be"):
        check_options(Settings(), **ALL, **{option: value})
