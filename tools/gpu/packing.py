"""Packs one folder with all that a machine with a GPU and without a network needs."""

import datetime
import hashlib
import importlib.metadata
import importlib.util
import json
import pathlib
import shutil
import subprocess
import sys
import zipfile
from collections.abc import Collection, Mapping, Sequence
from typing import Any, NamedTuple

MANIFEST, WHEELS = "manifest.json", "wheels"
LIMIT_MIB = 60.0
PYTHON = "3.12"  # Python version of the wheels, which are for Linux on x86-64.
# Packages that a machine with JAX, Flax, Optax and Orbax may lack; `USES` lists those that are too
# large. TFDS, Grain, Optuna and scikit-learn are not needed. The comparison with torch needs
# pytest.
DISTRIBUTIONS = (
    "beartype",
    "certifi",
    "charset-normalizer",
    "cykooz-resizer",
    "idna",
    "iniconfig",
    "jaxtyping",
    "jinja2",
    "markupsafe",
    "ml_collections",
    "packaging",
    "pi-heif",
    "pillow",
    "pluggy",
    "pytest",
    "requests",
    "safetensors",
    "simplejpeg",
    "tensorboardX",
    "timm",
    "urllib3",
    "wadler-lindig",
)
# Modules that are not packed -> what needs them.
USES = {
    **dict.fromkeys(("jax", "flax", "optax", "orbax"), "everything"),
    "matplotlib": "the mini Table 10",
    "torch": "the comparison with torch",
}
_PLATFORMS = ("2_28", "2_27", "2_24", "2_17", "2_12", "2_5")  # Versions of manylinux.
_EXAMPLES = 8  # Number of images for the reference values.


class PackingError(Exception):
    """An error that the user can fix; its message is one line."""


class Contents(NamedTuple):
    """The contents of a packed folder.

    Attributes:
        weights: A ViT with a head: a file, or a name such as "augreg:Ti/16".
        data: Name, path and folder of a data set, as in `config.data`.
        pixels: Side of the images.
        most: Maximum number of images of each split; 0 for all.
        distributions: Python packages whose wheels are packed.
        tiny: Whether the reference values are of a tiny student.
    """

    weights: str
    data: tuple[str, str, str]
    pixels: int
    most: int
    distributions: Sequence[str]
    tiny: bool = False


def pack(
    folder: pathlib.Path, contents: Contents, programs: Mapping[str, Collection[str]]
) -> dict[str, Any]:
    """Makes the folder, with reference values of this machine's CPU.

    Args:
        folder: The folder to make.
        contents: Its contents.
        programs: Type -> programs whose reference values are computed, as in `items.PROGRAMS`.

    Returns:
        The manifest.

    Raises:
        PackingError: If the folder is not empty, something is not found, or the folder would be too
            large.
    """
    folder.mkdir(parents=True, exist_ok=True)
    if any(folder.iterdir()):
        raise PackingError(f"{folder} is not empty; name another folder for --pack.")
    from remem_jax.weights import catalog  # All of these import JAX.
    from tools.benchmarks import tiny
    from tools.gpu import images, numerics

    weights = _copied_weights(folder, contents.weights)
    source = images.open_source(*contents.data)
    described = images.pack(folder / images.FILE, source, contents.pixels, contents.most)
    inputs = images.examples(folder / images.FILE, weights, _EXAMPLES)
    if contents.tiny:
        inputs = inputs._replace(student=tiny.add_student())
    if contents.distributions:
        _download(folder / WHEELS, contents.distributions)
    _require_small(folder)  # Before the slowest part.
    numerics.write_reference(folder / numerics.REFERENCE, inputs, programs)
    _require_small(folder)
    manifest = {
        "date": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
        "commit": commit(),
        "weights": weights.name,
        # Only the file name, without its folder, because the record is published.
        "weights_named": contents.weights
        if catalog.is_name(contents.weights)
        else pathlib.Path(contents.weights).name,
        "image_size": inputs.images.shape[1],
        "data": described,
        "files": {str(path.relative_to(folder)): _digest(path) for path in _files(folder)},
    }
    (folder / MANIFEST).write_text(json.dumps(manifest, indent=1) + "\n")
    return manifest


def read(folder: pathlib.Path) -> dict[str, Any]:
    """Returns the manifest after checking all files against it.

    Raises:
        PackingError: If it is missing, or a file differs from what was packed.
    """
    path = folder / MANIFEST
    if not path.is_file():
        raise PackingError(
            f"{path} is missing: make the folder with --pack, and copy all of it; or set --packed."
        )
    manifest = json.loads(path.read_text())
    wrong = [
        name
        for name, digest in manifest["files"].items()
        if not (folder / name).is_file() or _digest(folder / name) != digest
    ]
    if wrong:
        raise PackingError(f"{folder} is not as it was packed: {', '.join(wrong)}; copy it again.")
    return manifest


def add_wheels(folder: pathlib.Path, site: pathlib.Path) -> list[str]:
    """Unpacks the wheels of packages that are not installed, at the end of the import path.

    Returns:
        The names of these packages.
    """
    added = []
    for wheel in sorted((folder / WHEELS).glob("*.whl")):
        name = wheel.name.split("-")[0]
        if not _is_installed(name):
            with zipfile.ZipFile(wheel) as opened:
                opened.extractall(site)
            added.append(name)
    if added:
        sys.path.append(str(site))
    return added


def lacking() -> list[str]:
    """Returns the modules that are neither installed nor packed, with what needs them."""
    return [f"{name} (for {use})" for name, use in USES.items() if not _is_found(name)]


def commit() -> str:
    """Returns the commit of the code, with "+" if files are modified; "" without a repository."""
    here = pathlib.Path(__file__).parent
    head, status = (
        subprocess.run(["git", *command], cwd=here, capture_output=True, text=True)
        for command in (("rev-parse", "HEAD"), ("status", "--porcelain", "--untracked-files=no"))
    )
    if head.returncode or status.returncode:
        return ""
    return head.stdout.strip() + ("+" if status.stdout.strip() else "")


def size_mib(folder: pathlib.Path) -> float:
    """Returns the size of all files in a folder, in MiB."""
    return sum(path.stat().st_size for path in _files(folder)) / 2**20


def _copied_weights(folder: pathlib.Path, named: str) -> pathlib.Path:
    from remem_jax.weights import download

    path = download.obtain(named)
    return pathlib.Path(shutil.copy(path, folder / f"weights{path.suffix}"))


def _download(folder: pathlib.Path, distributions: Sequence[str]) -> None:
    """Downloads wheels: the installed versions, and the newest of packages not installed here."""
    requirements = [
        f"{name}=={importlib.metadata.version(name)}" if _is_installed(name) else name
        for name in distributions
    ]
    command = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps"]
    command += ["--only-binary=:all:", f"--python-version={PYTHON}", "--implementation=cp"]
    command += [f"--platform=manylinux_{version}_x86_64" for version in _PLATFORMS]
    command += ["--platform=manylinux2014_x86_64", "--dest", str(folder), *requirements]
    done = subprocess.run(command, capture_output=True, text=True)
    if done.returncode:
        reason = (done.stderr.strip().splitlines() or ["pip failed"])[-1]
        raise PackingError(f"pip could not download wheels ({reason}); set --wheels.")


def _require_small(folder: pathlib.Path) -> None:
    if (size := size_mib(folder)) > LIMIT_MIB:
        largest = sorted(_files(folder), key=lambda path: -path.stat().st_size)[:8]
        sizes = ", ".join(
            f"{path.relative_to(folder)} {path.stat().st_size / 2**20:.1f}" for path in largest
        )
        raise PackingError(
            f"{folder} takes {size:.1f} MiB, {LIMIT_MIB:.0f} at most ({sizes}): lower --pixels or "
            "--images, or set --data or --wheels."
        )


def _files(folder: pathlib.Path) -> list[pathlib.Path]:
    return sorted(path for path in folder.rglob("*") if path.is_file())


def _digest(path: pathlib.Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _is_found(module: str) -> bool:
    return importlib.util.find_spec(module) is not None


def _is_installed(name: str) -> bool:
    try:
        importlib.metadata.version(name)
    except importlib.metadata.PackageNotFoundError:
        return False
    return True
