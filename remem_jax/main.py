"""Flags only: reads a config and runs its workflow, which checks it whole first."""

import signal

if __name__ == "__main__":  # Importing takes seconds; until signals are heard, they end it.
    from remem_jax.storage import streams

    streams.prepare()
    signal.signal(signal.SIGINT, signal.SIG_DFL)

import importlib
import inspect
import itertools
import logging as python_logging
import pathlib
import sys
import traceback
import warnings
from collections.abc import Callable, Sequence
from typing import Any

import jax
from absl import app, flags, logging
from jaxtyping import install_import_hook
from ml_collections import config_flags

from remem_jax import redaction

_CONFIG = config_flags.DEFINE_config_file("config", None, "A file of configs/.", lock_config=True)
_WORKDIR = flags.DEFINE_string("workdir", None, "Folder of the run; to go on, name it again.")
_COORDINATOR = flags.DEFINE_string(
    "coordinator", None, "host:port of the first of several processes, where no launcher tells."
)
_PROCESSES = flags.DEFINE_integer("processes", None, "How many there are.", lower_bound=1)
_PROCESS = flags.DEFINE_integer("process", None, "Which one this is, from 0.", lower_bound=0)
_SHIPPED = pathlib.Path(__file__).parent / "shipped"
# Shapes and types are checked when functions are called or traced; an int passes for a float.
_TYPECHECKER = "beartype.beartype(conf=beartype.BeartypeConf(is_pep484_tower=True))"
# Not what is called for every image, which the checks would slow down by a tenth.
_CHECKED = [
    f"remem_jax.{name}"
    for name in (
        "analysis",
        "data.images.augment",
        "data.loaders.resident",
        "evaluate",
        "losses",
        "models",
        "optim",
        "report",
        "settings",
        "storage",
        "study",
        "train",
        "weights",
        "workflow",
    )
]
# The import hook gives compiled files other names, also those of all that is imported below it.
# What is imported before it is found as it was installed, and not compiled at each start where
# Python may not write, which takes seconds.
_LIBRARIES = (
    "PIL.Image",
    "beartype",
    "cykooz_resizer",
    "flax.linen",
    "jinja2",
    "matplotlib.figure",
    "optax",
    "orbax.checkpoint",
    "requests",
    "safetensors.numpy",
    "scipy.ndimage",
)
flags.mark_flags_as_required(["config", "workdir"])


def main(argv: Sequence[str]) -> None:
    """Runs the config's workflow; what the user can mend ends in one line on stderr."""
    redaction.guard()
    if argv[1:]:
        unknown = redaction.without_secrets(" ".join(argv[1:]))
        sys.exit(f"remem_jax: unknown arguments {unknown}; settings begin with --config.")
    for library in _LIBRARIES:
        importlib.import_module(library)
    with install_import_hook(_CHECKED, _TYPECHECKER):
        from remem_jax import checks, distributed, mesh, signals
        from remem_jax.train.loop import StoppedError

    logging.get_absl_handler().addFilter(_is_ours)
    sys.unraisablehook = _but_for_failed_writes(sys.unraisablehook)
    # The same writes, where they had not begun.
    warnings.filterwarnings("ignore", "coroutine .* was never awaited", RuntimeWarning)
    directory = pathlib.Path(str(_WORKDIR.value))
    try:
        directory = checks.local_path("--workdir", str(_WORKDIR.value))
        distributed.initialize(_COORDINATOR.value, _PROCESSES.value, _PROCESS.value)
        mesh.require_devices()
        if not mesh.is_writer():
            logging.set_verbosity(logging.WARNING)  # One process tells for all.
        run = _runner()
        signals.listen(f"remem_jax: stopped; {_goes_on(directory)}.")
        given = tuple(config_flags.get_override_values(flags.FLAGS["config"]))
        run(_CONFIG.value, directory, stopping=signals.asked, given=given)
    except StoppedError as error:  # All processes stop at the same step.
        sys.exit(f"remem_jax: {error}; the same command goes on from there.")
    except (Exception, KeyboardInterrupt) as error:
        told = redaction.without_secrets(_message(error, directory))
        distributed.abandon(told or redaction.without_secrets(traceback.format_exc()))
        if told is None:
            raise
        if isinstance(error, KeyboardInterrupt):
            signals.leave(told)
        sys.exit(told)
    finally:
        signals.release()


def _runner() -> Callable[..., None]:
    """What the config's workflow is run by."""
    with install_import_hook(_CHECKED, _TYPECHECKER):
        if _CONFIG.value.workflow == "study":  # Takes a second to import.
            from remem_jax.study import worker

            return worker.run
        from remem_jax import workflow

        return workflow.run


def _message(error: BaseException, directory: pathlib.Path) -> str | None:
    """What a user is told in one line; None of an error that is our own."""
    from remem_jax import mesh
    from remem_jax.checks import SettingError
    from remem_jax.storage import files
    from remem_jax.train.loop import NonFiniteLossError

    goes_on = _goes_on(directory)
    if isinstance(error, SettingError | NonFiniteLossError):
        return f"remem_jax: {error}"
    if isinstance(error, KeyboardInterrupt):
        return f"remem_jax: stopped; {goes_on}."
    full = mesh.out_of_memory(error)
    if full:
        return (
            f"remem_jax: {full} Lower the batch_size of what was begun, or set "
            "config.compute_dtype to bfloat16, config.data.input to streamed, or "
            f"XLA_PYTHON_CLIENT_MEM_FRACTION=0.95 in the environment of a GPU; {goes_on}."
        )
    several = (_PROCESSES.value or jax.process_count()) > 1
    if several and isinstance(error, jax.errors.JaxRuntimeError | TimeoutError):
        reason = str(error).strip().partition("\n")[0][:200]
        return (
            f"remem_jax: another process of this run has ended ({reason}): start all of them "
            f"again; {goes_on}."
        )
    if isinstance(error, OSError):
        path = error.filename or directory
        return (
            f"remem_jax: {path} cannot be used ({error.strerror or error}): "
            f"{files.advice(error.errno)}; {goes_on}."
        )
    return None


def _goes_on(directory: pathlib.Path) -> str:
    return f"the same command goes on from what {directory} holds"


def _but_for_failed_writes(show: Callable[[Any], object]) -> Callable[[Any], None]:
    """Keeps off stderr what orbax's other writes say when one has failed, which has been told.

    They end later, and find nobody who waits: hundreds of tracebacks before our one line.
    """

    def show_others(unraisable: Any) -> None:
        closed = str(unraisable.exc_value) == "Event loop is closed"
        if not closed and not inspect.iscoroutine(unraisable.object):
            show(unraisable)

    return show_others


def parse_flags(argv: Sequence[str]) -> list[str]:
    """Parses the command line; a wrong setting ends in one line that names it."""
    argv = _found(argv)
    sys.path[:0] = _homes(argv)
    try:
        rest = flags.FLAGS(list(argv))
        _CONFIG.value["workflow"]  # Only the first use fails where the file is not there.
        return rest
    except (flags.Error, AttributeError, KeyError, TypeError, ValueError, OSError) as error:
        reason = error.args[0] if error.args and isinstance(error.args[0], KeyError) else error
        message = str(reason)
        if isinstance(reason, KeyError):  # Of a setting; with a guess what was meant, or without.
            message = str(reason.args[0])
            message = message if " " in message else f"There is no setting {message}."
        if "Traceback" in message:  # An error in the config file; its last line tells which.
            message = message.strip().splitlines()[-1]
        sys.exit(f"remem_jax: {redaction.without_secrets(' '.join(message.split()))}")


def _found(argv: Sequence[str]) -> list[str]:
    """The same, where a file of configs/ that is not in this folder is the package's own."""

    def found(argument: str) -> str:
        flag, name, rest = argument.partition("configs/")
        file = f"{name}{rest.partition('.py')[0]}.py"
        ours = bool(name) and flag in ("", "--config=", "-config=") and (_SHIPPED / file).is_file()
        return (
            f"{flag}{_SHIPPED}/{name}{rest}"
            if ours and not pathlib.Path(file).exists()
            else argument
        )

    return [found(argument) for argument in argv]


def _homes(argv: Sequence[str]) -> list[str]:
    """Folders that hold the config's `configs/`, from which config files import each other."""
    after = itertools.pairwise(argv)
    named = [value for name, value in after if name in ("--config", "-config")]
    pairs = [one.partition("=") for one in argv]
    named += [value for name, _, value in pairs if name in ("--config", "-config")]
    files = [pathlib.Path(one.partition(".py")[0]) for one in named]  # What follows is the spec.
    return [
        str(folder.parent) for file in files for folder in file.parents if folder.name == "configs"
    ]


def _is_ours(record: python_logging.LogRecord) -> bool:
    """Whether a log record is for the user: our own, or what a library warns of.

    TFDS warns of a data set that is not prepared, and orbax of what it cannot write; our errors
    say the same and what to do. So it is with asyncio, of orbax's other writes when one has failed.
    """
    if record.name == "asyncio" and "never retrieved" in record.getMessage():
        return False
    if "tensorflow_datasets" in record.pathname:
        return record.levelno >= python_logging.ERROR
    if "orbax" in record.pathname:
        return record.levelno >= python_logging.CRITICAL
    return record.levelno > python_logging.INFO or "remem_jax" in record.pathname


if __name__ == "__main__":
    logging.use_absl_handler()
    logging.set_verbosity(logging.INFO)
    app.run(main, flags_parser=parse_flags)
