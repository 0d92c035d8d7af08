"""The command that runs a config: `python -m remem_jax.main --config=FILE --workdir=FOLDER`.

Each step imports only what it needs, since JAX and the libraries of a run take seconds: the
command line is parsed first, then the settings are checked, then the workflow is imported and run.
"""

import signal

if __name__ == "__main__":  # Until `signals.listen`, a signal ends the process at once.
    from remem_jax.storage import streams

    streams.prepare()
    signal.signal(signal.SIGINT, signal.SIG_DFL)

import inspect
import itertools
import pathlib
import sys
import traceback
import warnings
from collections.abc import Callable, Sequence
from typing import Any

from absl import app, flags, logging
from ml_collections import ConfigDict, config_flags

import remem_jax
from remem_jax import checks, display, launchers, redaction, shipped_configs, signals

_CONFIG = config_flags.DEFINE_config_file(
    "config", None, "Path of a config file, such as configs/quickstart.py.", lock_config=True
)
_WORKDIR = flags.DEFINE_string(
    "workdir", None, "Folder of the run. A run that was stopped resumes from its folder."
)
_COORDINATOR = flags.DEFINE_string(
    "coordinator",
    None,
    "host:port of the first of several processes. Not needed under srun, under mpirun or on a TPU "
    "pod.",
)
_PROCESSES = flags.DEFINE_integer("processes", None, "Number of processes.", lower_bound=1)
_PROCESS = flags.DEFINE_integer("process", None, "Index of this process, from 0.", lower_bound=0)
_WORKERS = flags.DEFINE_enum(
    "workers",
    "auto",
    launchers.WORKERS,
    "What the processes of a study are under srun or mpirun: separate workers, as by default, or "
    "joined to one worker.",
)
flags.mark_flags_as_required(["config", "workdir"])


class _StoppedError(Exception):
    """The command was asked to stop, and has saved everything; the message is for the user."""


def main(argv: Sequence[str]) -> None:
    """Checks all settings, then runs the config's workflow.

    An error that the user can correct ends the process with one line on stderr.
    """
    redaction.guard()
    if argv[1:]:
        unknown = redaction.without_secrets(" ".join(argv[1:]))
        sys.exit(f"remem_jax: unknown arguments {unknown}; settings begin with --config.")
    directory = pathlib.Path(str(_WORKDIR.value))
    try:
        directory = checks.local_path("--workdir", str(_WORKDIR.value))
        _check(_CONFIG.value, config_flags.get_override_values(flags.FLAGS["config"]))
    except (checks.SettingError, OSError) as error:
        sys.exit(redaction.without_secrets(_message(error, directory)))
    try:
        with display.opened():
            _run(directory)
    except _StoppedError as error:  # All processes of a run end like this.
        signals.exit_stopped(str(error))
    except (Exception, KeyboardInterrupt) as error:
        from remem_jax import distributed

        message = redaction.without_secrets(_message(error, directory))
        distributed.abandon(
            message or redaction.without_secrets(traceback.format_exc()),
            signals.STOPPED if isinstance(error, KeyboardInterrupt) else 1,
        )
        if message is None:
            raise
        if isinstance(error, KeyboardInterrupt):
            signals.leave(message)
        sys.exit(message)
    finally:
        signals.release()


def _check(config: ConfigDict, given: Sequence[str]) -> None:
    """Raises `SettingError` for the first setting that cannot be used, or has no effect.

    Args:
        config: All settings.
        given: Names of the settings on the command line.
    """
    if config.workflow == "study":
        from remem_jax.study import space, unused

        space.check(config)
        unused.check(config, given)
    elif config.workflow == "distil":  # Its other settings are checked once they are planned.
        from remem_jax.checks import above

        above("config.budget.hours", config.budget.hours, 0)
    else:
        from remem_jax.settings import workflows

        workflows.check(config, given)


def _run(directory: pathlib.Path) -> None:
    """Joins the other processes, if there are any, and runs the checked config."""
    import jax

    from remem_jax import mesh

    sys.unraisablehook = _without_failed_writes(sys.unraisablehook)
    # Pending writes that had not begun.
    warnings.filterwarnings("ignore", "coroutine .* was never awaited", RuntimeWarning)
    name = config_flags.get_config_filename(flags.FLAGS["config"])
    logging.info("remem_jax %s: %s, in %s.", remem_jax.__version__, name, directory)
    _join()
    mesh.require_devices()
    if mesh.is_writer():
        display.use_terminal()
    else:
        logging.set_verbosity(logging.WARNING)  # Only the first process logs progress.
    run = _workflow()
    from remem_jax.train.loop import StoppedError

    if _CONFIG.value.workflow == "study" and jax.process_count() > 1:
        logging.info("One worker of %d processes.", jax.process_count())
    signals.listen(f"remem_jax: stopped; {_resumes(directory)}.")
    try:
        given = config_flags.get_override_values(flags.FLAGS["config"])
        run(_CONFIG.value, directory, stopping=signals.stop_requested, given=given)
    except StoppedError as error:  # All processes stop at the same step.
        raise _StoppedError(f"remem_jax: {error}; the same command goes on from there.") from error


def _join() -> None:
    """Joins the processes of a launcher, unless they are separate workers of a study."""
    from remem_jax import distributed

    is_study = _CONFIG.value.workflow == "study"
    given = (_COORDINATOR.value, _PROCESSES.value, _PROCESS.value)
    worker = launchers.separate_workers(
        _WORKERS.value, is_study=is_study, given=any(value is not None for value in given)
    )
    if worker is None:
        distributed.initialize(*given)
        return
    checks.require(
        worker.hosts == 1 or not _CONFIG.value.storage.startswith("sqlite"),
        f"config.storage is {_CONFIG.value.storage}, which is not safe for workers on several "
        "hosts: set it to journal or to the URL of a PostgreSQL database, or --workers=joined.",
    )
    logging.info(
        "Worker %d of %d, started by %s.", worker.process + 1, worker.processes, worker.launcher
    )


def _workflow() -> Callable[..., None]:
    """Returns the function that runs the config's workflow."""
    if _CONFIG.value.workflow == "study":
        from remem_jax.study import worker

        return worker.run
    if _CONFIG.value.workflow == "distil":
        from remem_jax.budget import pipeline

        return pipeline.run
    from remem_jax import workflow

    return workflow.run


def _message(error: BaseException, directory: pathlib.Path) -> str | None:
    """Returns one line for an error that the user can correct, and None for any other error."""
    resumes = _resumes(directory)
    if isinstance(error, checks.SettingError):
        return f"remem_jax: {error}"
    if isinstance(error, KeyboardInterrupt):
        return f"remem_jax: stopped; {resumes}."
    import jax

    from remem_jax import mesh
    from remem_jax.train.loop import NonFiniteLossError

    full = mesh.out_of_memory(error)
    if full:
        return (
            f"remem_jax: {full} Lower the batch_size of this stage, or set config.compute_dtype to "
            "bfloat16, config.data.input to streamed, or XLA_PYTHON_CLIENT_MEM_FRACTION=0.95 in "
            f"the environment of a GPU; {resumes}."
        )
    several = (_PROCESSES.value or jax.process_count()) > 1
    if several and isinstance(error, jax.errors.JaxRuntimeError | TimeoutError):
        reason = str(error).strip().partition("\n")[0][:200]
        return (
            f"remem_jax: another process of this run has ended ({reason}): start all processes "
            f"again; {resumes}."
        )
    if isinstance(error, OSError):
        from remem_jax.storage import files

        path = error.filename or directory
        return (
            f"remem_jax: {path} cannot be used ({error.strerror or error}): "
            f"{files.advice(error.errno)}; {resumes}."
        )
    return f"remem_jax: {error}" if isinstance(error, NonFiniteLossError) else None


def _resumes(directory: pathlib.Path) -> str:
    return f"the same command resumes from {directory}"


def _without_failed_writes(show: Callable[[Any], object]) -> Callable[[Any], None]:
    """Wraps `sys.unraisablehook` so that it ignores Orbax's pending writes after one has failed.

    They end later, when nothing awaits them any more: without this, hundreds of tracebacks would
    precede our line about the failed write.
    """

    def show_others(unraisable: Any) -> None:
        closed = str(unraisable.exc_value) == "Event loop is closed"
        if not closed and not inspect.iscoroutine(unraisable.object):
            show(unraisable)

    return show_others


def parse_flags(argv: Sequence[str]) -> list[str]:
    """Parses the command line; for a wrong setting, exits with one line that names it."""
    argv = _with_shipped_configs(argv)
    sys.path[:0] = _config_roots(argv)
    try:
        rest = flags.FLAGS(list(argv))
        _CONFIG.value["workflow"]  # If the config file is missing, only the first access fails.
        return rest
    except (flags.Error, AttributeError, KeyError, TypeError, ValueError, OSError) as error:
        reason = error.args[0] if error.args and isinstance(error.args[0], KeyError) else error
        message = str(reason)
        if isinstance(reason, KeyError):  # An unknown setting, with or without a suggestion.
            message = str(reason.args[0])
            message = message if " " in message else f"There is no setting {message}."
        if "Traceback" in message:  # An error in the config file; the last line has its message.
            message = message.strip().splitlines()[-1]
        sys.exit(f"remem_jax: {redaction.without_secrets(' '.join(message.split()))}")


def _with_shipped_configs(argv: Sequence[str]) -> list[str]:
    """Replaces paths below configs/ that do not exist here by the package's copies."""

    def replaced(argument: str) -> str:
        flag, name, rest = argument.partition("configs/")
        file = f"{name}{rest.partition('.py')[0]}.py"
        ours = (
            bool(name)
            and flag in ("", "--config=", "-config=")
            and (shipped_configs.ROOT / file).is_file()
        )
        return (
            f"{flag}{shipped_configs.ROOT}/{name}{rest}"
            if ours and not pathlib.Path(file).exists()
            else argument
        )

    return [replaced(argument) for argument in argv]


def _config_roots(argv: Sequence[str]) -> list[str]:
    """Returns the folders with the config's `configs/`, so that config files can import others."""
    named = [value for name, value in itertools.pairwise(argv) if name in ("--config", "-config")]
    pairs = [argument.partition("=") for argument in argv]
    named += [value for name, _, value in pairs if name in ("--config", "-config")]
    # A colon and the config's argument may follow the name of the file.
    files = [pathlib.Path(path.partition(".py")[0]) for path in named]
    return [
        str(folder.parent) for file in files for folder in file.parents if folder.name == "configs"
    ]


if __name__ == "__main__":
    logging.use_absl_handler()
    logging.set_verbosity(logging.INFO)
    app.run(main, flags_parser=parse_flags)
