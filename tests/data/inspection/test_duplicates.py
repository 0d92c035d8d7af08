"""Groups of duplicates: which changes leave a photograph nearly the same picture."""

from collections.abc import Callable, Sequence

import imagehash
import numpy as np
import pytest
from PIL import Image

from remem_jax.data.images import decoding
from remem_jax.data.inspection import duplicates, thumbnails
from remem_jax.data.inspection.duplicates import FILES, NEAR, PIXELS, Group
from tests.data.inspection import photographs

TILES = photographs.clear_tiles(96)


def _groups(images: Sequence[np.ndarray], **keys: Sequence[str]) -> list[Group]:
    return duplicates.groups(
        keys.get("files", range(len(images))),
        keys.get("pixels", range(len(images))),
        np.stack([thumbnails.of_pixels(image) for image in images]),
        lambda i: images[i],
        threads=2,
    )


def test_there_are_enough_photographs() -> None:
    assert len(TILES) > 35
    assert _groups(TILES) == []


@pytest.mark.parametrize(
    "change",
    [
        lambda image: photographs.reencoded(image, 50),
        lambda image: photographs.reencoded(image, 90),
        lambda image: photographs.resized(image, 0.5),
        lambda image: photographs.resized(image, 2.0),
        lambda image: photographs.reencoded(photographs.resized(image, 0.75), 85),
        lambda image: (image * 0.8).astype(np.uint8),
    ],
    ids=["quality 50", "quality 90", "half", "double", "three quarters", "darker"],
)
def test_a_copy_is_nearly_the_same_picture(change: Callable[[np.ndarray], np.ndarray]) -> None:
    copies = [change(tile) for tile in TILES]

    found = _groups([*TILES, *copies])

    assert found == [Group(NEAR, (i, len(TILES) + i)) for i in range(len(TILES))]


@pytest.mark.parametrize(
    "change",
    [
        lambda image: image[:, ::-1],
        lambda image: image[::-1],
        lambda image: np.rot90(image),
        lambda image: 255 - image,
        lambda image: image[:64, :64],
    ],
    ids=["mirrored", "upside down", "on its side", "negative", "part"],
)
def test_another_view_is_another_picture(change: Callable[[np.ndarray], np.ndarray]) -> None:
    changed = [np.ascontiguousarray(change(tile)) for tile in TILES]

    assert _groups([*TILES, *changed]) == []


@pytest.mark.parametrize("side", [32, 64, 96])
def test_no_two_tiles_of_a_photograph_are_duplicates(side: int) -> None:
    assert _groups(photographs.tiles(side)) == []


def test_hashes_are_those_of_the_library() -> None:
    images = [decoding.decode(photographs.jpeg(tile, 90)) for tile in TILES]

    found = duplicates.hashes(
        np.arange(0, 30, 3), lambda i: photographs.jpeg(TILES[i], 90), threads=2
    )

    assert found == {i: imagehash.phash(Image.fromarray(images[i])) for i in range(0, 30, 3)}


def test_images_whose_hashes_differ_are_not_duplicates(monkeypatch: pytest.MonkeyPatch) -> None:
    bits = np.zeros((2, 8, 8), bool)
    bits[1].flat[: duplicates.MOST_BITS] = True
    found = iter([imagehash.ImageHash(each) for each in bits])
    monkeypatch.setattr(imagehash, "phash", lambda image: next(found))
    first = _groups([TILES[0], TILES[0]])

    bits[1].flat[duplicates.MOST_BITS] = True
    found = iter([imagehash.ImageHash(each) for each in bits])
    second = _groups([TILES[0], TILES[0]])

    assert (first, second) == ([Group(NEAR, (0, 1))], [])


def test_an_image_that_has_gone_is_no_near_duplicate() -> None:
    def read(i: int) -> bytes:
        if i:
            raise decoding.CorruptImageError("No such file")
        return photographs.jpeg(TILES[0], 90)

    images = np.stack([thumbnails.of_pixels(TILES[0])] * 2)

    assert duplicates.groups("ab", "ab", images, read, threads=1) == []


def test_groups_have_the_kind_that_all_members_share() -> None:
    images = [TILES[i // 4] for i in range(12)]
    files = ["a", "a", "a", "a", "b", "c", "b", "c", "d", "e", "f", "f"]
    pixels = ["A", "A", "A", "A", "B", "B", "B", "B", "D", "E", "F", "F"]

    found = _groups(images, files=files, pixels=pixels)

    assert found == [
        Group(FILES, (0, 1, 2, 3)),
        Group(PIXELS, (4, 5, 6, 7)),
        Group(NEAR, (8, 9, 10, 11)),
    ]


def test_plain_images_with_the_same_pixels_are_duplicates() -> None:
    plain = [np.zeros((8, 8, 3), np.uint8)] * 3

    assert _groups(plain, pixels=["A", "A", "C"]) == [Group(PIXELS, (0, 1))]


def test_members_of_a_group_may_be_linked_by_a_third() -> None:
    tile = TILES[5]
    steps = [tile, tile[1:-1, 1:-1], tile[2:-2, 2:-2], tile[3:-3, 3:-3]]
    assert _groups([steps[0], steps[3]]) == []

    assert _groups(steps) == [Group(NEAR, (0, 1, 2, 3))]


def test_many_copies_are_one_group() -> None:
    thumbnail = thumbnails.of_pixels(TILES[0])

    (group,) = duplicates.groups(
        range(3000), range(3000), np.stack([thumbnail] * 3000), lambda i: TILES[0], threads=2
    )

    assert group.members == tuple(range(3000))


def test_no_images_have_no_duplicates() -> None:
    none = np.zeros((0, thumbnails.BYTES), np.uint8)

    assert duplicates.groups([], [], none, lambda i: b"", threads=1) == []
