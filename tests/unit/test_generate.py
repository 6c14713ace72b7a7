"""`generate` refuses before it starts or writes anything."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from stillreel.errors import (
    ModelUnavailable,
    OutputUnwritable,
    StillreelError,
)
from stillreel.generate import _take, draw_image, generate
from stillreel.images import encode_png
from stillreel.job import Video
from stillreel.models.registry import MODELS
from stillreel.scene import draw_scene
from stillreel.settings import get_settings
from stillreel.storage import LocalStorage


@pytest.fixture
def home(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    monkeypatch.setenv("STILLREEL_HOME", str(tmp_path / "home"))
    return tmp_path / "home"


def refused(error: type[StillreelError], output: Path, source: Path | None, **values: Any) -> str:
    with pytest.raises(error) as caught:
        generate(
            encode_png(draw_scene(160, 90)),
            {"model": "preview", "prompt": "zoom in", **values},
            output,
            settings=get_settings(),
            listener=lambda _: None,
            source=source,
        )
    return caught.value.message


@pytest.mark.parametrize(
    ("source", "output"),
    [
        pytest.param("photo.mp4", "photo.mp4", id="video over the image"),
        pytest.param("photo-poster.jpg", "photo.mp4", id="poster over the image"),
    ],
)
@pytest.mark.parametrize("linked", ["", "symlink", "hard link"])
def test_the_image_is_never_written_over(
    home: Path, tmp_path: Path, source: str, output: str, linked: str
) -> None:
    image = tmp_path / "original.png" if linked else tmp_path / source
    image.write_bytes(draw_image())
    if linked == "symlink":
        (tmp_path / source).symlink_to(image)
    elif linked:
        (tmp_path / source).hardlink_to(image)
    before = image.read_bytes()
    assert "over your image" in refused(OutputUnwritable, tmp_path / output, image)
    assert image.read_bytes() == before
    assert not home.exists()


@pytest.mark.parametrize("name", ["photo.jpg", "photo.mkv", "photo"])
def test_a_video_is_called_mp4(home: Path, tmp_path: Path, name: str) -> None:
    assert ".mp4" in refused(OutputUnwritable, tmp_path / name, None)
    assert list(tmp_path.iterdir()) == []


def test_a_model_without_its_code_is_refused_at_once(
    home: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    nowhere = replace(MODELS["ltx-2"], backend="stillreel.models.nowhere:Backend")
    monkeypatch.setitem(MODELS, "ltx-2", nowhere)
    assert "preview" in refused(ModelUnavailable, tmp_path / "a.mp4", None, model="ltx-2")
    assert list(tmp_path.iterdir()) == []


def test_a_video_that_cannot_be_put_in_its_place_is_still_stored_and_the_error_says_where(
    tmp_path: Path,
) -> None:
    storage = LocalStorage(tmp_path / "storage")
    storage.put_bytes("outputs/job_1/output.mp4", b"film", content_type="video/mp4")
    video = Video.model_construct(key="outputs/job_1/output.mp4", poster_key="outputs/job_1/p.jpg")
    (tmp_path / "file").touch()
    output = tmp_path / "file" / "film.mp4"
    with pytest.raises(OutputUnwritable, match=r"stored under outputs/job_1/output\.mp4"):
        _take(storage, video, output, output.with_suffix(".jpg"))
