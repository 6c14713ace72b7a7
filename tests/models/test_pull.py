"""Weights come from a hub into its cache, whole or not at all, and are then found and loaded."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from stillreel import cli
from stillreel.errors import (
    DiskFull,
    DownloadFailed,
    ModelUnavailable,
    OutputUnwritable,
    RequestRejected,
    SettingsInvalid,
)
from stillreel.models.base import ModelSpec
from stillreel.models.installed import Note, find_installed, read_note
from stillreel.models.ltx2_layouts import LORA
from stillreel.models.ltx2_weights import Networks
from stillreel.models.pull import Pulled, pull
from stillreel.models.registry import MODELS
from stillreel.models.wan22_weights import Wan22Weights
from stillreel.models.weights import find_beside, find_weights
from stillreel.settings import InferenceSettings
from tests.models.loopback_hub import GOOD_TOKEN, Hub
from tests.models.test_generate import stillreel


def on_main(spec: ModelSpec) -> ModelSpec:
    """The model as it would be with the branch `main` in the place of its commits."""
    repositories = tuple(replace(known, revision="main") for known in spec.repositories)
    return replace(spec, repositories=repositories)


PINNED = MODELS["wan-2.2"]
COMMIT = PINNED.repository().revision
WAN, LTX = on_main(PINNED), on_main(MODELS["ltx-2"])
SETTINGS = InferenceSettings.model_validate({"model_path": ""})
SHARD = "transformer/diffusion_pytorch_model.safetensors"
NOT_OURS = {"README.md": b"# Read me", "assets/logo.png": b"\x89PNG", ".gitattributes": b"*"}


@pytest.fixture
def hub() -> Iterator[Hub]:
    with Hub() as found:
        yield found


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty cache of the hub, and nobody logged in."""
    from huggingface_hub import constants

    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(constants, "HF_TOKEN_PATH", str(tmp_path / "token"))
    monkeypatch.delenv("HF_TOKEN", raising=False)
    return tmp_path / "cache"


def pulled(hub: Hub, spec: ModelSpec = WAN, preset: str = "") -> Pulled:
    return pull(spec, SETTINGS, preset=preset, endpoint=hub.url)


def files_in(folder: Path) -> dict[str, bytes]:
    return {
        path.relative_to(folder).as_posix(): path.read_bytes()
        for path in folder.rglob("*")
        if path.is_file()
    }


def test_what_was_pulled_is_found_and_loads(hub: Hub, wan_folder: Path) -> None:
    commit = hub.publish(WAN.repo_id, wan_folder, NOT_OURS)
    done = pulled(hub)
    assert files_in(done.folder) == files_in(wan_folder)
    assert (done.commit, done.folder.name) == (commit, commit)
    assert done.fetched == done.size == sum(map(len, files_in(wan_folder).values()))
    assert find_weights(WAN, SETTINGS) == done.folder
    weights = Wan22Weights(WAN, SETTINGS)
    weights.folder_of("standard")
    weights.use("standard")
    assert weights["transformer"].config.in_channels == 48
    assert weights.use_text_encoder().text_encoder
    weights.close()


def test_of_ltx_2_the_folders_and_the_lora_come_and_no_other_single_file(
    hub: Hub, ltx_folder: Path
) -> None:
    import torch

    same_again = (
        "ltx-2-19b-dev.safetensors",
        "ltx-2-19b-dev-fp8.safetensors",
        "ltx-2-19b-distilled.safetensors",
        "ltx-2-spatial-upscaler-x2-1.0.safetensors",
        "text_encoder/pytorch_model.bin",
    )
    more = dict.fromkeys(same_again, b"large") | NOT_OURS | {"LICENSE.txt": b"terms"}
    hub.publish(LTX.repo_id, ltx_folder, more)
    done = pulled(hub, LTX, preset="dev")
    assert files_in(done.folder) == files_in(ltx_folder) | {"LICENSE.txt": b"terms"}
    assert (done.folder / LORA).is_file()
    networks = Networks(done.folder, torch.device("cpu"), torch.float32)
    networks.check()
    networks.use("cpu")
    assert networks.core("merged").transformer


def test_a_preset_with_weights_of_its_own_gets_those(hub: Hub, wan_folder: Path) -> None:
    repo_id = WAN.presets["fast"].repo_id
    hub.publish(repo_id, wan_folder)
    with pytest.raises(ModelUnavailable, match=r"models pull wan-2\.2 --preset fast"):
        find_weights(WAN, SETTINGS, repo_id=repo_id)
    done = pulled(hub, preset="fast")
    assert find_weights(WAN, SETTINGS, repo_id=repo_id) == done.folder
    with pytest.raises(ModelUnavailable, match=r"models pull wan-2\.2,"):
        find_weights(WAN, SETTINGS)


def test_what_a_preset_takes_from_beside_its_repository_comes_with_it(
    hub: Hub, tmp_path: Path
) -> None:
    from stillreel.models import tiny_ltx2

    spec = on_main(MODELS["ltx-2.3"])
    own = tiny_ltx2.build(tmp_path / "own", layout="2.3")
    (upsampler,) = spec.presets["standard"].beside
    hub.publish(spec.repo_id, own, {"connectors/diffusion_pytorch_model.safetensors": b"again"})
    with pytest.raises(ModelUnavailable, match=r"Spatial-Upsampler.*404"):
        pulled(hub, spec)
    hub.publish(upsampler, tiny_ltx2.build_upsampler(tmp_path / "beside"))
    done = pulled(hub, spec)
    (other,) = done.beside
    assert (other.repository.repo_id, done.repository.repo_id) == (upsampler, spec.repo_id)
    assert sorted(path.name for path in other.folder.iterdir()) == [
        "latent_upsampler",
        "model_index.json",
    ]
    assert find_beside(spec, SETTINGS, "standard") == [other.folder]
    assert find_beside(spec, SETTINGS, "one-stage") == []
    assert find_installed(spec, spec.repository(upsampler), SETTINGS)
    assert spec.presets_of(upsampler) == ("standard",)


def test_files_that_only_one_preset_needs_come_with_that_one(hub: Hub, tmp_path: Path) -> None:
    from stillreel.models import tiny_ltx2

    spec = on_main(MODELS["ltx-2.5"])
    hub.publish(spec.repo_id, tiny_ltx2.build(tmp_path / "own", layout="2.5"))
    folder = pulled(hub, spec).folder
    assert not (folder / "transformer_full").exists()
    assert (folder / "latent_upsampler").is_dir()
    hub.asked.clear()
    assert pulled(hub, spec, preset="dev").folder == folder
    assert {name.partition("/")[0] for name in hub.got()} == {"transformer_full"}
    assert find_weights(spec, SETTINGS) == folder


def test_pulling_again_fetches_nothing(hub: Hub, wan_folder: Path) -> None:
    hub.publish(WAN.repo_id, wan_folder)
    first = pulled(hub)
    hub.asked.clear()
    again = pulled(hub)
    assert hub.got() == []
    assert (again.folder, again.size, again.fetched) == (first.folder, first.size, 0)


def test_a_new_commit_fetches_only_what_changed(hub: Hub, wan_folder: Path, tmp_path: Path) -> None:
    hub.publish(WAN.repo_id, wan_folder)
    pulled(hub)
    hub.asked.clear()
    newer = hub.publish(WAN.repo_id, wan_folder, {"scheduler/new.json": b"{}"})
    done = pulled(hub)
    assert hub.got() == ["scheduler/new.json"]
    assert done.fetched == 2
    assert find_weights(WAN, SETTINGS).name == newer


def test_the_commit_of_the_registry_is_what_comes_and_is_found_whatever_main_is(
    hub: Hub, wan_folder: Path
) -> None:
    hub.publish(PINNED.repo_id, wan_folder, commit=COMMIT)
    hub.publish(PINNED.repo_id, wan_folder, {SHARD: b"newer"})
    done = pulled(hub, PINNED)
    assert (done.commit, done.folder.name) == (COMMIT, COMMIT)
    assert files_in(done.folder) == files_in(wan_folder)
    assert find_weights(PINNED, SETTINGS) == done.folder
    assert not (done.folder.parents[1] / "refs").exists()


def test_weights_that_were_pulled_as_main_are_found_where_main_was_that_commit(
    hub: Hub, wan_folder: Path
) -> None:
    hub.publish(PINNED.repo_id, wan_folder, commit=COMMIT)
    before = pulled(hub, WAN)
    assert find_weights(PINNED, SETTINGS) == before.folder
    hub.asked.clear()
    assert pulled(hub, PINNED).fetched == 0
    assert hub.got() == []


def test_another_commit_in_the_cache_is_named_and_a_pull_fetches_what_differs(
    hub: Hub, wan_folder: Path
) -> None:
    main = hub.publish(PINNED.repo_id, wan_folder)
    mine = pulled(hub, WAN).folder
    said = rf"takes {COMMIT[:12]}, and {main[:12]} is there.*models pull wan-2\.2"
    with pytest.raises(ModelUnavailable, match=said):
        find_weights(PINNED, SETTINGS)
    assert find_weights(PINNED, InferenceSettings.model_validate({"model_path": str(mine)})) == mine
    hub.publish(PINNED.repo_id, wan_folder, {"scheduler/new.json": b"{}"}, commit=COMMIT)
    hub.asked.clear()
    done = pulled(hub, PINNED)
    assert hub.got() == ["scheduler/new.json"]
    assert find_weights(PINNED, SETTINGS) == done.folder


@pytest.mark.parametrize("spoiled", ["broken", "wrong"])
def test_a_pinned_commit_that_did_not_come_whole_is_not_taken(
    hub: Hub, wan_folder: Path, spoiled: str
) -> None:
    hub.publish(PINNED.repo_id, wan_folder, commit=COMMIT)
    getattr(hub, spoiled).add(SHARD)
    with pytest.raises(DownloadFailed):
        pulled(hub, PINNED)
    with pytest.raises(ModelUnavailable, match="or not all"):
        find_weights(PINNED, SETTINGS)


def test_a_connection_that_is_cut_goes_on_where_it_was(
    hub: Hub, wan_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from huggingface_hub import constants

    monkeypatch.setattr(constants, "DOWNLOAD_CHUNK_SIZE", 1024)  # what it loses when it is cut
    hub.publish(WAN.repo_id, wan_folder)
    hub.cut.add(SHARD)
    done = pulled(hub)
    assert files_in(done.folder) == files_in(wan_folder)
    half = len((wan_folder / SHARD).read_bytes()) // 2
    (again,) = [asked.range for asked in hub.asked if asked.range]
    assert half - 1024 <= int(again.removeprefix("bytes=").removesuffix("-")) <= half


def test_a_pull_that_failed_keeps_what_came_and_is_finished_by_the_next(
    hub: Hub, wan_folder: Path
) -> None:
    hub.publish(WAN.repo_id, wan_folder)
    hub.broken.add(SHARD)
    with pytest.raises(DownloadFailed, match=r"500.*Wan2\.2.*kept"):
        pulled(hub)
    with pytest.raises(ModelUnavailable, match=r"models pull wan-2\.2"):
        find_weights(WAN, SETTINGS)
    came = set(hub.got()) - {SHARD}
    hub.broken.clear()
    hub.asked.clear()
    done = pulled(hub)
    assert SHARD in hub.got()
    assert not came & set(hub.got())
    assert files_in(done.folder) == files_in(wan_folder)


def test_an_update_that_fails_leaves_the_weights_that_were_there(
    hub: Hub, wan_folder: Path
) -> None:
    hub.publish(WAN.repo_id, wan_folder)
    old = pulled(hub).folder
    hub.publish(WAN.repo_id, wan_folder, {SHARD: b"newer"})
    hub.broken.add(SHARD)
    with pytest.raises(DownloadFailed):
        pulled(hub)
    hub.broken.clear()
    hub.sizes[SHARD] = 2**60
    with pytest.raises(DiskFull):
        pulled(hub)
    assert find_weights(WAN, SETTINGS) == old


@pytest.mark.parametrize("name", [SHARD, "transformer/config.json"], ids=["sha256", "git"])
def test_a_file_with_another_checksum_is_dropped_and_fetched_anew(
    hub: Hub, wan_folder: Path, name: str
) -> None:
    hub.publish(WAN.repo_id, wan_folder)
    hub.wrong.add(name)
    with pytest.raises(DownloadFailed, match=rf"{name}.*checksum"):
        pulled(hub)
    with pytest.raises(ModelUnavailable):
        find_weights(WAN, SETTINGS)
    hub.wrong.clear()
    hub.asked.clear()
    assert files_in(pulled(hub).folder) == files_in(wan_folder)
    assert hub.got() == [name]


def test_a_disk_that_is_too_small_is_said_before_anything_is_fetched(
    hub: Hub, wan_folder: Path, cache: Path
) -> None:
    hub.publish(WAN.repo_id, wan_folder)
    hub.sizes[SHARD] = 2**60
    with pytest.raises(DiskFull, match=r"1152921504\.\d GB more.*GB free.*HF_HOME") as caught:
        pulled(hub)
    assert cli.exit_code(caught.value) == cli.EXIT_FAILED
    assert hub.got() == []
    assert not cache.exists() or not files_in(cache)


@pytest.mark.parametrize(
    ("token", "said"),
    [("", r"\(401\).*HF_TOKEN is not set"), ("hf_other", r"\(403\).*no access yet")],
    ids=["nobody", "no-access"],
)
def test_a_gate_names_the_licence_the_page_and_the_token(
    hub: Hub, ltx_folder: Path, monkeypatch: pytest.MonkeyPatch, token: str, said: str
) -> None:
    hub.publish(LTX.repo_id, ltx_folder, gated="auto")
    if token:
        monkeypatch.setenv("HF_TOKEN", token)
    with pytest.raises(ModelUnavailable, match=said) as caught:
        pulled(hub, LTX)
    assert "LTX-2 Community License" in caught.value.message
    assert f"{hub.url}/Lightricks/LTX-2" in caught.value.message
    assert "hf_other" not in caught.value.message
    assert hub.got() == []


def test_a_token_opens_the_gate_and_is_never_told(
    hub: Hub, ltx_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    hub.publish(LTX.repo_id, ltx_folder, gated="manual")
    monkeypatch.setenv("HF_TOKEN", GOOD_TOKEN)
    told: list[str] = []
    done = pull(LTX, SETTINGS, endpoint=hub.url, tell=told.append)
    assert done.repository.gate == "ask for access"
    assert read_note(done.folder) == Note(done.commit, "ask for access", done.files)
    text = "\n".join(told)
    assert "LTX-2 Community License" in text
    assert f"{hub.url}/Lightricks/LTX-2; gate: ask for access there" in text
    assert GOOD_TOKEN not in text
    assert {asked.token for asked in hub.asked if asked.path.startswith("/lfs/")} == {""}
    assert text.index("licence") < text.index("to be fetched")


def test_what_the_hub_does_not_have_is_no_matter_of_trying_again(
    hub: Hub, wan_folder: Path
) -> None:
    with pytest.raises(ModelUnavailable, match=r"Wan2\.2-TI2V-5B-Diffusers.*404") as caught:
        pulled(hub)
    assert not caught.value.retryable


def test_a_hub_that_cannot_be_reached_is(
    hub: Hub, wan_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from huggingface_hub import constants

    hub.publish(WAN.repo_id, wan_folder)
    with Hub() as gone:
        pass
    with pytest.raises(DownloadFailed, match="cannot be reached") as caught:
        pulled(gone)
    assert caught.value.retryable
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    with pytest.raises(DownloadFailed, match="HF_HUB_OFFLINE is set"):
        pulled(hub)


def test_a_cache_that_cannot_be_written_is_named(hub: Hub, wan_folder: Path, cache: Path) -> None:
    hub.publish(WAN.repo_id, wan_folder)
    cache.write_text("a file where the directory should be")
    with pytest.raises(OutputUnwritable, match="HF_HOME"):
        pulled(hub)


def test_wrong_use_is_refused_without_asking_the_hub(hub: Hub, tmp_path: Path) -> None:
    with pytest.raises(RequestRejected, match="preview has no weights"):
        pulled(hub, MODELS["preview"])
    with pytest.raises(RequestRejected, match=r"'quick'.*standard, fast"):
        pulled(hub, preset="quick")
    with pytest.raises(SettingsInvalid, match=r"hf download Wan-AI/\S+ --local-dir MODEL_PATH/Wan"):
        pull(WAN, InferenceSettings.model_validate({"model_path": str(tmp_path)}))
    assert hub.asked == []


def test_weights_that_came_in_another_way_are_installed_without_a_note(
    hub: Hub, wan_folder: Path
) -> None:
    repository = WAN.repository()
    assert find_installed(WAN, repository, SETTINGS) is None
    theirs = InferenceSettings.model_validate({"model_path": str(wan_folder)})
    found = find_installed(WAN, repository, theirs)
    assert found
    assert (found.folder, found.commit, found.note) == (wan_folder, "", None)
    hub.publish(WAN.repo_id, wan_folder)
    done = pulled(hub)
    mine = find_installed(WAN, repository, SETTINGS)
    assert mine
    assert (mine.folder, mine.commit, mine.size) == (done.folder, done.commit, found.size)


# --- the command line -----------------------------------------------------------------------------


def test_the_commands_pull_and_list(hub: Hub, wan_folder: Path, tmp_path: Path) -> None:
    commit = hub.publish(WAN.repo_id, wan_folder, gated="auto", commit=COMMIT)
    env = {"HF_HOME": str(tmp_path / "hf"), "HF_ENDPOINT": hub.url, "HF_TOKEN": GOOD_TOKEN}
    done = stillreel(tmp_path, tmp_path / "home", "models", "pull", "wan-2.2", "--json", **env)
    assert done.returncode == 0, done.stderr
    facts = json.loads(done.stdout)
    assert Path(facts["path"]).is_relative_to(tmp_path / "hf")
    assert (facts["commit"], facts["licence"], facts["presets"]) == (
        commit,
        "Apache-2.0",
        ["standard"],
    )
    assert "licence: Apache-2.0" in done.stderr
    assert GOOD_TOKEN not in done.stdout + done.stderr

    shown = stillreel(tmp_path, tmp_path / "home", "models", "list", **env)
    assert shown.returncode == 0, shown.stderr
    head, wan, fast, ltx, *_ = shown.stdout.splitlines()
    assert head.split()[:2] == ["weights", "of"]
    assert wan.split()[:3] == ["wan-2.2", "standard", "yes"]
    assert commit[:12] in wan
    assert commit not in wan
    assert "accept its terms" in wan
    assert fast.split()[:3] == ["wan-2.2", "fast", "no"]
    assert ltx.split()[0] == "ltx-2"

    listed = json.loads(
        stillreel(tmp_path, tmp_path / "home", "models", "list", "--json", **env).stdout
    )
    weights = {model["id"]: model["weights"] for model in listed}
    assert weights["preview"] == []
    assert [row["installed"] for row in weights["wan-2.2"]] == [True, False]
    assert weights["wan-2.2"][0]["bytes"] == facts["bytes"]
    assert weights["wan-2.2"][0]["commit"] == commit


def test_a_refusal_ends_the_command_with_2_and_one_line(
    hub: Hub, ltx_folder: Path, tmp_path: Path
) -> None:
    commit = MODELS["ltx-2"].repository().revision
    hub.publish(LTX.repo_id, ltx_folder, gated="auto", commit=commit)
    env = {"HF_HOME": str(tmp_path / "hf"), "HF_ENDPOINT": hub.url, "HF_TOKEN": "hf_other"}
    done = stillreel(tmp_path, tmp_path / "home", "models", "pull", "ltx-2", **env)
    assert done.returncode == cli.EXIT_USAGE
    assert "LTX-2 Community License" in done.stderr
    assert "hf_other" not in done.stderr
    assert len([line for line in done.stderr.splitlines() if line.startswith("error")]) == 1
    assert done.stdout == ""
