"""Images that are part of this package; README.md beside them has their source and licence."""

import importlib.resources

import numpy as np

from remem_jax.data import registry, sources
from remem_jax.data.images import decoding

EUROSAT_PART = "eurosat_part"
# In the order of the labels: one row of a sheet each.
_EUROSAT_CLASSES = (
    *("AnnualCrop", "Forest", "HerbaceousVegetation", "Highway", "Industrial"),
    *("Pasture", "PermanentCrop", "Residential", "River", "SeaLake"),
)
_TILE = 64  # Pixels.


def eurosat_part() -> sources.Source:
    """Opens 1,000 training and 500 test images of EuroSAT: 64 x 64 pixels, 10 classes alike."""
    splits = {name: _sheet(f"{EUROSAT_PART}_{name}.jpg") for name in (sources.TRAIN, sources.TEST)}
    return sources.Source("A part of EuroSAT", splits, _EUROSAT_CLASSES, registry.TOP1, flip=True)


def _sheet(file: str) -> sources.Split:
    """Reads a sheet of square tiles; each row has the images of one class."""
    encoded = (importlib.resources.files(__name__) / file).read_bytes()
    pixels = decoding.decode(encoded)
    rows, columns = pixels.shape[0] // _TILE, pixels.shape[1] // _TILE
    tiles = pixels.reshape(rows, _TILE, columns, _TILE, 3).swapaxes(1, 2)
    images = np.ascontiguousarray(tiles.reshape(-1, _TILE, _TILE, 3))
    return sources.in_memory(images, np.repeat(np.arange(rows), columns), "image")
