"""Paths from users are expanded, and refused if they are remote."""

import pathlib
import pickle

import pytest

from remem_jax import checks
from remem_jax.checks import SettingError


@pytest.mark.parametrize("value", ["gs://bucket/run", pathlib.Path("gs://bucket/run")])
def test_a_remote_path_is_refused_with_its_url_and_the_setting(value: str | pathlib.Path) -> None:
    with pytest.raises(
        SettingError,
        match=r"^gs://bucket/run is not a local folder.*set --workdir to the local path\.",
    ):
        checks.local_path("--workdir", value)


def test_home_is_expanded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", "/of/me")

    assert checks.local_path("--out", "~/run") == pathlib.Path("/of/me/run")


def test_an_unknown_home_is_refused() -> None:
    with pytest.raises(SettingError, match=r"~nobody_of_this_name.*set config\.data\.path to"):
        checks.local_path("config.data.path", "~nobody_of_this_name/images")


@pytest.mark.parametrize("value", ["run", "a:b/c", "/x/y:/z", "c:/run", ""])
def test_a_local_path_is_unchanged(value: str) -> None:
    assert checks.local_path("--workdir", value) == pathlib.Path(value)


def test_a_message_is_one_line_whatever_a_path_contains() -> None:
    error = SettingError("a\nb\rc\u2028d\x1b[2Je\udc80 \u00e9\u7f8e is missing.")

    assert str(error) == r"a\nb\rc\u2028d\x1b[2Je\udc80" + " \u00e9\u7f8e is missing."
    assert str(pickle.loads(pickle.dumps(error))) == str(error)
