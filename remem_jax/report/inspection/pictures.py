"""Small versions of images, as addresses of data inside a page."""

import base64
import io

from PIL import Image

from remem_jax.data import sources
from remem_jax.data.images import decoding

_SIDE = 160  # Longest side in pixels.
_QUALITY = 85  # Of the JPEG; about 5 kB.


def address(split: sources.Split, row: int) -> str:
    """Returns the address of an image's thumbnail; empty if the image cannot be read."""
    try:
        stored = split.read(row).image
        if isinstance(stored, bytes):
            stored = decoding.decode(stored, at_least=(_SIDE, _SIDE))
    except decoding.CorruptImageError:  # It was removed or changed meanwhile.
        return ""
    image, file = Image.fromarray(stored), io.BytesIO()
    image.thumbnail((_SIDE, _SIDE))
    image.save(file, "JPEG", quality=_QUALITY)
    return f"data:image/jpeg;base64,{base64.b64encode(file.getvalue()).decode()}"
