"""Opens the storage of a study: a file, or a database that many machines can reach."""

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

# Errors of a storage that is locked or cannot be reached for a moment.
PASSING = (StorageInternalError, SQLAlchemyError, OSError, RuntimeError, json.JSONDecodeError)

_JOURNAL = b'{"op_code":'  # The start of each line of a journal.
_FILES = {"sqlite": "study.db", "journal": "study.journal"}
_POSTGRESQL = ("postgresql", "postgresql+psycopg")
_LOCKED_SECONDS = 60.0  # Time that a worker waits for another's write to an SQLite file.


class Opened(NamedTuple):
    """An open storage.

    Attributes:
        storage: Optuna's storage.
        shown: Its name in messages, without a password.
    """

    storage: BaseStorage
    shown: str


def open_storage(storage: str, folder: pathlib.Path) -> Opened:
    """Opens the storage that `config.storage` names; see `queue.open_queue`."""
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
    """Returns the cause of a storage error in one line; Optuna hides that of database errors."""
    cause = error.__cause__ or error
    return f"{getattr(cause, 'orig', None) or cause}".strip().partition("\n")[0]


def unusable(shown: str, error: BaseException) -> SettingError:
    """Returns the error for a storage that fails."""
    return SettingError(
        f"The storage of the study, {shown}, cannot be used ({cause(error)}): make sure that it "
        "can be reached and written to, or set config.storage to another."
    )


def _url(storage: str, folder: pathlib.Path) -> sqlalchemy.URL:
    kind, _, path = storage.partition(":")
    if kind in _FILES and not path.startswith("//"):
        file = checks.local_path("config.storage", path) if path else folder / _FILES[kind]
        return sqlalchemy.URL.create(kind, database=str(file.absolute()))
    with contextlib.suppress(ArgumentError, ValueError):
        url = sqlalchemy.make_url(storage)
        if url.drivername == "journal" or url.get_backend_name() == "sqlite":
            url = _with_absolute_path(url)
        if "@" not in (url.host or ""):  # Otherwise the host contains a part of the password.
            return url
    raise SettingError(
        'config.storage must be "sqlite", "journal", one of them with a path ("sqlite:/path"), or '
        "a URL like postgresql://user@host/name, with the password in PGPASSWORD or ~/.pgpass; in "
        f"a URL a password's @ is %40 and its / is %2F; got {kind!r}, followed by text that is not "
        "shown because it may contain a password."
    )


def _with_absolute_path(url: sqlalchemy.URL) -> sqlalchemy.URL:
    """Returns the URL of a file with its absolute path.

    A journal's is always absolute, "journal:///path"; SQLAlchemy has "sqlite:///relative/path" and
    "sqlite:////absolute/path". A leading ~ is the home folder.

    Raises:
        ValueError: If it has a host, or names no file that other workers can find.
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
    if file.is_file():  # Optuna would append to any file.
        with file.open("rb") as opened:
            head = opened.read(len(_JOURNAL))
        if not _JOURNAL.startswith(head):
            raise ValueError("it is not the journal of a study")
    return optuna.storages.JournalStorage(JournalFileBackend(str(file)))


def _database(url: sqlalchemy.URL) -> BaseStorage:
    """Opens a database; retries, because workers that create its tables at once get errors."""
    connect: dict[str, Any] = {}
    if url.get_backend_name() == "sqlite":
        pathlib.Path(url.database or "").parent.mkdir(parents=True, exist_ok=True)
        connect = {"timeout": _LOCKED_SECONDS}
    elif url.drivername in _POSTGRESQL:
        url = url.set(drivername="postgresql+psycopg")
        connect = {"connect_timeout": 10, "tcp_user_timeout": 30_000}  # Seconds; milliseconds.
    # Escapes braces, which Optuna would format.
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
        # By default Python starts a transaction at the first write, after Optuna has read the
        # state of a trial: two workers could claim it. BEGIN IMMEDIATE locks before the read.
        event.listen(storage.engine, "connect", _disable_implicit_transactions)
        event.listen(storage.engine, "begin", _begin_immediate)
        storage.engine.dispose()  # Closes connections opened without these listeners.
    return storage


def _disable_implicit_transactions(connection: Any, record: Any) -> None:
    connection.isolation_level = None


def _begin_immediate(connection: sqlalchemy.Connection) -> None:
    connection.exec_driver_sql("BEGIN IMMEDIATE")
