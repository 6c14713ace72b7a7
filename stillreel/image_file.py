"""An image in a file of this machine's user, or what is wrong with its path."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from stillreel.errors import ImageRejected, ImageTooLarge


def read_image(path: Path, limit: int) -> bytes:
    """The bytes of an image file, or of a pipe; at most `limit` of them.

    Raises ImageTooLarge, and ImageRejected, which says what is wrong with the path.
    """
    with reading(path), path.open("rb") as file:
        data = file.read(limit + 1)
    if len(data) > limit:
        raise ImageTooLarge(
            f"{path} has more than {limit:,} bytes, which is what STILLREEL_IMAGE_MAX_BYTES allows"
        )
    return data


@contextmanager
def reading(path: Path) -> Iterator[None]:
    """Raise ImageRejected for a device, and for what fails when `path` is read; it says why."""
    try:
        if path.is_char_device() or path.is_block_device():
            raise ImageRejected(f"{path} is a device; give an image file")
        yield
    except FileNotFoundError as exc:
        raise ImageRejected(f"there is no file {path}") from exc
    except IsADirectoryError as exc:
        raise ImageRejected(f"{path} is a directory; give an image file") from exc
    except OSError as exc:
        raise ImageRejected(f"{path} cannot be read: {exc.strerror}") from exc
