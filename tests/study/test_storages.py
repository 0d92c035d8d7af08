"""The file that `config.storage` names."""

import pathlib

import pytest

from remem_jax.checks import SettingError
from remem_jax.study import storages


@pytest.mark.parametrize(
    ("storage", "file"),
    [
        ("journal", "folder/study.journal"),
        ("journal:{root}/shared/trials", "shared/trials"),
        ("journal://{root}/shared/trials", "shared/trials"),
        ("journal:///{root}/shared/trials", "shared/trials"),
        ("journal:trials", "here/trials"),
        ("journal:~/trials", "home/trials"),
        ("journal:///~/trials", "home/trials"),
        ("sqlite", "folder/study.db"),
        ("sqlite:{root}/shared/trials", "shared/trials"),
        ("sqlite:///{root}/shared/trials", "shared/trials"),
        ("sqlite+pysqlite:///{root}/shared/trials", "shared/trials"),
        ("sqlite:///{root}/shared/trials?timeout=9", "shared/trials"),
        ("sqlite:trials", "here/trials"),
        ("sqlite:///trials", "here/trials"),
        ("sqlite:~/trials", "home/trials"),
        ("sqlite:///~/trials", "home/trials"),
    ],
)
def test_the_setting_gives_the_path(
    storage: str, file: str, tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "here").mkdir()
    monkeypatch.chdir(tmp_path / "here")
    monkeypatch.setenv("HOME", str(tmp_path / "home"))

    url = storages._url(storage.format(root=tmp_path), tmp_path / "folder")

    assert pathlib.Path(url.database or "") == tmp_path / file


@pytest.mark.parametrize(
    "storage",
    ["sqlite://", "sqlite:///:memory:", "sqlite://host/x", "journal://", "journal://host/x"],
)
def test_a_storage_that_other_workers_cannot_open_is_refused(
    storage: str, tmp_path: pathlib.Path
) -> None:
    with pytest.raises(SettingError, match=r"config\.storage must be"):
        storages.open_storage(storage, tmp_path)


def test_a_remote_folder_is_refused(tmp_path: pathlib.Path) -> None:
    with pytest.raises(SettingError, match=r"gs://b/f is not a local folder.* config\.storage"):
        storages.open_storage("journal:gs://b/f", tmp_path)


def test_a_journal_is_created_at_its_path(
    tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "here").mkdir()
    monkeypatch.chdir(tmp_path / "here")

    opened = storages.open_storage(f"journal://{tmp_path}/shared/trials", tmp_path)
    opened.storage.create_new_study([])

    assert (tmp_path / "shared" / "trials").stat().st_size > 0
    assert not list((tmp_path / "here").iterdir())


@pytest.mark.parametrize("kind", ["journal", "sqlite"])
@pytest.mark.parametrize("content", ["my thesis", '{"thesis": 1}\n', "42\n"])
def test_an_unrelated_file_is_refused_and_left_unchanged(
    kind: str, content: str, tmp_path: pathlib.Path
) -> None:
    (tmp_path / "thesis").write_text(content)

    with pytest.raises(SettingError, match=r"thesis, cannot be used.*config\.storage"):
        storages.open_storage(f"{kind}:{tmp_path}/thesis", tmp_path)

    assert (tmp_path / "thesis").read_text() == content
