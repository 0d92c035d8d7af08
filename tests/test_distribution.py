"""The source distribution and the wheel hold all that the commands need."""

import pathlib
import shutil
import subprocess
import sys
import tarfile
import zipfile

import pytest

ROOT = pathlib.Path(__file__).parents[1]
FILES = ("setup.cfg", "setup.py", "pyproject.toml", "README.md", "LICENSE")
BUILD = "import sys; from setuptools import build_meta as b; b.build_{}(sys.argv[1])"


def _build(kind: str, source: pathlib.Path, out: pathlib.Path) -> pathlib.Path:
    command = [sys.executable, "-c", BUILD.format(kind), str(out)]
    done = subprocess.run(command, cwd=source, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    (built,) = out.iterdir()
    return built


@pytest.fixture(scope="module")
def installed(tmp_path_factory: pytest.TempPathFactory) -> pathlib.Path:
    """A folder with the files of the wheel that the source distribution gives."""
    folder = tmp_path_factory.mktemp("distribution")
    source = folder / "source"
    for name in ("remem_jax", "configs"):
        shutil.copytree(ROOT / name, source / name, ignore=shutil.ignore_patterns("__pycache__"))
    for name in FILES:
        shutil.copy(ROOT / name, source / name)
    for name in ("sdist", "wheel"):
        (folder / name).mkdir()
    with tarfile.open(_build("sdist", source, folder / "sdist")) as archive:
        archive.extractall(folder / "unpacked", filter="data")
    (unpacked,) = (folder / "unpacked").iterdir()
    with zipfile.ZipFile(_build("wheel", unpacked, folder / "wheel")) as archive:
        archive.extractall(folder / "site")
    return folder / "site"


def _files(folder: pathlib.Path, *patterns: str) -> set[str]:
    paths = (path for pattern in patterns for path in folder.rglob(pattern))
    return {str(path.relative_to(folder)) for path in paths if path.is_file()}


def test_the_wheel_has_all_configs(installed: pathlib.Path) -> None:
    assert _files(installed / "remem_jax/shipped/configs", "*.py") == _files(
        ROOT / "configs", "*.py"
    )


def test_the_wheel_has_all_modules_templates_and_bundled_files(installed: pathlib.Path) -> None:
    patterns = ("*.py", "*.jinja", "*/bundled/*")
    package_files = _files(installed / "remem_jax", *patterns)
    package_files = {name for name in package_files if not name.startswith("shipped/")}

    expected = _files(ROOT / "remem_jax", *patterns)
    assert package_files == {name for name in expected if "__pycache__" not in name}


def test_the_wheel_has_the_licences_of_what_is_bundled(installed: pathlib.Path) -> None:
    (metadata,) = installed.glob("*.dist-info")

    licences = _files(metadata / "licenses", "LICENSE")

    bundled = {f"remem_jax/{name}" for name in _files(ROOT / "remem_jax", "LICENSE")}
    assert licences == {"LICENSE", *bundled}
    assert "License: Apache-2.0 AND MIT" in (metadata / "METADATA").read_text()


def test_the_command_finds_the_configs_of_the_wheel(
    installed: pathlib.Path, tmp_path: pathlib.Path
) -> None:
    command = [sys.executable, "-m", "remem_jax.main", "--config=configs/figures/figure1.py"]
    done = subprocess.run(
        [*command, "--workdir=run", "--config.base.teacher.rhoo=1"],
        cwd=tmp_path,
        env={"PYTHONPATH": str(installed)},
        capture_output=True,
        text=True,
        check=False,
        timeout=100,
    )

    assert 'Did you mean "rho"' in done.stderr
