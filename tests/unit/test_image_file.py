"""A path that leads to no image is refused with what is wrong with it."""

from __future__ import annotations

from pathlib import Path

import pytest

from stillreel.client.files import open_image
from stillreel.errors import ImageRejected, ImageTooLarge
from stillreel.image_file import read_image


@pytest.mark.parametrize(("size", "fits"), [(10, True), (11, False)])
def test_an_image_file_is_read_up_to_the_limit(tmp_path: Path, size: int, fits: bool) -> None:
    path = tmp_path / "photo.jpg"
    path.write_bytes(b"x" * size)
    if fits:
        assert read_image(path, 10) == b"x" * size
        return
    with pytest.raises(ImageTooLarge, match="more than 10 bytes"):
        read_image(path, 10)


def test_a_device_is_no_image() -> None:
    with pytest.raises(ImageRejected, match="is a device"):
        read_image(Path("/dev/zero"), 10)
    with pytest.raises(ImageRejected, match="is a device"):
        open_image(Path("/dev/zero"))


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("none.jpg", "there is no file"),
        (".", "is a directory"),
        ("photo.jpg/more", "cannot be read: Not a directory"),
    ],
)
def test_what_cannot_be_read_is_named(tmp_path: Path, name: str, text: str) -> None:
    (tmp_path / "photo.jpg").write_bytes(b"x")
    with pytest.raises(ImageRejected, match=text):
        read_image(tmp_path / name, 10)
