"""The config files of this package: in configs/ of a source tree, in the package of a wheel."""

import contextlib
import importlib
import pathlib
import sys
from collections.abc import Iterator
from types import ModuleType

_PACKAGE = "configs"
ROOT = pathlib.Path(__file__).parent / "shipped"  # See setup.py.
if not ROOT.is_dir():
    ROOT = pathlib.Path(__file__).parents[1]


@contextlib.contextmanager
def imported(name: str) -> Iterator[ModuleType]:
    """Imports a config file of this package, whatever other package `configs` the user has.

    Args:
        name: Name of the file, without its folder and suffix.
    """
    others = _forget()
    sys.path.insert(0, str(ROOT))
    try:
        yield importlib.import_module(f"{_PACKAGE}.{name}")
    finally:
        sys.path.remove(str(ROOT))
        _forget()
        sys.modules.update(others)


def _forget() -> dict[str, ModuleType]:
    """Removes the modules of any package `configs`, and returns them."""
    names = [each for each in sys.modules if each.partition(".")[0] == _PACKAGE]
    return {each: sys.modules.pop(each) for each in names}
