"""Weights are found where they lie, and a folder of another family is refused by name."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest

from stillreel.errors import ModelUnavailable
from stillreel.models.registry import MODELS
from stillreel.models.weights import find_weights, has_weights, read_config
from stillreel.settings import InferenceSettings

SPEC = replace(MODELS["wan-2.2"], repo_id="org/wan-big", pipelines=("WanPipeline", "WanOther"))


def _folder(path: Path, class_name: str = "WanPipeline") -> Path:
    path.mkdir(parents=True)
    (path / "model_index.json").write_text(json.dumps({"_class_name": class_name}))
    return path


def _settings(path: Path) -> InferenceSettings:
    return InferenceSettings.model_validate({"model_path": str(path)})


def test_model_path_may_be_the_pipeline_folder_whatever_it_is_called(tmp_path: Path) -> None:
    folder = _folder(tmp_path / "mine")
    assert find_weights(SPEC, _settings(folder)) == folder


def test_model_path_may_hold_folders_called_like_the_repositories(tmp_path: Path) -> None:
    big, fast = _folder(tmp_path / "wan-big"), _folder(tmp_path / "wan-fast", "WanOther")
    assert find_weights(SPEC, _settings(tmp_path)) == big
    assert find_weights(SPEC, _settings(tmp_path), repo_id="org/wan-fast") == fast


def test_the_folder_of_one_repository_never_serves_another(tmp_path: Path) -> None:
    folder = _folder(tmp_path / "wan-big")
    with pytest.raises(ModelUnavailable, match=r"org/wan-fast.*wan-2\.2.*models pull wan-2\.2"):
        find_weights(SPEC, _settings(folder), repo_id="org/wan-fast")
    fast = _folder(tmp_path / "wan-fast")
    assert find_weights(SPEC, _settings(fast), repo_id="org/wan-fast") == fast


def test_a_model_path_without_weights_says_how_to_get_them(tmp_path: Path) -> None:
    with pytest.raises(ModelUnavailable, match=r"MODEL_PATH.*org/wan-big.*models pull wan-2\.2"):
        find_weights(SPEC, _settings(tmp_path / "nowhere"))


def test_a_folder_of_another_family_is_refused_with_both_names(tmp_path: Path) -> None:
    folder = _folder(tmp_path / "wan-big", "LTXPipeline")
    with pytest.raises(ModelUnavailable, match=r"are a LTXPipeline.*WanPipeline or a WanOther"):
        find_weights(SPEC, _settings(folder))


def test_a_model_has_weights_here_when_one_of_its_presets_has(tmp_path: Path) -> None:
    preset = SPEC.presets["fast"].repo_id.rpartition("/")[2]
    assert not has_weights(SPEC, _settings(tmp_path))
    _folder(tmp_path / preset)
    assert has_weights(SPEC, _settings(tmp_path))
    assert has_weights(MODELS["preview"], _settings(tmp_path / "nowhere"))


@pytest.mark.parametrize("text", ["", "[]", "{"], ids=["empty", "list", "broken"])
def test_a_half_fetched_folder_is_refused_with_the_file(tmp_path: Path, text: str) -> None:
    folder = _folder(tmp_path / "wan-big")
    (folder / "model_index.json").write_text(text)
    with pytest.raises(ModelUnavailable, match=r"wan-big/model_index\.json"):
        find_weights(SPEC, _settings(folder))
    with pytest.raises(ModelUnavailable, match=r"transformer/config\.json"):
        read_config(folder, "transformer")
