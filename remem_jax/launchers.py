"""Finds the launcher that started a process together with others: srun, mpirun, or a TPU pod."""

import os
import pathlib
from typing import NamedTuple

from remem_jax.checks import require

_SLURM_NAME, _POD = "Slurm", "TPU pod"
_SLURM = ("JOB_ID", "STEP_NODELIST", "NTASKS", "PROCID", "LOCALID")  # The variables JAX reads.
# What the processes are that a launcher starts for a study.
WORKERS = ("auto", "joined", "separate")


class Launched(NamedTuple):
    """A process that a launcher started together with others.

    Attributes:
        launcher: "Slurm", "Open MPI" or "TPU pod".
        process: Its index, from 0.
        processes: Number of processes.
        on_host: Number of processes on this host.
        hosts: Number of hosts.
    """

    launcher: str
    process: int
    processes: int
    on_host: int
    hosts: int


def separate_workers(workers: str, *, is_study: bool, given: bool) -> Launched | None:
    """Decides whether the processes of a launcher are separate workers of a study.

    Args:
        workers: One of `WORKERS`. "auto" separates the processes of a study that srun or mpirun
            started: trials are independent, so separate workers finish more of them. On a TPU pod,
            whose hosts can only be used together, they are joined.
        is_study: Whether the command is a study.
        given: Whether `initialize` gets arguments, which join processes.

    Returns:
        This process, if it is a worker of its own and there are others; None if `initialize` should
        join the processes, if there are any.

    Raises:
        SettingError: If `workers` contradicts the rest, if the launcher's variables contradict each
            other, or if separate workers would use the same GPUs.
    """
    if workers == "separate":
        require(
            is_study,
            "--workers=separate is for studies: the processes of a run train the same models, so "
            "leave it out, or start each run with its own command and --workdir.",
        )
        require(
            not given,
            "--workers=separate does not go with --coordinator, --processes and --process, which "
            "join processes: leave them out, or set --workers=joined.",
        )
    launched = find()
    if not is_study or launched is None or given or workers == "joined":
        return None
    if launched.launcher == _POD:
        require(
            workers == "auto",
            "--workers=separate cannot be used on a TPU pod, whose hosts compute together: leave "
            "it out, and start one study on each TPU slice.",
        )
        return None
    _require_own_gpus(launched)
    return launched


def find() -> Launched | None:
    """Returns this process, if a launcher that JAX knows started it together with others.

    Raises:
        SettingError: If the launcher's variables do not say how many processes there are, or where.
    """
    environment = os.environ
    if environment.get("OMPI_COMM_WORLD_SIZE", "1") != "1":
        return _of_open_mpi()
    if all(f"SLURM_{name}" in environment for name in _SLURM):
        return _of_slurm()
    # JAX sets this when it is imported on a TPU, and then finds out whether there is a pod.
    return Launched(_POD, 0, 0, 1, 0) if "TPU_ML_PLATFORM" in environment else None


def _of_open_mpi() -> Launched:
    require(
        "OMPI_MCA_orte_hnp_uri" in os.environ,
        "This Open MPI does not tell where the first process is: set coordinator, processes "
        "and process (it is OMPI_COMM_WORLD_RANK).",
    )
    size, rank, on_host = (
        int(os.environ.get(f"OMPI_COMM_WORLD_{name}", default))
        for name, default in (("SIZE", 1), ("RANK", 0), ("LOCAL_SIZE", 1))
    )
    return Launched("Open MPI", rank, size, on_host, -(-size // on_host))


def _of_slurm() -> Launched | None:
    variables = {name: os.environ[f"SLURM_{name}"] for name in _SLURM}
    # An interactive step of an allocation for several tasks has a single one.
    of_step = os.environ.get("SLURM_STEP_NUM_TASKS", variables["NTASKS"])
    if of_step == "1":
        return None
    require(
        of_step == variables["NTASKS"],
        f"Slurm's variables contradict each other: SLURM_NTASKS is {variables['NTASKS']}, but "
        f"SLURM_STEP_NUM_TASKS is {of_step}. Give srun the number of tasks (srun --ntasks="
        f"{of_step} ...).",
    )
    tasks = int(variables["NTASKS"])
    hosts = int(os.environ.get("SLURM_STEP_NUM_NODES", os.environ.get("SLURM_NNODES", 1)))
    # Such as "4(x2),3": four on each of the first two hosts, three on the next.
    per_host = os.environ.get("SLURM_STEP_TASKS_PER_NODE", str(-(-tasks // hosts)))
    on_host = max(int(part.partition("(")[0]) for part in per_host.split(","))
    return Launched(_SLURM_NAME, int(variables["PROCID"]), tasks, on_host, hosts)


def own_gpus(launched: Launched) -> dict[str, list[int]]:
    """Returns JAX's option for GPUs that Slurm gave to this process alone, if it did.

    JAX assumes that all processes of a host see the same GPUs.
    """
    visible = os.environ.get("CUDA_VISIBLE_DEVICES", "").split(",")
    is_own = "SLURM_GPUS_PER_TASK" in os.environ or len(visible) == 1 < launched.on_host
    if launched.launcher != _SLURM_NAME or "JAX_LOCAL_DEVICE_IDS" in os.environ:
        return {}
    return {"local_device_ids": [*range(len(visible))]} if is_own and visible[0] else {}


def _require_own_gpus(launched: Launched) -> None:
    """Raises if several processes of this host see the same GPUs, as far as variables tell."""
    if launched.on_host == 1 or os.environ.get("JAX_PLATFORMS", "").startswith("cpu"):
        return
    visible = os.environ.get("CUDA_VISIBLE_DEVICES")
    if visible is None:
        gpus = len([*pathlib.Path("/dev").glob("nvidia[0-9]*")])
    else:
        gpus = len([name for name in visible.split(",") if name])
    require(
        gpus <= 1 or "SLURM_GPUS_PER_TASK" in os.environ,
        f"{launched.launcher} started {launched.on_host} workers on this host, each of which sees "
        f"{gpus} GPUs: give each its own (srun --gpus-per-task=1, or CUDA_VISIBLE_DEVICES), or set "
        "--workers=joined for one worker of all processes.",
    )
