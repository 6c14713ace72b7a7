"""The rules of a bucket: ours as the settings say, those of others untouched."""

from __future__ import annotations

from typing import Any

import pytest

from stillreel.bucket_rules import dangers, equal, prefix_of, with_cors, with_lifecycle
from stillreel.settings import StorageSettings

THEIRS: dict[str, Any] = {
    "ID": "their backups",
    "Status": "Enabled",
    "Filter": {"Prefix": "backups/"},
    "Expiration": {"Days": 7},
}


def settings_of(**values: object) -> StorageSettings:
    return StorageSettings.model_validate(values)


def days(rules: list[dict[str, Any]]) -> dict[str, int]:
    return {prefix_of(rule): rule["Expiration"]["Days"] for rule in rules if "Expiration" in rule}


def test_what_is_not_a_jobs_own_has_a_lifetime_by_default() -> None:
    assert days(with_lifecycle([], settings_of())) == {"temp/": 1, "latents/": 30, "results/": 90}


def test_inputs_and_videos_are_left_to_the_keeper_unless_the_bucket_is_told() -> None:
    kept = with_lifecycle([], settings_of(input_days=5, output_days=6))
    assert set(days(kept)) == {"temp/", "latents/", "results/"}
    told = with_lifecycle([], settings_of(bucket_input_days=50, bucket_output_days=60))
    assert days(told) | {"inputs/": 50, "outputs/": 60} == days(told)


def test_a_lifetime_that_is_taken_away_takes_its_rule_away_and_no_other() -> None:
    before = with_lifecycle([THEIRS], settings_of())
    after = with_lifecycle(before, settings_of(latents_days=0, results_days=0))
    assert days(after) == {"backups/": 7, "temp/": 1}
    assert after[0] == THEIRS


def test_the_same_rules_in_other_words_are_the_same() -> None:
    settings = settings_of()
    ours = with_lifecycle([], settings)
    old_words = [
        {k: v for k, v in rule.items() if k != "Filter"} | {"Prefix": prefix_of(rule)}
        for rule in reversed(ours)
    ]
    assert equal(old_words, ours)
    assert not equal(ours[:-1], ours)
    assert not equal([{**ours[0], "Status": "Disabled"}, *ours[1:]], ours)


def test_a_rule_of_others_that_takes_inputs_away_is_told() -> None:
    everything = {**THEIRS, "ID": "old", "Filter": {}}
    assert dangers([THEIRS]) == []
    assert dangers([{**everything, "Status": "Disabled"}]) == []
    assert dangers(with_lifecycle([], settings_of(bucket_input_days=1))) == []
    [told] = dangers([everything])
    assert "'old'" in told
    assert "inputs/ and outputs/ after 7 days" in told


def test_cors_is_ours_once_whatever_the_origins_were() -> None:
    theirs = {"AllowedOrigins": ["https://a.example"], "AllowedMethods": ["GET"]}
    first = with_cors([theirs], settings_of(upload_origins="https://b.example"))
    nameless = [{k: v for k, v in rule.items() if k != "ID"} for rule in first]
    again = with_cors(nameless, settings_of(upload_origins="https://c.example"))
    assert [rule["AllowedOrigins"] for rule in again] == [
        ["https://a.example"],
        ["https://c.example"],
    ]


@pytest.mark.parametrize("origin", ["app.example.com", "https://a.example/path", "ftp://a", "*.a"])
def test_what_is_no_origin_is_refused(origin: str) -> None:
    with pytest.raises(ValueError, match="is no origin"):
        settings_of(upload_origins=origin)


R2 = {"r2_bucket": "b", "r2_access_key": "k", "r2_secret_key": "s"}
ACCOUNT = "https://0a1b.r2.cloudflarestorage.com"


def test_a_jurisdiction_becomes_part_of_the_address() -> None:
    for endpoint in (ACCOUNT, f"{ACCOUNT}/", "https://0a1b.eu.r2.cloudflarestorage.com"):
        made = settings_of(**R2, r2_endpoint=endpoint, r2_jurisdiction="eu")
        assert made.r2_address == "https://0a1b.eu.r2.cloudflarestorage.com"
    assert settings_of(**R2, r2_endpoint=ACCOUNT).r2_address == ACCOUNT


@pytest.mark.parametrize(
    "endpoint", ["http://127.0.0.1:9000", "https://0a1b.fedramp.r2.cloudflarestorage.com"]
)
def test_a_jurisdiction_that_an_address_cannot_be_in_is_refused(endpoint: str) -> None:
    with pytest.raises(ValueError, match="R2_JURISDICTION is eu"):
        settings_of(**R2, r2_endpoint=endpoint, r2_jurisdiction="eu")
