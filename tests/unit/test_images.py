"""Whatever a stranger sends becomes an upright RGB picture or a clear refusal."""

from __future__ import annotations

import struct
import zlib
from collections.abc import Callable
from contextlib import suppress
from io import BytesIO
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image, ImageCms

from stillreel.errors import AddressRefused, ImageRejected, ImageTooLarge, ImageUnavailable
from stillreel.images import (
    Picture,
    encode_png,
    fetch_image,
    fit_picture,
    open_picture,
    probe_picture,
)
from stillreel.settings import FetchSettings
from tests.receiver import answer, receiver, redirect


def limits(**fields: object) -> FetchSettings:
    return FetchSettings.model_validate(fields)


LIMITS = limits(image_max_pixels=1_000_000, image_max_bytes=5_000_000)
RED, GREEN, BLUE, WHITE = (255, 0, 0), (0, 255, 0), (0, 0, 255), (255, 255, 255)


def saved(image: Image.Image, kind: str, **options: Any) -> bytes:
    buffer = BytesIO()
    image.save(buffer, kind, **options)
    return buffer.getvalue()


def plain(size: tuple[int, int] = (96, 80), colour: Any = RED, mode: str = "RGB") -> Image.Image:
    return Image.new(mode, size, colour)


def noise(width: int = 96, height: int = 80) -> Image.Image:
    samples = np.random.default_rng(1).integers(0, 256, (height, width, 3), np.uint8)
    return Image.fromarray(samples)


def opened(data: bytes) -> Picture:
    picture = open_picture(data, LIMITS)
    assert picture.image.mode == "RGB"
    assert picture.image.info == {}
    return picture


def near(image: Image.Image, colour: tuple[int, int, int], at: tuple[int, int] = (40, 40)) -> bool:
    seen = image.getpixel(at)
    assert isinstance(seen, tuple)
    return all(abs(a - b) <= 12 for a, b in zip(seen, colour, strict=True))


@pytest.mark.parametrize("kind", ["JPEG", "PNG", "WEBP", "GIF", "BMP", "TIFF", "AVIF"])
def test_every_format_we_name_is_read(kind: str) -> None:
    picture = opened(saved(plain(), kind))
    assert picture.format == kind
    assert picture.image.size == (96, 80)
    assert near(picture.image, RED)
    assert picture.warnings == ()
    assert len(picture.original_sha256) == 64


def test_the_second_picture_of_a_camera_file_is_no_animation() -> None:
    data = saved(plain(), "MPO", save_all=True, append_images=[plain(colour=BLUE)])
    picture = opened(data)
    assert (picture.format, picture.warnings) == ("JPEG", ())
    assert near(picture.image, RED)


def test_a_motion_photo_is_a_jpeg() -> None:
    film = np.random.default_rng(1).bytes(20_000_000)
    picture = open_picture(saved(plain(), "JPEG") + film, limits(image_max_bytes=30_000_000))
    assert near(picture.image, RED)


def png_header(width: int, height: int) -> bytes:
    ihdr = b"IHDR" + struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    idat = b"IDAT" + zlib.compress(bytes(100))
    chunks = [
        struct.pack(">I", len(c) - 4) + c + struct.pack(">I", zlib.crc32(c))
        for c in (ihdr, idat, b"IEND")
    ]
    return b"\x89PNG\r\n\x1a\n" + b"".join(chunks)


def jpeg_header(width: int, height: int) -> bytes:
    data = saved(plain((8, 8)), "JPEG")
    at = data.index(b"\xff\xc0") + 5
    return data[:at] + struct.pack(">HH", height, width) + data[at + 4 :]


def gif_header(width: int, height: int) -> bytes:
    data = saved(plain((8, 8)), "GIF")
    return data[:6] + struct.pack("<HH", width, height) + data[10:]


def tiff_with_a_huge_tile() -> bytes:
    tile = zlib.compress(bytes(1000))
    tags = [(256, 4, 1, 16), (257, 4, 1, 16), (258, 3, 1, 8), (259, 3, 1, 8), (262, 3, 1, 1),
            (277, 3, 1, 1), (322, 4, 1, 40000), (323, 4, 1, 40000), (324, 4, 1, 8),
            (325, 4, 1, len(tile))]  # fmt: skip
    entries = b"".join(struct.pack("<HHII", *tag) for tag in tags)
    ifd = struct.pack("<H", len(tags)) + entries + bytes(4)
    return b"II*\0" + struct.pack("<I", 8 + len(tile)) + tile + ifd


@pytest.mark.parametrize(
    "data",
    [
        pytest.param(png_header(30000, 30000), id="png 30000x30000"),
        pytest.param(png_header(13000, 13000), id="png below Pillow's own limit"),
        pytest.param(png_header(9500, 9500), id="png at which Pillow only warns"),
        pytest.param(png_header(1001, 1000), id="png one column over"),
        pytest.param(png_header(2**31 - 1, 2**31 - 1), id="png as large as can be said"),
        pytest.param(jpeg_header(30000, 30000), id="jpeg"),
        pytest.param(gif_header(30000, 30000), id="gif"),
        pytest.param(tiff_with_a_huge_tile(), id="tiff with a tile larger than itself"),
    ],
)
def test_too_many_declared_pixels_are_refused_undecoded(data: bytes) -> None:
    assert len(data) < 2000
    for look in (open_picture, probe_picture):
        with pytest.raises(ImageTooLarge, match="1,000,000"):
            look(data, LIMITS)


def test_too_many_bytes_are_refused() -> None:
    for look in (open_picture, probe_picture):
        with pytest.raises(ImageTooLarge, match="1,000"):
            look(saved(noise(), "PNG"), limits(image_max_bytes=1000))


def many_scans() -> bytes:
    data = saved(noise(), "JPEG", progressive=True)
    last = data.rindex(b"\xff\xda")
    return data[:last] + data[last:-2] * 300 + data[-2:]


@pytest.mark.parametrize(
    ("data", "text"),
    [
        pytest.param(b"", "0 bytes", id="nothing"),
        pytest.param(b"<html>not here</html>", "not an image", id="a web page"),
        pytest.param(b"%PDF-1.7\n%", "not an image", id="a PDF"),
        pytest.param(b"<svg xmlns='http://www.w3.org/2000/svg'/>", "not an image", id="SVG"),
        pytest.param(b"%!PS-Adobe-3.0 EPSF-3.0\n", "not an image", id="EPS is never run"),
        pytest.param(saved(plain(), "ICO"), "not an image", id="a format Pillow could read"),
        pytest.param(b"\0\0\0\x18ftypheic\0\0\0\0mif1heic", "HEIC", id="HEIC"),
        pytest.param(b"\0\0\0\x18ftypmif1\0\0\0\0mif1heic", "HEIC", id="HEIF"),
        pytest.param(b"\0\0\0\x20ftypisom\0\0\2\0isomiso2avc1mp41", "not an image", id="MP4"),
        pytest.param(saved(noise(), "JPEG")[:-900], "cut off", id="JPEG cut off"),
        pytest.param(saved(noise(), "PNG")[:-900], "cut off", id="PNG cut off"),
        pytest.param(saved(noise(), "WEBP")[:-900], "cut off|not an image", id="WebP cut off"),
        pytest.param(saved(noise(), "TIFF")[:-900], "cut off", id="TIFF cut off"),
        pytest.param(saved(noise(), "GIF")[:-900], "cut off", id="GIF cut off"),
        pytest.param(saved(noise(), "BMP")[:-900], "cut off", id="BMP cut off"),
        pytest.param(saved(noise(), "AVIF")[:-900], "damaged", id="AVIF cut off"),
        pytest.param(saved(noise(), "PNG")[:12], "cut off|not an image", id="only a signature"),
        pytest.param(many_scans(), "scans", id="JPEG that costs hours"),
    ],
)  # fmt: skip
def test_what_is_no_usable_image_is_refused(data: bytes, text: str) -> None:
    with pytest.raises(ImageRejected, match=text):
        open_picture(data, LIMITS)


@pytest.mark.parametrize(
    ("kind", "extension"),
    [
        ("JPEG", "jpg"),
        ("MPO", "jpg"),
        ("PNG", "png"),
        ("WEBP", "webp"),
        ("GIF", "gif"),
        ("BMP", "bmp"),
        ("TIFF", "tiff"),
        ("AVIF", "avif"),
    ],
)
def test_a_header_tells_the_format(kind: str, extension: str) -> None:
    assert probe_picture(saved(noise(), kind), LIMITS) == extension


@pytest.mark.parametrize(
    ("data", "text"),
    [(b"", "0 bytes"), (b"%PDF-1.7\n%", "not an image"), (many_scans(), "scans")],
)
def test_what_a_header_shows_to_be_no_image_is_refused(data: bytes, text: str) -> None:
    with pytest.raises(ImageRejected, match=text):
        probe_picture(data, LIMITS)


GOOD = [
    saved(noise(16, 16), kind) for kind in ("JPEG", "PNG", "WEBP", "GIF", "BMP", "TIFF", "AVIF")
]


@settings(max_examples=150, deadline=None)
@given(
    st.one_of(
        st.binary(max_size=200),
        st.tuples(st.sampled_from(GOOD), st.integers(0, 2000), st.binary(max_size=8)).map(
            lambda t: t[0][: t[1]] + t[2] + t[0][t[1] + len(t[2]) :]
        ),
    )
)
def test_no_bytes_raise_anything_but_our_errors(data: bytes) -> None:
    with suppress(ImageRejected, ImageTooLarge):
        probe_picture(data, LIMITS)
    try:
        picture = open_picture(data, LIMITS)
    except (ImageRejected, ImageTooLarge):
        return
    assert picture.image.mode == "RGB"


@pytest.mark.parametrize("kind", ["GIF", "WEBP", "PNG", "TIFF"])
def test_of_several_frames_the_first_is_used(kind: str) -> None:
    data = saved(plain(), kind, save_all=True, append_images=[plain(colour=BLUE)])
    picture = opened(data)
    assert near(picture.image, RED)
    assert "first is used" in picture.warnings[0]


@pytest.mark.parametrize(
    ("orientation", "size", "corner"),
    [
        (1, (90, 70), (5, 5)),
        (3, (90, 70), (84, 64)),
        (6, (70, 90), (64, 5)),
        (8, (70, 90), (5, 84)),
    ],
)
def test_the_picture_stands_upright(
    orientation: int, size: tuple[int, int], corner: tuple[int, int]
) -> None:
    image = plain((90, 70), WHITE)
    image.paste(RED, (0, 0, 20, 20))
    exif = Image.Exif()
    exif[0x0112] = orientation
    picture = opened(saved(image, "JPEG", exif=exif, quality=95))
    assert picture.image.size == size
    assert near(picture.image, RED, corner)


def test_damaged_exif_is_no_reason_to_refuse() -> None:
    for exif in (b"nonsense", b"MM\0*\xff\xff\xff\xff", b""):
        assert near(opened(saved(plain(), "JPEG", exif=b"Exif\0\0" + exif)).image, RED)


def test_exif_that_pillow_cannot_turn_is_a_warning() -> None:
    exif = Image.Exif()
    exif[0x010E] = "hello"
    exif[0x0112] = 6
    text_for_a_number = exif.tobytes().replace(b"\x01\x0e\0\2", b"\x01\x01\0\2")
    picture = opened(saved(plain(), "JPEG", exif=text_for_a_number))
    assert near(picture.image, RED)
    assert "EXIF" in picture.warnings[0]


def test_cmyk_becomes_rgb() -> None:
    assert near(opened(saved(plain(colour=(0, 255, 255, 0), mode="CMYK"), "JPEG")).image, RED)
    assert near(opened(saved(plain(colour=(0, 255, 255, 0), mode="CMYK"), "TIFF")).image, RED)


@pytest.mark.parametrize("kind", ["PNG", "TIFF"])
def test_sixteen_bit_grey_is_scaled_not_clipped(kind: str) -> None:
    ramp = np.linspace(0, 65535, 96, dtype=np.uint16)
    picture = opened(saved(Image.fromarray(np.tile(ramp, (80, 1))), kind))
    row = np.asarray(picture.image)[40, :, 0]
    assert (row == ramp >> 8).all()


@pytest.mark.parametrize("samples", [np.float32, np.int32])
def test_samples_without_a_range_are_stretched(samples: Callable[..., Any]) -> None:
    ramp = np.tile(np.linspace(-5, 1000, 96), (80, 1)).astype(samples)  # type: ignore[call-overload]
    picture = opened(saved(Image.fromarray(ramp), "TIFF"))
    assert picture.image.getextrema() == ((0, 255),) * 3
    assert "darkest to brightest" in picture.warnings[0]


def half_clear(mode: str) -> Image.Image:
    image = plain(colour=(255, 0, 0, 255), mode="RGBA")
    image.paste((0, 0, 255, 0), (0, 0, 30, 80))
    return image.convert(mode)


def clear_palette() -> bytes:
    image = Image.new("P", (96, 80), 1)
    image.putpalette([0, 0, 255, 255, 0, 0])
    image.paste(0, (0, 0, 30, 80))
    return saved(image, "PNG", transparency=0)


@pytest.mark.parametrize(
    "data",
    [
        pytest.param(saved(half_clear("RGBA"), "PNG"), id="RGBA"),
        pytest.param(saved(half_clear("RGBA"), "WEBP", lossless=True), id="WebP"),
        pytest.param(saved(half_clear("RGBA"), "GIF"), id="GIF"),
        pytest.param(clear_palette(), id="palette"),
    ],
)
def test_transparent_parts_lie_on_white(data: bytes) -> None:
    picture = opened(data)
    assert near(picture.image, WHITE, (10, 40))
    assert near(picture.image, RED, (60, 40))
    assert "white" in picture.warnings[0]


def test_grey_with_alpha_lies_on_white() -> None:
    image = opened(saved(half_clear("LA"), "PNG")).image
    assert near(image, WHITE, (10, 40))
    assert near(image, (76, 76, 76), (60, 40))


def test_an_alpha_channel_that_hides_nothing_is_no_warning() -> None:
    assert opened(saved(plain(colour=(255, 0, 0, 255), mode="RGBA"), "PNG")).warnings == ()


def rotated_profile() -> bytes:
    """An sRGB profile whose red and green primaries changed places."""
    data = bytearray(ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes())
    red, green = data.index(b"rXYZ", 128), data.index(b"gXYZ", 128)
    data[red + 4 : red + 12], data[green + 4 : green + 12] = (
        data[green + 4 : green + 12], data[red + 4 : red + 12])  # fmt: skip
    return bytes(data)


@pytest.mark.parametrize("kind", ["PNG", "JPEG", "WEBP"])
def test_an_embedded_profile_is_applied(kind: str) -> None:
    picture = opened(saved(plain(), kind, icc_profile=rotated_profile()))
    assert near(picture.image, GREEN)
    assert picture.warnings == ()


@pytest.mark.parametrize("mode", ["RGB", "CMYK", "L"])
def test_an_unusable_profile_is_a_warning(mode: str) -> None:
    for profile in (b"nonsense" * 40, rotated_profile().replace(b"RGB ", b"Lab ")):
        picture = opened(saved(plain(colour=0, mode=mode), "JPEG", icc_profile=profile))
        assert "profile" in picture.warnings[0]


def test_a_profile_of_another_kind_is_a_warning() -> None:
    cmyk = plain(colour=(0, 255, 255, 0), mode="CMYK")
    picture = opened(saved(cmyk, "JPEG", icc_profile=rotated_profile()))
    assert near(picture.image, RED)
    assert "profile" in picture.warnings[0]


@pytest.mark.parametrize("mode", ["1", "L", "P", "LAB"])
def test_other_colour_modes_become_rgb(mode: str) -> None:
    image = opened(saved(plain(colour=0, mode=mode), "TIFF")).image
    assert image.getpixel((1, 1)) == image.getpixel((90, 70))
    assert mode == "LAB" or near(image, (0, 0, 0))


def test_one_pixel_is_an_image() -> None:
    picture = opened(saved(plain((1, 1)), "PNG"))
    assert picture.warnings == ("The image is tiny (1x1 pixels).",)
    assert fit_picture(picture.image, 64, 48).getcolors() == [(64 * 48, RED)]


@pytest.mark.parametrize("size", [(96, 80), (400, 20), (20, 400), (1280, 704)])
def test_fit_covers_the_frame_from_the_centre(size: tuple[int, int]) -> None:
    image = plain(size, WHITE)
    middle = (size[0] // 2, size[1] // 2)
    half = min(size) // 5
    image.paste(RED, (middle[0] - half, middle[1] - half, middle[0] + half, middle[1] + half))
    fitted = fit_picture(image, 128, 128)
    assert fitted.size == (128, 128)
    assert near(fitted, RED, (64, 64))
    assert near(fitted, WHITE, (2, 2))


def test_a_png_depends_on_the_pixels_only() -> None:
    image = noise()
    marked = image.copy()
    marked.info = {"icc_profile": rotated_profile(), "dpi": (300, 300), "transparency": RED}
    assert encode_png(image) == encode_png(marked) == encode_png(image.copy())
    assert np.array_equal(np.asarray(Image.open(BytesIO(encode_png(image)))), np.asarray(image))


def test_an_image_is_fetched_within_the_settings() -> None:
    with receiver(answer(200, b"0123456789"), answer(200, b"0123456789x"), answer(404)) as server:
        local = limits(allow_addresses=(f"127.0.0.1:{server.port}",), image_max_bytes=10)
        assert fetch_image(server.url, local) == b"0123456789"
        with pytest.raises(ImageTooLarge):
            fetch_image(server.url, local)
        with pytest.raises(ImageUnavailable):
            fetch_image(server.url, local)
    with receiver(redirect("http://169.254.169.254/")) as server:
        for chosen in (limits(allow_addresses=(f"127.0.0.1:{server.port}",)), limits()):
            with pytest.raises(AddressRefused):
                fetch_image(server.url, chosen)
    assert len(server.requests) == 1
