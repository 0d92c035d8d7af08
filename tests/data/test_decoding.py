"""Decoding images and resizing them to squares, compared with Pillow."""

import io
import struct
from collections.abc import Callable
from concurrent import futures
from typing import Any

import hypothesis
import hypothesis.extra.numpy
import numpy as np
import pillow_heif
import pytest
from hypothesis import strategies
from PIL import Image, ImageOps

from remem_jax.data.images import decoding, formats

pillow_heif.register_heif_opener()  # Lets Pillow write and read HEIC.


def _encoded(image: Image.Image, kind: str = "PNG", **options: Any) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, kind, **options)
    return buffer.getvalue()


def _by_pillow(encoded: bytes) -> np.ndarray:
    with Image.open(io.BytesIO(encoded)) as image:
        return np.asarray(image.convert("RGB"))


@pytest.fixture
def picture(rng: np.random.Generator) -> np.ndarray:
    """A non-square image of noise."""
    return rng.integers(0, 256, (4, 6, 3), dtype=np.uint8)


@pytest.fixture
def soft(rng: np.random.Generator) -> Image.Image:
    """Smooth colors with odd side lengths, like a typical JPEG."""
    noise = rng.integers(0, 256, (6, 8, 3), dtype=np.uint8)
    return Image.fromarray(noise).resize((83, 61), Image.Resampling.BICUBIC)


# Decoding.


def test_png_is_decoded_to_its_pixels(picture: np.ndarray) -> None:
    decoded = decoding.decode(_encoded(Image.fromarray(picture)))

    np.testing.assert_array_equal(decoded, picture)


def test_decoded_images_are_uint8(picture: np.ndarray) -> None:
    assert decoding.decode(_encoded(Image.fromarray(picture), "JPEG")).dtype == np.uint8


@pytest.mark.parametrize("subsampling", ["4:4:4", "4:2:2", "4:2:0"])
@pytest.mark.parametrize("quality", [5, 50, 90, 100])
@pytest.mark.parametrize("progressive", [False, True])
def test_jpeg_decodes_like_pillow(
    soft: Image.Image, subsampling: str, quality: int, progressive: bool
) -> None:
    encoded = _encoded(
        soft, "JPEG", subsampling=subsampling, quality=quality, progressive=progressive
    )

    np.testing.assert_array_equal(decoding.decode(encoded), _by_pillow(encoded))


@pytest.mark.parametrize("size", [(1, 1), (1, 9), (9, 1), (16, 16), (17, 31), (33, 8)])
@pytest.mark.parametrize("mode", ["RGB", "L"])
def test_jpeg_of_any_size_decodes_like_pillow(
    soft: Image.Image, size: tuple[int, int], mode: str
) -> None:
    encoded = _encoded(soft.resize(size).convert(mode), "JPEG")

    np.testing.assert_array_equal(decoding.decode(encoded), _by_pillow(encoded))


@pytest.mark.parametrize("options", [{"keep_rgb": True}, {"restart_marker_rows": 1}])
def test_rare_kinds_of_jpeg_decode_like_pillow(soft: Image.Image, options: dict[str, Any]) -> None:
    encoded = _encoded(soft, "JPEG", **options)

    np.testing.assert_array_equal(decoding.decode(encoded), _by_pillow(encoded))


@pytest.mark.parametrize(
    ("mode", "color", "kind", "rgb"),
    [
        ("L", 7, "PNG", (7, 7, 7)),
        ("L", 7, "JPEG", (7, 7, 7)),
        ("1", 1, "PNG", (255, 255, 255)),
        ("LA", (7, 100), "PNG", (7, 7, 7)),
        ("RGB", (1, 2, 3), "BMP", (1, 2, 3)),
        ("RGBA", (1, 2, 3, 100), "PNG", (1, 2, 3)),
        ("RGBA", (1, 2, 3, 100), "WEBP", (1, 2, 3)),
        ("I;16", 200 * 257, "PNG", (200, 200, 200)),
        ("CMYK", (0, 255, 255, 0), "JPEG", (255, 0, 0)),
        ("CMYK", (0, 0, 0, 255), "JPEG", (0, 0, 0)),
    ],
)
def test_every_mode_is_decoded_to_rgb(mode: str, color: Any, kind: str, rgb: tuple) -> None:
    lossless = {"lossless": True, "exact": True} if kind == "WEBP" else {}
    encoded = _encoded(Image.new(mode, (16, 8), color), kind, **lossless)

    decoded = decoding.decode(encoded)

    expected = np.broadcast_to(np.asarray(rgb), (8, 16, 3))
    np.testing.assert_allclose(decoded, expected, atol=2)  # JPEG rounds in another color space.


@pytest.mark.parametrize("transparency", [None, 0, bytes([0, 128])])
def test_palettes_are_decoded_to_their_colors(transparency: Any) -> None:
    image = Image.new("P", (2, 1))
    image.putpalette([10, 20, 30, 40, 50, 60])
    image.putdata([0, 1])
    options = {} if transparency is None else {"transparency": transparency}

    decoded = decoding.decode(_encoded(image, **options))

    np.testing.assert_array_equal(decoded, [[[10, 20, 30], [40, 50, 60]]])


@pytest.mark.parametrize("kind", ["GIF", "WEBP", "PNG", "MPO", "TIFF", "AVIF", "HEIF"])
def test_the_first_of_several_frames_is_decoded(kind: str) -> None:
    red, blue = (Image.new("RGB", (16, 16), color) for color in ((255, 0, 0), (0, 0, 255)))
    encoded = _encoded(red, kind, save_all=True, append_images=[blue])

    decoded = decoding.decode(encoded)

    np.testing.assert_allclose(decoded, np.broadcast_to([255, 0, 0], (16, 16, 3)), atol=6)


@pytest.mark.parametrize("kind", ["HEIF", "AVIF", "TIFF", "GIF", "JPEG2000", "PPM", "BMP"])
def test_other_formats_decode_like_pillow(soft: Image.Image, kind: str) -> None:
    encoded = _encoded(soft, kind)

    np.testing.assert_array_equal(decoding.decode(encoded), _by_pillow(encoded))
    assert decoding.size(encoded) == (61, 83)


def test_a_16_bit_grey_map_is_scaled() -> None:
    levels = np.arange(12, dtype=np.uint16).reshape(3, 4) * 5000
    encoded = b"P5\n4 3\n65535\n" + levels.astype(">u2").tobytes()

    np.testing.assert_array_equal(decoding.decode(encoded)[..., 0], levels // 256)


@pytest.mark.parametrize("mode", ["I", "F"])
def test_grey_levels_of_unknown_range_are_refused(mode: str) -> None:
    with pytest.raises(decoding.CorruptImageError, match="32 bits, whose range is unknown"):
        decoding.decode(_encoded(Image.new(mode, (4, 3)), "TIFF"))


# Orientation.

_ORIENTATIONS: dict[int, Callable[[np.ndarray], np.ndarray]] = {
    1: lambda image: image,
    2: lambda image: image[:, ::-1],
    3: lambda image: image[::-1, ::-1],
    4: lambda image: image[::-1],
    5: lambda image: image.swapaxes(0, 1),
    6: lambda image: np.rot90(image, -1),
    7: lambda image: image[::-1, ::-1].swapaxes(0, 1),
    8: lambda image: np.rot90(image, 1),
}


def _rotated(image: Image.Image, orientation: int, kind: str) -> bytes:
    exif = Image.Exif()
    exif[0x0112] = orientation
    return _encoded(image, kind, exif=exif)


@pytest.mark.parametrize("orientation", _ORIENTATIONS)
@pytest.mark.parametrize("kind", ["PNG", "JPEG", "WEBP"])
def test_images_are_rotated_upright(picture: np.ndarray, orientation: int, kind: str) -> None:
    encoded = _rotated(Image.fromarray(picture), orientation, kind)

    decoded = decoding.decode(encoded)

    np.testing.assert_array_equal(decoded, _ORIENTATIONS[orientation](_by_pillow(encoded)))


@pytest.mark.parametrize("orientation", _ORIENTATIONS)
@pytest.mark.parametrize("kind", ["TIFF", "HEIF", "AVIF", "JPEG"])
def test_images_are_rotated_only_once(soft: Image.Image, orientation: int, kind: str) -> None:
    # While decoding, Pillow already rotates TIFF files and libheif rotates HEIC files.
    encoded = _rotated(soft, orientation, kind)
    with Image.open(io.BytesIO(encoded)) as image:
        expected = np.asarray(ImageOps.exif_transpose(image).convert("RGB"))

    decoded = decoding.decode(encoded)

    np.testing.assert_array_equal(decoded, expected)
    assert decoding.size(encoded) == expected.shape[:2]


@pytest.mark.parametrize("orientation", _ORIENTATIONS)
@pytest.mark.parametrize("kind", ["PNG", "JPEG", "WEBP"])
def test_the_size_equals_that_of_the_decoded_image(
    picture: np.ndarray, orientation: int, kind: str
) -> None:
    encoded = _rotated(Image.fromarray(picture), orientation, kind)

    assert decoding.size(encoded) == _ORIENTATIONS[orientation](picture).shape[:2]


def test_the_size_of_a_png_respects_exif_at_its_end(picture: np.ndarray) -> None:
    encoded = _rotated(Image.fromarray(picture), 6, "PNG")
    start = encoded.index(b"eXIf") - 4
    stop = start + 12 + int.from_bytes(encoded[start : start + 4], "big")
    end = encoded.index(b"IEND") - 4
    moved = encoded[:start] + encoded[stop:end] + encoded[start:stop] + encoded[end:]

    assert decoding.size(moved) == (6, 4)
    assert decoding.decode(moved).shape == (6, 4, 3)


def test_the_size_needs_only_the_header(soft: Image.Image) -> None:
    encoded = _encoded(soft, "JPEG")

    assert decoding.size(encoded[:650]) == (
        61,
        83,
    )  # Tables and frame header: 623 bytes.


@pytest.mark.parametrize(
    "exif",
    [
        b"XX*\0\x08\0\0\0",
        b"II*\0\x08\0\0\0\x01\0\x12\x01\x02\0\x02\0\0\0" + b"6".ljust(8, b"\0"),
        b"II*\0\x08\0\0\0\x01\0\x12\x01\x03\0\x01\0\0\0" + b"\x09".ljust(8, b"\0"),
    ],
    ids=["no TIFF", "orientation of text", "orientation of 9"],
)
@pytest.mark.parametrize("kind", ["JPEG", "PNG", "WEBP"])
def test_broken_exif_does_not_prevent_decoding(soft: Image.Image, exif: bytes, kind: str) -> None:
    encoded = _encoded(soft, kind, exif=b"Exif\0\0" + exif)

    np.testing.assert_array_equal(decoding.decode(encoded), _by_pillow(encoded))


def test_a_tiff_with_a_broken_exif_tag_is_read(soft: Image.Image) -> None:
    exif = Image.Exif()
    exif[0xFDE8] = 1234  # Turned below into an EXIF pointer past the end of the file.
    encoded = bytearray(_encoded(soft, "TIFF", exif=exif))
    at = encoded.rindex((0xFDE8).to_bytes(2, "little"))
    encoded[at : at + 12] = struct.pack("<HHII", 0x8769, 4, 1, 2**32 - 16)

    np.testing.assert_array_equal(decoding.decode(bytes(encoded)), np.asarray(soft))


@pytest.mark.parametrize("kind", ["PNG", "WEBP", "TIFF", "HEIF", "AVIF"])
def test_a_truncated_image_with_exif_is_corrupt(soft: Image.Image, kind: str) -> None:
    encoded = _rotated(soft, 6, kind)

    for share in (0.3, 0.6, 0.9):
        with pytest.raises(decoding.CorruptImageError, match=r"^\w.*$"):
            decoding.decode(encoded[: int(share * len(encoded))])


# Reduced decoding.


@pytest.mark.parametrize(
    ("at_least", "expected"),
    [
        ((800, 100), (400, 500)),  # Small images are not enlarged.
        ((400, 500), (400, 500)),
        ((201, 10), (400, 500)),
        ((200, 250), (200, 250)),
        ((101, 10), (200, 250)),
        ((10, 126), (200, 250)),
        ((100, 125), (100, 125)),
        ((50, 62), (50, 63)),
        ((1, 1), (50, 63)),
    ],
)
def test_a_jpeg_is_reduced_as_far_as_the_required_size_allows(
    soft: Image.Image, at_least: tuple[int, int], expected: tuple[int, int]
) -> None:
    encoded = _encoded(soft.resize((500, 400)), "JPEG")

    decoded = decoding.decode(encoded, at_least=at_least)

    assert decoded.shape[:2] == expected


@pytest.mark.parametrize("mode", ["RGB", "L", "CMYK"])
@pytest.mark.parametrize("reduction", [2, 4, 8])
def test_a_reduced_jpeg_decodes_like_pillow(soft: Image.Image, mode: str, reduction: int) -> None:
    width, height = 333, 250
    encoded = _encoded(soft.resize((width, height)).convert(mode), "JPEG")
    at_least = (-(-height // reduction), -(-width // reduction))

    decoded = decoding.decode(encoded, at_least=at_least)

    with Image.open(io.BytesIO(encoded)) as image:
        image.draft(None, (width // reduction, height // reduction))
        assert image.size == at_least[::-1]
        np.testing.assert_array_equal(decoded, np.asarray(image.convert("RGB")))


def test_the_required_size_refers_to_the_upright_image(soft: Image.Image) -> None:
    encoded = _rotated(soft.resize((400, 100)), 6, "JPEG")

    assert decoding.decode(encoded, at_least=(200, 50)).shape == (200, 50, 3)
    assert decoding.decode(encoded, at_least=(50, 60)).shape == (400, 100, 3)


def test_reducing_to_twice_the_target_size_barely_changes_the_result(soft: Image.Image) -> None:
    encoded = _encoded(soft.resize((800, 800), Image.Resampling.BICUBIC), "JPEG")

    whole = decoding.resize(decoding.decode(encoded), 100)
    reduced = decoding.resize(decoding.decode(encoded, at_least=(200, 200)), 100)

    np.testing.assert_allclose(reduced.astype(np.int32), whole.astype(np.int32), atol=4)


def test_other_formats_are_not_reduced(soft: Image.Image) -> None:
    assert decoding.decode(_encoded(soft), at_least=(1, 1)).shape == (61, 83, 3)


# Corrupt images.


def _bmp_of_billions_of_pixels(image: Image.Image) -> bytes:
    encoded = bytearray(_encoded(image, "BMP"))
    encoded[18:26] = (10**5).to_bytes(4, "little") * 2  # Width and height.
    return bytes(encoded)


@pytest.mark.parametrize(
    "spoil",
    [
        lambda image: b"",
        lambda image: b"no image",
        lambda image: _encoded(image)[:60],
        lambda image: _encoded(image, "JPEG")[:-40],
        lambda image: _encoded(image).replace(b"IDAT", b"IDAX"),
        _bmp_of_billions_of_pixels,
    ],
    ids=["empty", "text", "cut PNG", "cut JPEG", "wrong chunk", "wrong size"],
)
def test_undecodable_bytes_are_reported_as_corrupt(
    picture: np.ndarray, spoil: Callable[[Image.Image], bytes]
) -> None:
    with pytest.raises(decoding.CorruptImageError, match=r"^\w.*$"):
        decoding.decode(spoil(Image.fromarray(picture)))


@pytest.mark.parametrize("kind", ["EPS", "ICO", "TGA", "PCX", "SGI", "PDF"])
def test_unsupported_formats_are_not_opened_whatever_their_suffix(
    soft: Image.Image, kind: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    encoded = _encoded(soft, kind)
    monkeypatch.setattr("PIL.EpsImagePlugin.Ghostscript", None)  # Calling it would be a TypeError.

    with pytest.raises(decoding.CorruptImageError, match=r"^not an image"):
        decoding.decode(encoded)


def test_too_many_pixels_are_corrupt_before_they_are_decoded(
    soft: Image.Image, monkeypatch: pytest.MonkeyPatch
) -> None:
    encoded = _encoded(soft)
    monkeypatch.setattr(formats, "MAX_PIXELS", 61 * 83 - 1)

    with pytest.raises(decoding.CorruptImageError, match="5,063 pixels, more than 5,062"):
        decoding.size(encoded)


@pytest.mark.parametrize(
    "spoil", [lambda image: b"", lambda image: b"no image", _bmp_of_billions_of_pixels]
)
def test_the_size_of_a_file_without_a_header_is_an_error(
    picture: np.ndarray, spoil: Callable[[Image.Image], bytes]
) -> None:
    with pytest.raises(decoding.CorruptImageError, match=r"^\w.*$"):
        decoding.size(spoil(Image.fromarray(picture)))


@pytest.mark.parametrize("mode", ["RGB", "L", "CMYK"])
@pytest.mark.parametrize("options", [{}, {"restart_marker_rows": 1}])
@pytest.mark.parametrize("end", [b"", b"\xff\xd9"], ids=["cut", "cut, then ended"])
def test_a_jpeg_with_missing_bytes_is_corrupt_or_fully_decoded(
    soft: Image.Image, mode: str, options: dict[str, Any], end: bytes
) -> None:
    encoded = _encoded(soft.convert(mode), "JPEG", **options)
    whole = _by_pillow(encoded)
    reasons = []

    for length in range(0, len(encoded), 3):
        try:
            decoded = decoding.decode(encoded[:length] + end)
        except decoding.CorruptImageError as error:
            reasons.append(str(error))
        else:
            np.testing.assert_array_equal(decoded, whole)
    assert len(reasons) > len(encoded) / 3 - 3  # The last bytes may be padding.
    assert all(reason and "\n" not in reason for reason in reasons)


def test_trailing_bytes_after_a_jpeg_are_ignored(soft: Image.Image) -> None:
    encoded = _encoded(soft, "JPEG")

    np.testing.assert_array_equal(decoding.decode(encoded + bytes(99)), _by_pillow(encoded))


def test_padding_bytes_in_a_jpeg_are_ignored(soft: Image.Image) -> None:
    encoded = _encoded(soft, "JPEG")

    decoded = decoding.decode(encoded[:-2] + bytes(5) + encoded[-2:])

    np.testing.assert_array_equal(decoded, _by_pillow(encoded))


# Resizing to squares.


def _resized_by_pillow(
    pixels: np.ndarray, size: int, box: tuple[float, float, float, float] | None
) -> np.ndarray:
    image = Image.fromarray(pixels)
    return np.asarray(image.resize((size, size), Image.Resampling.BILINEAR, box=box))


def _assert_within_a_grey_level(pixels: np.ndarray, expected: np.ndarray) -> None:
    # Both implementations round to integers twice: along rows and along columns.
    np.testing.assert_allclose(pixels.astype(np.int32), expected.astype(np.int32), atol=1)


@pytest.mark.parametrize("size", [1, 3, 32, 224])
@pytest.mark.parametrize("shape", [(1, 1), (1, 40), (40, 1), (8, 8), (60, 83), (64, 640)])
def test_images_are_resized_like_pillow(
    rng: np.random.Generator, shape: tuple[int, int], size: int
) -> None:
    pixels = rng.integers(0, 256, (*shape, 3), dtype=np.uint8)

    resized = decoding.resize(pixels, size)

    assert resized.shape == (size, size, 3)
    _assert_within_a_grey_level(resized, _resized_by_pillow(pixels, size, None))


@hypothesis.given(
    pixels=hypothesis.extra.numpy.arrays(
        np.uint8, strategies.tuples(strategies.integers(1, 50), strategies.integers(1, 50))
    ),
    size=strategies.integers(1, 40),
    corners=strategies.tuples(*[strategies.floats(0, 1, width=32)] * 4),
)
@hypothesis.settings(deadline=None)
def test_a_crop_is_resized_like_pillow_resizes_a_box(
    pixels: np.ndarray, size: int, corners: tuple[float, float, float, float]
) -> None:
    height, width = pixels.shape
    left, right = sorted((corners[0] * width, corners[1] * width))
    top, bottom = sorted((corners[2] * height, corners[3] * height))
    hypothesis.assume(right - left > 1e-3)
    hypothesis.assume(bottom - top > 1e-3)
    pixels = np.repeat(pixels[..., None], 3, axis=-1)
    box = (left, top, right, bottom)

    resized = decoding.resize(pixels, size, box)

    _assert_within_a_grey_level(resized, _resized_by_pillow(pixels, size, box))


@pytest.mark.parametrize("factor", [0.05, 0.4, 1.0, 1.7, 5.0, 20.0])
def test_crops_of_any_scale_are_resized_like_pillow(
    rng: np.random.Generator, factor: float
) -> None:
    pixels = rng.integers(0, 2, (400, 500, 3), dtype=np.uint8) * 255
    box = (31.25, 17.6, 31.25 + 20 * factor, 17.6 + 16 * factor)

    resized = decoding.resize(pixels, 20, box)

    _assert_within_a_grey_level(resized, _resized_by_pillow(pixels, 20, box))


def test_array_views_are_resized_like_copies(rng: np.random.Generator) -> None:
    pixels = rng.integers(0, 256, (40, 60, 3), dtype=np.uint8)

    resized = decoding.resize(pixels[:, ::-1].swapaxes(0, 1), 16)

    expected = np.ascontiguousarray(pixels[:, ::-1].swapaxes(0, 1))
    _assert_within_a_grey_level(resized, _resized_by_pillow(expected, 16, None))


@pytest.mark.parametrize("box", [None, (0.0, 0.0, 8.0, 8.0)])
def test_a_square_of_the_target_size_is_unchanged(rng: np.random.Generator, box: Any) -> None:
    pixels = rng.integers(0, 256, (8, 8, 3), dtype=np.uint8)

    assert decoding.resize(pixels, 8, box) is pixels


def test_threads_do_not_disturb_each_other(rng: np.random.Generator) -> None:
    pictures = [rng.integers(0, 256, (900 + i, 1200, 3), dtype=np.uint8) for i in range(4)]
    expected = [decoding.resize(pixels, 224) for pixels in pictures]

    with futures.ThreadPoolExecutor(4) as threads:
        resized = list(threads.map(lambda i: decoding.resize(pictures[i % 4], 224), range(64)))

    for i, pixels in enumerate(resized):
        np.testing.assert_array_equal(pixels, expected[i % 4])
