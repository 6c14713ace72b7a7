"""The registry states facts that hold together, and refuses clearly what is not installed."""

from __future__ import annotations

import re
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import get_args

import pytest

from stillreel.errors import ModelUnavailable
from stillreel.job import DURATION_LIMIT, JobSpec, ModelName
from stillreel.models import shots
from stillreel.models.base import ModelSpec
from stillreel.models.preview import PreviewBackend
from stillreel.models.registry import MODELS, get_model, is_available, load_backend
from stillreel.settings import InferenceSettings

SETTINGS = InferenceSettings.model_validate({})
EACH_MODEL = pytest.mark.parametrize("model", MODELS.values(), ids=lambda model: model.name)


def _elsewhere(module: str, name: str = "PreviewBackend") -> ModelSpec:
    return replace(MODELS["wan-2.2"], backend=f"{module}:{name}")


def test_each_model_name_that_an_order_may_hold_is_registered_under_its_own_name() -> None:
    assert set(MODELS) == set(get_args(ModelName))
    assert all(MODELS[name].name == name for name in MODELS)


@EACH_MODEL
def test_the_defaults_of_a_model_are_accepted_by_its_own_rules(model: ModelSpec) -> None:
    shot = shots.resolve(JobSpec(prompt="a lake"), model, job_id="job_12345678", image_size=None)
    assert (shot.crop_width, shot.crop_height) == model.default_size
    assert shot.width % model.grid == shot.height % model.grid == 0
    assert (shot.frames - 1) % model.frame_step == 0
    assert shot.frames == 121
    assert shot.warnings == ()


@EACH_MODEL
def test_all_listed_sizes_of_a_model_lie_on_its_grid(model: ModelSpec) -> None:
    assert [s for s in model.sizes if s[0] % model.grid or s[1] % model.grid] == []


@EACH_MODEL
def test_the_weights_of_each_preset_have_a_repository(model: ModelSpec) -> None:
    used = [model.repositories_of(name) for name in model.presets if model.repositories]
    assert {one.repo_id for several in used for one in several} == {
        repository.repo_id for repository in model.repositories
    }
    assert [several[0].repo_id for several in used] == [
        preset.repo_id or model.repo_id for preset in model.presets.values() if model.repositories
    ]
    assert all(repository.licence for repository in model.repositories)


@EACH_MODEL
def test_weights_are_taken_from_whole_commits(model: ModelSpec) -> None:
    unknown = {"dg845/LTX-2.3-Spatial-Upsampler-Diffusers"}
    moving = {r.repo_id for r in model.repositories if not re.fullmatch("[0-9a-f]{40}", r.revision)}
    assert moving <= unknown


@EACH_MODEL
def test_suggested_sizes_and_the_longest_piece_are_within_the_limits(model: ModelSpec) -> None:
    for width, height in model.suggested:
        order = JobSpec(prompt="a lake", model=model.name, width=width, height=height)
        shot = shots.resolve(order, model, job_id="job_12345678", image_size=None)
        assert (shot.crop_width, shot.crop_height, shot.warnings) == (width, height, ())
    assert model.native_seconds <= model.max_seconds <= DURATION_LIMIT


def test_a_model_that_does_not_exist_is_refused_with_those_that_do() -> None:
    assert get_model("preview") is MODELS["preview"]
    with pytest.raises(ModelUnavailable, match=r"'sora'.*preview, wan-2\.2, ltx-2"):
        get_model("sora")


def test_the_preview_backend_is_loaded_by_its_entry() -> None:
    spec = get_model("preview")
    backend = load_backend(spec, SETTINGS)
    assert isinstance(backend, PreviewBackend)
    assert backend.spec is spec


@pytest.mark.parametrize(
    "module", ["stillreel.models.not_here", "no_such_package.models.wan"], ids=["module", "package"]
)
def test_a_backend_that_is_not_installed_is_refused_before_any_import(module: str) -> None:
    spec = _elsewhere(module)
    assert not is_available(spec)
    with pytest.raises(ModelUnavailable, match=r"wan-2\.2.*has: preview.*stillreel\[models\]"):
        load_backend(spec, SETTINGS)


def test_a_backend_whose_imports_are_missing_names_the_package_and_keeps_the_cause(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "broken_backend.py").write_text("import a_missing_package\n")
    monkeypatch.syspath_prepend(tmp_path)
    spec = _elsewhere("broken_backend")
    assert is_available(spec)
    with pytest.raises(ModelUnavailable, match=r"wan-2\.2.*'a_missing_package'") as caught:
        load_backend(spec, SETTINGS)
    assert isinstance(caught.value.__cause__, ModuleNotFoundError)


def test_a_fault_in_a_backend_module_is_not_mistaken_for_a_missing_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "faulty_backend.py").write_text("1 / 0\n")
    monkeypatch.syspath_prepend(tmp_path)
    with pytest.raises(ZeroDivisionError):
        load_backend(_elsewhere("faulty_backend"), SETTINGS)


def test_asking_whether_a_model_is_available_imports_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "untouched_backend.py").write_text("1 / 0\n")
    monkeypatch.syspath_prepend(tmp_path)
    assert is_available(_elsewhere("untouched_backend"))
    assert "untouched_backend" not in sys.modules


def test_without_the_extra_everything_imports_and_what_needs_no_torch_is_available() -> None:
    """As on a control host: none of the packages of the extra `models` is there."""
    program = """
import importlib, pkgutil, sys
gone = {"torch", "diffusers", "transformers", "accelerate", "peft", "ftfy", "huggingface_hub"}
class Gone:
    def find_spec(self, name, *_):
        if name.partition(".")[0] in gone:
            raise ModuleNotFoundError(f"No module named {name!r}", name=name)
sys.meta_path.insert(0, Gone())
import flows.generate_video, stillreel
for module in pkgutil.walk_packages(stillreel.__path__, "stillreel."):
    importlib.import_module(module.name)
from stillreel.models.registry import MODELS, is_available
print([name for name, spec in MODELS.items() if is_available(spec)])
"""
    root = Path(__file__).parents[2]
    done = subprocess.run(
        [sys.executable, "-c", program], cwd=root, capture_output=True, text=True, check=False
    )
    assert (done.returncode, done.stdout) == (0, "['preview', 'remote']\n"), done.stderr
