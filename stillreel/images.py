"""Images of strangers: fetched within limits, decoded safely, made upright RGB, fitted."""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from hashlib import sha256
from io import BytesIO

import numpy as np
from PIL import Image, ImageChops, ImageCms, ImageOps, TiffImagePlugin

from stillreel.errors import ImageError, ImageRejected, ImageTooLarge
from stillreel.guard import fetch_bytes, wait_for
from stillreel.settings import FetchSettings

FORMATS = ("JPEG", "PNG", "WEBP", "GIF", "BMP", "TIFF", "AVIF")
EXTENSIONS = {
    "JPEG": "jpg",
    "MPO": "jpg",
    "PNG": "png",
    "WEBP": "webp",
    "GIF": "gif",
    "BMP": "bmp",
    "TIFF": "tiff",
    "AVIF": "avif",
}
TINY_SIDE = 64
"""Pixels; below this an image gives little more than a blur."""
JPEG_SCANS = 200
"""A progressive JPEG has about ten; thousands make a small file decode for hours."""

_HEIF_BRANDS = (b"heic", b"heix", b"heim", b"heis", b"hevc", b"hevx", b"mif1", b"msf1")
_MODE_OF_PROFILE = {b"RGB ": "RGB", b"GRAY": "L", b"CMYK": "CMYK"}
"""By the colour space in bytes 16 to 19 of a profile (ICC.1:2022, 7.2.6)."""


@dataclass(frozen=True)
class Picture:
    """A decoded image: upright, opaque, 8-bit sRGB, one frame, without metadata."""

    image: Image.Image
    original_sha256: str
    warnings: tuple[str, ...]
    format: str


def fetch_image(url: str, settings: FetchSettings) -> bytes:
    """The bytes at `url`, within the limits of `settings`; not looked at yet.

    Raises what `guard.fetch_bytes` raises.
    """
    fetched = fetch_bytes(
        url,
        limit=settings.image_max_bytes,
        seconds=settings.fetch_seconds,
        allow=settings.allow_addresses,
    )
    return wait_for(fetched)[0]


def open_picture(data: bytes, settings: FetchSettings) -> Picture:
    """The picture in `data`, which is JPEG, PNG, WebP, GIF, BMP, TIFF or AVIF by its content.

    Its size is checked before anything is decoded. What had to be changed or left out stands in
    its warnings. Raises ImageTooLarge and ImageRejected.
    """
    notes: list[str] = []
    with _refusing(data, settings):
        image, name = _decode(data, settings.image_max_pixels, notes)
        _turn_upright(image, notes)
        image = _opaque_srgb(_eight_bit(image, notes), notes)
    if min(image.size) < TINY_SIDE:
        notes.append(f"The image is tiny ({image.width}x{image.height} pixels).")
    return Picture(image, sha256(data).hexdigest(), tuple(notes), name)


def probe_picture(data: bytes, settings: FetchSettings) -> str:
    """The extension of the picture's format, e.g. `jpg`, by its header; nothing is decoded.

    Raises ImageTooLarge and ImageRejected for what a header shows; decoding checks the rest.
    """
    with _refusing(data, settings), _open(data, settings.image_max_pixels) as image:
        return EXTENSIONS[str(image.format)]


def fit_picture(image: Image.Image, width: int, height: int) -> Image.Image:
    """`image` scaled to cover width x height pixels, and cropped to them around its centre."""
    return ImageOps.fit(image, (width, height), Image.Resampling.LANCZOS)


def encode_png(image: Image.Image) -> bytes:
    """`image` as an RGB PNG without metadata: the same pixels give the same bytes."""
    plain = image.convert("RGB")
    plain.info = {}
    buffer = BytesIO()
    plain.save(buffer, "PNG")
    return buffer.getvalue()


@contextmanager
def _refusing(data: bytes, settings: FetchSettings) -> Iterator[None]:
    """Refuses `data` of a wrong size, and whatever a decoder finds wrong with it in the block."""
    if len(data) > settings.image_max_bytes:
        raise ImageTooLarge(
            f"The image has {len(data):,} bytes; at most {settings.image_max_bytes:,} are allowed."
        )
    if not data:
        raise ImageRejected("The image has 0 bytes; send the file's content.")
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # what Pillow has to say is checked here or by load()
            yield
    except ImageError:
        raise
    except Image.DecompressionBombError as exc:
        raise ImageTooLarge(_too_many_pixels(settings.image_max_pixels)) from exc
    except Exception as exc:  # a decoder given hostile bytes raises anything
        raise ImageRejected(_refusal(data, exc)) from exc


def _decode(data: bytes, max_pixels: int, notes: list[str]) -> tuple[Image.Image, str]:
    """The first frame, decoded, and the name of its format."""
    image = _open(data, max_pixels)
    name = "JPEG" if image.format == "MPO" else str(image.format)
    if name != "JPEG" and getattr(image, "is_animated", False):
        notes.append("The image has several frames; the first is used.")
    image.load()
    return image, name


def _open(data: bytes, max_pixels: int) -> Image.Image:
    """The image by its header, whose size and cost are allowed."""
    image = Image.open(BytesIO(data), formats=FORMATS)
    _check_pixels(image.size, max_pixels)
    _check_cost(image, data, max_pixels)
    return image


def _check_pixels(size: tuple[int, int], max_pixels: int) -> None:
    if size[0] * size[1] > max_pixels:
        raise ImageTooLarge(_too_many_pixels(max_pixels, f" ({size[0]}x{size[1]})"))


def _check_cost(image: Image.Image, data: bytes, max_pixels: int) -> None:
    """Refuses files that cost much more to decode than their size says."""
    if isinstance(image, TiffImagePlugin.TiffImageFile):
        tile = (image.tag_v2.get(322, 0), image.tag_v2.get(323, 0))
        _check_pixels((int(tile[0]), int(tile[1])), max_pixels)
    # A motion photo has a film behind the JPEG, where the marker stands by chance each 64 KiB.
    most = JPEG_SCANS + len(data) // 32768
    if image.format in ("JPEG", "MPO") and data.count(b"\xff\xda") > most:
        raise ImageRejected("The JPEG has far too many scans; save it again and send that.")


def _too_many_pixels(max_pixels: int, size: str = "") -> str:
    return (
        f"The image has too many pixels{size}; at most {max_pixels:,} are allowed; scale it down."
    )


def _refusal(data: bytes, exc: Exception) -> str:
    if data[4:8] == b"ftyp" and data[8:12] in _HEIF_BRANDS:
        return "HEIC and HEIF images are not read; convert the image to JPEG or PNG."
    if isinstance(exc, Image.UnidentifiedImageError):
        return (
            "This is not an image we read, or it is damaged; "
            "send JPEG, PNG, WebP, GIF, BMP, TIFF or AVIF."
        )
    return "The image is damaged or cut off; send the whole file."


def _turn_upright(image: Image.Image, notes: list[str]) -> None:
    """Turns `image` in place, as its EXIF orientation says."""
    try:
        ImageOps.exif_transpose(image, in_place=True)
    except Exception:  # damaged metadata raises anything, and is no reason to refuse the pixels
        notes.append("The image's EXIF data is damaged; its orientation may be wrong.")


def _eight_bit(image: Image.Image, notes: list[str]) -> Image.Image:
    """`image`, scaled to 8-bit grey where its samples are deeper (Pillow would clip some)."""
    if image.mode.startswith("I;16"):
        return Image.fromarray((np.asarray(image) >> 8).astype(np.uint8))
    if image.mode not in ("I", "F"):
        return image
    notes.append("The image's samples have no fixed range; darkest to brightest was used.")
    samples = np.nan_to_num(np.asarray(image, np.float32), posinf=0, neginf=0)
    low, span = samples.min(), max(float(np.ptp(samples)), 1e-9)
    return Image.fromarray(((samples - low) * (255 / span)).astype(np.uint8))


def _opaque_srgb(image: Image.Image, notes: list[str]) -> Image.Image:
    """`image` as a new RGB image on white, its colours converted by its profile.

    Copies are few on purpose: each is 4 bytes per pixel, and 64 million pixels are allowed.
    """
    profile = image.info.get("icc_profile")
    alpha = None
    if image.has_transparency_data:
        image = _in_mode(image, "RGBA")
        alpha = image.getchannel("A")
        image = image.convert("RGB")
    image = _by_profile(image, profile, notes)
    if alpha is not None and alpha.getextrema() != (255, 255):
        notes.append("The image's transparent parts were put on white.")
        image.paste("white", mask=ImageChops.invert(alpha))
    image.info = {}
    return image


def _by_profile(image: Image.Image, profile: bytes | None, notes: list[str]) -> Image.Image:
    if not profile:
        return image.convert("RGB")
    try:
        source = ImageCms.ImageCmsProfile(BytesIO(profile))
        mode = _MODE_OF_PROFILE[profile[16:20]]
        if (mode == "CMYK") != (image.mode == "CMYK"):
            raise ValueError("the profile is of another kind than the image")
        transform = ImageCms.buildTransform(source, ImageCms.createProfile("sRGB"), mode, "RGB")
        return transform.apply(_in_mode(image, mode))
    except Exception:  # a damaged profile raises anything, and is no reason to refuse the pixels
        notes.append("The image's colour profile cannot be used; sRGB is assumed.")
        return image.convert("RGB")


def _in_mode(image: Image.Image, mode: str) -> Image.Image:
    return image if image.mode == mode else image.convert(mode)
