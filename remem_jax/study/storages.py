"""Where the trials of a study are kept: a file, or a database that many machines reach."""

import contextlib
import json
import pathlib
import random
import time
from typing import Any, NamedTuple

import optuna
import sqlalchemy
from optuna.exceptions import StorageInternalError
from optuna.storages import BaseStorage
from optuna.storages.journal import JournalFileBackend
from sqlalchemy import event
from sqlalchemy.exc import ArgumentError, SQLAlchemyError

from remem_jax import checks
from remem_jax.checks import SettingError

# Of a storage that is locked, or away for a moment.
PASSING = (StorageInternalError, SQLAlchemyError, OSError, RuntimeError, json.JSONDecodeError)

_JOURNAL = b'{"op_code":'  # How each line of a journal begins.
_FILES = {"sqlite": "study.db", "journal": "study.journal"}
_POSTGRESQL = ("postgresql", "postgresql+psycopg")
_LOCKED_SECONDS = 60.0  # How long a worker waits for the others' writes to an SQLite file.


class Opened(NamedTuple):
    """A storage that can be used.

    Attributes:
        storage: Optuna's.
        shown: What it is called in messages: nothing that may hold a password.
    """

    storage: BaseStorage
    shown: str


def open_storage(storage: str, folder: pathlib.Path) -> Opened:
    """Opens what `config.storage` names; see `queue.open_queue`."""
    url = _url(storage, folder)
    shown = sqlalchemy.URL.create(
        url.drivername, host=url.host, port=url.port, database=url.database
    ).render_as_string()
    try:
        return Opened(_journal(url) if url.drivername == "journal" else _database(url), shown)
    except ImportError as error:
        driver = (
            "remem_jax[postgresql]"
            if url.drivername in _POSTGRESQL
            else getattr(error.__cause__, "name", error.name)
        )
        raise SettingError(
            f"config.storage, {shown}, needs a driver: pip install '{driver}'."
        ) from None
    except (*PASSING, ValueError) as error:
        raise unusable(shown, error) from None


def cause(error: BaseException) -> str:
    """One line; Optuna hides the cause of what goes wrong in a database."""
    cause = error.__cause__ or error
    return f"{getattr(cause, 'orig', None) or cause}".strip().partition("\n")[0]


def unusable(shown: str, error: BaseException) -> SettingError:
    """What a user is told where a storage fails."""
    return SettingError(
        f"The storage of the study, {shown}, cannot be used ({cause(error)}): see that it can be "
        "reached and written, or set config.storage to another."
    )


def _url(storage: str, folder: pathlib.Path) -> sqlalchemy.URL:
    kind, _, path = storage.partition(":")
    if kind in _FILES and not path.startswith("//"):
        file = checks.local_path("config.storage", path) if path else folder / _FILES[kind]
        return sqlalchemy.URL.create(kind, database=str(file.absolute()))
    with contextlib.suppress(ArgumentError, ValueError):
        url = sqlalchemy.make_url(storage)
        if url.drivername == "journal" or url.get_backend_name() == "sqlite":
            url = _of_file(url)
        if "@" not in (url.host or ""):  # Else a part of the password is in it.
            return url
    raise SettingError(
        'config.storage must be "sqlite", "journal", one of them with a path ("sqlite:/path"), or '
        "a URL like postgresql://user@host/name, with the password in PGPASSWORD or ~/.pgpass; in "
        f"a URL a password's @ is %40 and its / is %2F; got {kind!r} and what follows."
    )


def _of_file(url: sqlalchemy.URL) -> sqlalchemy.URL:
    """The URL of a file, with its whole path.

    That of a journal is whole in any case, "journal:///whole/path"; SQLAlchemy has
    "sqlite:///relative" and "sqlite:////whole/path". What begins with ~ is of the home folder.

    Raises:
        ValueError: If it names a host, or no file that other workers find.
    """
    path = url.database or ""
    if url.host or path in ("", ":memory:"):
        raise ValueError(url)
    if url.drivername == "journal" and not path.startswith("~"):
        path = f"/{path.lstrip('/')}"
    return url.set(database=str(checks.local_path("config.storage", path).absolute()))


def _journal(url: sqlalchemy.URL) -> BaseStorage:
    file = pathlib.Path(url.database or "")
    file.parent.mkdir(parents=True, exist_ok=True)
    if file.is_file():  # Optuna would write at the end of whatever is there.
        with file.open("rb") as opened:
            head = opened.read(len(_JOURNAL))
        if not _JOURNAL.startswith(head):
            raise ValueError("it is no journal of a study")
    return optuna.storages.JournalStorage(JournalFileBackend(str(file)))


def _database(url: sqlalchemy.URL) -> BaseStorage:
    """Opens a database; those who make its tables at the same time are in each other's way."""
    connect: dict[str, Any] = {}
    if url.get_backend_name() == "sqlite":
        pathlib.Path(url.database or "").parent.mkdir(parents=True, exist_ok=True)
        connect = {"timeout": _LOCKED_SECONDS}
    elif url.drivername in _POSTGRESQL:
        url = url.set(drivername="postgresql+psycopg")
        connect = {"connect_timeout": 10, "tcp_user_timeout": 30_000}  # Seconds; milliseconds.
    # Optuna fills in what is in braces.
    text = url.render_as_string(hide_password=False).replace("{", "{{").replace("}", "}}")
    options = {"pool_pre_ping": True, "connect_args": connect}
    attempts = 5
    while True:
        try:
            storage = optuna.storages.RDBStorage(text, engine_kwargs=options)
            break
        except (StorageInternalError, SQLAlchemyError):
            attempts -= 1
            if not attempts:
                raise
            time.sleep(random.random() / 2)
    if url.get_backend_name() == "sqlite":
        # Python begins a transaction at the first write, after Optuna has read what it decides
        # by: two workers would take one trial. So it is begun before, and by one at a time.
        event.listen(storage.engine, "connect", _begin_nothing)
        event.listen(storage.engine, "begin", _begin_alone)
        storage.engine.dispose()  # Of the connections that were made before.
    return storage


def _begin_nothing(connection: Any, record: Any) -> None:
    connection.isolation_level = None


def _begin_alone(connection: sqlalchemy.Connection) -> None:
    connection.exec_driver_sql("BEGIN IMMEDIATE")
