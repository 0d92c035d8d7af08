"""Training gives the same results on 1, 2 and 8 devices and in one process or two."""

import json
import math
import pathlib
import re
import signal
import socket
import time
from collections.abc import Iterator
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from remem_jax import checks, distributed, launchers, mesh
from tests import forking
from tests.train import mesh_child

DEVICES = mesh_child.DEVICES


class Output(NamedTuple):
    """The output of a process: its arrays by case and name, and facts by case."""

    arrays: dict[str, dict[str, np.ndarray]]
    facts: dict[str, Any]


def free_port() -> int:
    with socket.socket() as free:
        free.bind(("localhost", 0))
        return free.getsockname()[1]


def read(out: pathlib.Path) -> Output:
    arrays: dict[str, dict[str, np.ndarray]] = {}
    with np.load(f"{out}.npz") as file:
        for key in file.files:
            case, name = key.split(": ")
            arrays.setdefault(case, {})[name] = file[key]
    return Output(arrays, json.loads(pathlib.Path(f"{out}.json").read_text()))


@pytest.fixture(scope="module")
def server() -> Iterator[forking.Server]:
    """A server that forks processes."""
    with forking.Server("tests.train.mesh_child", "tests.train.waiting_child") as server:
        yield server


@pytest.fixture(scope="module")
def outputs(server: forking.Server, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Output]:
    """The outputs of one process ("alone") and of each of two ("first", "second")."""
    folder, port = tmp_path_factory.mktemp("mesh"), free_port()
    processes = {"alone": (1, 0), "first": (2, 0), "second": (2, 1)}
    children = {
        name: server.start("tests.train.mesh_child:main", str(folder / name), port, *place)
        for name, place in processes.items()
    }
    logs = {name: child.communicate(timeout=250)[1] for name, child in children.items()}
    for name, child in children.items():
        assert child.returncode == 0, logs[name][-3000:]
    return {name: read(folder / name) for name in children}


def assert_same(actual: dict[str, np.ndarray], expected: dict[str, np.ndarray]) -> None:
    """Compares arrays after two steps, up to the order of float32 sums."""
    assert actual.keys() == expected.keys()
    assert len(actual) > 40
    for name, array in expected.items():
        # Key biases do not change the softmax: their gradient is a rounding error of about 1e-9.
        np.testing.assert_allclose(
            actual[name], array, rtol=1e-4, atol=1e-5 * np.abs(array).max() + 1e-8, err_msg=name
        )


slow = pytest.mark.slow
several = pytest.mark.enable_socket  # The processes communicate.


@slow
@several
@pytest.mark.parametrize("case", ["teacher 2", "teacher 8", "student 2", "student 8"])
def test_several_devices_train_like_one(outputs: dict[str, Output], case: str) -> None:
    alone = outputs["alone"].arrays

    # These are parameters, momentum, BatchNorm statistics, loss and norms; half the cases use FSDP.
    assert_same(alone[case], alone[f"{case.split()[0]} 1"])


@slow
@several
@pytest.mark.parametrize("case", ["teacher 8", "student 8"])
@pytest.mark.parametrize("process", ["first", "second"])
def test_two_processes_train_like_one_with_all_devices(
    outputs: dict[str, Output], case: str, process: str
) -> None:
    assert outputs[process].facts["devices"] == DEVICES
    assert len(outputs[process].facts[case]["held"]) == DEVICES // 2
    assert_same(outputs[process].arrays[case], outputs["alone"].arrays[case])


@slow
@several
def test_one_process_writes(outputs: dict[str, Output]) -> None:
    writers = {name: output.facts["writer"] for name, output in outputs.items()}

    assert writers == {"alone": True, "first": True, "second": False}


@slow
@several
def test_outputs_are_read_only_if_every_process_has_stored_them(outputs: dict[str, Output]) -> None:
    read = {name: output.facts["stored"] for name, output in outputs.items()}

    assert read == {"alone": [0, 1, 2, 5, 7], "first": [1, 2, 7], "second": [1, 2, 7]}


@slow
@several
@pytest.mark.parametrize("case", [(name, size, fsdp) for name, size, fsdp in mesh_child.CASES])
def test_after_a_step_a_device_holds_its_share_of_the_state(
    outputs: dict[str, Output], case: tuple[str, int, bool]
) -> None:
    name, devices, fsdp = case

    facts = outputs["alone"].facts[f"{name} {devices}"]

    # All arrays are float32 or int32, and every large one has a divisible axis.
    divided = [size for size in facts["sizes"] if fsdp and size >= mesh.SMALLEST_DIVIDED]
    expected = 4 * (sum(facts["sizes"]) - sum(divided) * (devices - 1) / devices)
    assert facts["held"] == [expected] * devices
    assert bool(divided) == fsdp


def kinds(collectives: list[Any]) -> set[str]:
    return {kind for kind, _ in collectives}


@slow
@several
def test_data_parallel_steps_only_all_reduce(outputs: dict[str, Output]) -> None:
    plain, sam = (outputs["alone"].facts[case]["collectives"] for case in ("plain", "teacher 8"))
    student = outputs["alone"].facts["student 2"]["collectives"]

    assert kinds(plain) == kinds(sam) == kinds(student) == {"all-reduce"}
    assert len(sam) == 2 * len(plain)  # SAM has two gradients.
    # A BatchNorm reduces two sums together in the forward pass and two in the backward pass. DIST
    # does the same for each class, but XLA reduces its means separately. The gradients follow. On a
    # CPU, those of large convolutions occur in both branches of a conditional, of which one runs.
    assert len(student) <= 2 * mesh_child.NORMS + 1 + 4 + 2 * mesh_child.KERNELS


@slow
@several
@pytest.mark.parametrize("case", ["teacher 2", "student 8"])
def test_fsdp_gathers_parameters_but_not_images(outputs: dict[str, Output], case: str) -> None:
    facts = outputs["alone"].facts[case]

    divided = {size for size in facts["sizes"] if size >= mesh.SMALLEST_DIVIDED}
    gathered = [sizes for kind, sizes in facts["collectives"] if kind == "all-gather"]
    assert kinds(facts["collectives"]) <= {"all-reduce", "all-gather", "reduce-scatter"}
    assert {size for sizes in gathered for size in sizes} == divided


@slow
@several
def test_augmentation_is_local_and_mixup_needs_one_neighbour(outputs: dict[str, Output]) -> None:
    collectives = outputs["alone"].facts["student 2"]["augmentation"]

    # Each device sends the last image of its part of the batch, and its label.
    pixels = 3 * mesh_child.SIDE**2
    assert kinds(collectives) == {"collective-permute"}
    assert sorted(size for _, sizes in collectives for size in sizes) == [
        mesh_child.CLASSES,
        pixels,
    ]


@slow
@several
@pytest.mark.parametrize("killed", [0, 1])
def test_the_other_process_exits_when_one_is_killed(
    server: forking.Server, tmp_path: pathlib.Path, killed: int
) -> None:
    port = free_port()
    outs = [tmp_path / "0", tmp_path / "1"]
    children = [
        server.start("tests.train.waiting_child:main", str(out), port, i)
        for i, out in enumerate(outs)
    ]
    try:
        until = time.monotonic() + 100
        while not all(out.exists() for out in outs) and time.monotonic() < until:
            time.sleep(0.1)

        children[killed].send_signal(signal.SIGKILL)
        survivor = children[1 - killed]
        log = survivor.communicate(timeout=60)[1]  # More than `waiting_child.SECONDS`.
    finally:
        server.close_children()

    assert survivor.returncode not in (0, -signal.SIGKILL)
    assert "another task died" in log


@several
def test_a_missing_coordinator_is_reported() -> None:
    address = f"localhost:{free_port()}"

    with pytest.raises(checks.SettingError, match=rf"Nothing answers at {address} after 0\.5"):
        distributed.initialize(address, 2, 1, join_seconds=0.5)


@several
def test_missing_processes_are_reported_by_the_coordinator(
    server: forking.Server, tmp_path: pathlib.Path
) -> None:
    child = server.start("tests.train.waiting_child:main", str(tmp_path / "0"), free_port(), 0)

    log = child.communicate(timeout=60)[1]

    assert child.returncode == 1
    assert re.search(r"the 2 processes of localhost:\d+ did not all come within 3 sec", log)
    assert len(log.splitlines()) == 1


@several
def test_a_port_in_use_is_refused() -> None:
    with socket.socket() as other:
        other.bind(("", 0))
        other.listen()
        port = other.getsockname()[1]

        with pytest.raises(checks.SettingError, match=rf"Port {port} .* already in use"):
            distributed.initialize(f"localhost:{port}", 2, 0)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("localhost:1", 2, None), "set all, or none"),
        ((None, 2, 0), "set all, or none"),
        (("localhost", 2, 0), "must be host:port"),
        (("localhost:70000", 2, 0), "must be host:port"),
        (("localhost:1", 2, 2), "process must be from 0 to 1"),
    ],
)
def test_invalid_arguments_are_refused(arguments: Any, message: str) -> None:
    with pytest.raises(checks.SettingError, match=message):
        distributed.initialize(*arguments)


_OF_STEP = ("STEP_NUM_TASKS", "STEP_NUM_NODES", "NNODES", "STEP_TASKS_PER_NODE", "GPUS_PER_TASK")


@pytest.fixture
def joined(monkeypatch: pytest.MonkeyPatch) -> list[dict[str, Any]]:
    """The calls to JAX's initialisation, in an environment without a launcher."""
    for name in ("OMPI_MCA_orte_hnp_uri", "OMPI_COMM_WORLD_SIZE", "TPU_ML_PLATFORM"):
        monkeypatch.delenv(name, raising=False)
    for name in (*launchers._SLURM, *_OF_STEP):
        monkeypatch.delenv(f"SLURM_{name}", raising=False)
    calls: list[dict[str, Any]] = []
    monkeypatch.setattr(jax.distributed, "initialize", lambda **options: calls.append(options))
    return calls


def srun(tasks: int) -> dict[str, str]:
    values = ("12", "node[1-2]", str(tasks), "1", "0")
    return {f"SLURM_{name}": value for name, value in zip(launchers._SLURM, values, strict=True)}


@pytest.mark.parametrize(
    ("environment", "joins"),
    [
        ({}, False),
        (srun(2), True),
        (srun(1), False),
        ({"SLURM_JOB_ID": "12", "SLURM_NTASKS": "2", "SLURM_PROCID": "0"}, False),  # Without srun.
        ({"OMPI_MCA_orte_hnp_uri": "1.0;tcp://10.0.0.1:1", "OMPI_COMM_WORLD_SIZE": "2"}, True),
        ({"OMPI_MCA_orte_hnp_uri": "1.0;tcp://10.0.0.1:1", "OMPI_COMM_WORLD_SIZE": "1"}, False),
        ({"TPU_ML_PLATFORM": "JAX"}, True),
    ],
)
def test_processes_of_a_launcher_are_joined_without_arguments(
    joined: list[dict[str, Any]],
    monkeypatch: pytest.MonkeyPatch,
    environment: dict[str, str],
    joins: bool,
) -> None:
    for name, value in environment.items():
        monkeypatch.setenv(name, value)

    distributed.initialize()

    assert len(joined) == joins
    assert not any("num_processes" in options for options in joined)  # JAX finds them.


@pytest.mark.parametrize(
    ("environment", "expected"),
    [
        ({}, None),
        ({"CUDA_VISIBLE_DEVICES": "0,1"}, None),  # Both tasks of the host see both.
        ({"CUDA_VISIBLE_DEVICES": "5"}, [0]),
        ({"CUDA_VISIBLE_DEVICES": "0,1", "SLURM_GPUS_PER_TASK": "2"}, [0, 1]),
        ({"CUDA_VISIBLE_DEVICES": "0", "JAX_LOCAL_DEVICE_IDS": "0"}, None),
    ],
)
def test_a_task_uses_the_gpus_that_slurm_gave_to_it_alone(
    joined: list[dict[str, Any]],
    monkeypatch: pytest.MonkeyPatch,
    environment: dict[str, str],
    expected: list[int] | None,
) -> None:
    for name, value in (srun(2) | environment).items():
        monkeypatch.setenv(name, value)

    distributed.initialize()

    (options,) = joined
    assert options.get("local_device_ids") == expected


def _separate(workers: str = "auto", *, is_study: bool = True, given: bool = False) -> Any:
    return launchers.separate_workers(workers, is_study=is_study, given=given)


MPI = {
    "OMPI_MCA_orte_hnp_uri": "1.0;tcp://10.0.0.1:1",
    **{
        f"OMPI_COMM_WORLD_{name}": value for name, value in zip(("SIZE", "RANK"), "42", strict=True)
    },
    "OMPI_COMM_WORLD_LOCAL_SIZE": "2",
}
STEP = {"SLURM_STEP_NUM_NODES": "2", "SLURM_STEP_TASKS_PER_NODE": "3,1"}


@pytest.mark.parametrize(
    ("environment", "expected"),
    [
        ({}, None),
        (srun(4) | STEP, ("Slurm", 1, 4, 3, 2)),
        (srun(4) | {"SLURM_STEP_TASKS_PER_NODE": "4(x2)"}, ("Slurm", 1, 4, 4, 1)),
        # An interactive step, in an allocation for four tasks.
        (srun(4) | {"SLURM_STEP_NUM_TASKS": "1"}, None),
        (MPI, ("Open MPI", 2, 4, 2, 2)),
        ({"TPU_ML_PLATFORM": "JAX"}, None),
    ],
)
def test_the_processes_of_a_study_are_separate_workers(
    joined: list[dict[str, Any]],
    monkeypatch: pytest.MonkeyPatch,
    environment: dict[str, str],
    expected: Any,
) -> None:
    for name, value in environment.items():
        monkeypatch.setenv(name, value)

    assert _separate() == expected
    assert _separate("joined") is None
    assert _separate(is_study=False) is None
    assert _separate(given=True) is None


@pytest.mark.parametrize(
    ("environment", "options", "message"),
    [
        ({}, {"workers": "separate", "is_study": False}, "--workers=separate is for studies"),
        ({}, {"workers": "separate", "given": True}, "does not go with --coordinator"),
        ({"TPU_ML_PLATFORM": "JAX"}, {"workers": "separate"}, "cannot be used on a TPU pod"),
        (srun(4) | {"SLURM_STEP_NUM_TASKS": "2"}, {}, "SLURM_NTASKS is 4, but SLURM_STEP_NUM_TASK"),
        (
            srun(4) | {"CUDA_VISIBLE_DEVICES": "0,1,2,3"},
            {},
            r"Slurm started 4 workers on this host, each of which sees 4 GPUs.*--gpus-per-task=1",
        ),
    ],
)
def test_an_environment_that_could_mean_either_is_refused(
    joined: list[dict[str, Any]],
    monkeypatch: pytest.MonkeyPatch,
    environment: dict[str, str],
    options: dict[str, Any],
    message: str,
) -> None:
    monkeypatch.delenv("JAX_PLATFORMS")
    for name, value in environment.items():
        monkeypatch.setenv(name, value)

    with pytest.raises(checks.SettingError, match=message):
        _separate(**options)


@pytest.mark.parametrize(
    "environment",
    [
        {"CUDA_VISIBLE_DEVICES": "3"},
        {"CUDA_VISIBLE_DEVICES": "0,1", "SLURM_GPUS_PER_TASK": "2"},
        {"CUDA_VISIBLE_DEVICES": "0,1", "SLURM_STEP_TASKS_PER_NODE": "1(x4)"},
        {"CUDA_VISIBLE_DEVICES": "0,1", "JAX_PLATFORMS": "cpu"},
    ],
)
def test_workers_with_gpus_of_their_own_are_separate(
    joined: list[dict[str, Any]], monkeypatch: pytest.MonkeyPatch, environment: dict[str, str]
) -> None:
    monkeypatch.delenv("JAX_PLATFORMS")
    for name, value in (srun(4) | environment).items():
        monkeypatch.setenv(name, value)

    assert _separate().processes == 4


def test_a_launcher_without_a_coordinator_address_is_an_error(
    joined: list[dict[str, Any]], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("OMPI_COMM_WORLD_SIZE", "2")  # Set by Open MPI 5.

    with pytest.raises(checks.SettingError, match="OMPI_COMM_WORLD_RANK"):
        distributed.initialize()


def test_a_run_is_joined_once(
    joined: list[dict[str, Any]], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(jax.distributed, "is_initialized", lambda: True)

    distributed.initialize("localhost:1", 2, 0)

    assert joined == []


@pytest.mark.parametrize(
    ("size", "nearest"), [(7, "set it to 6 or 8"), (1, "set it to 2,"), (0, "set it to 2,")]
)
def test_an_indivisible_batch_size_is_refused_with_the_nearest_divisible_ones(
    size: int, nearest: str
) -> None:
    with pytest.raises(checks.SettingError) as error:
        mesh.check_batch_size("config.student.batch_size", size, mesh.make_mesh())

    assert "config.student.batch_size must be a multiple" in str(error.value)
    assert f"2, got {size}" in str(error.value)
    assert nearest in str(error.value)


def test_a_divisible_batch_size_is_accepted() -> None:
    mesh.check_batch_size("config.student.batch_size", 6, mesh.make_mesh())


@pytest.mark.parametrize(
    ("shape", "piece"),
    [
        ((256, 128), (128, 128)),
        ((3, 128, 256), (3, 128, 128)),
        ((1025, 64), (1025, 32)),  # The longest axis is not divisible.
        ((257, 255), (257, 255)),  # No axis is divisible.
        ((127, 256), (127, 256)),  # The array is too small.
        ((), ()),
    ],
)
def test_fsdp_shards_the_longest_divisible_axis(
    shape: tuple[int, ...], piece: tuple[int, ...]
) -> None:
    array = np.zeros(shape, np.float32)

    shardings = mesh.state_shardings(mesh.make_mesh(), {"kernel": array}, fsdp=True)

    assert math.prod(shape) >= mesh.SMALLEST_DIVIDED or shape == piece
    assert shardings["kernel"].shard_shape(shape) == piece


def test_without_fsdp_all_parameters_are_replicated() -> None:
    shapes = jax.eval_shape(lambda: {"kernel": jnp.zeros((256, 256)), "step": jnp.zeros(())})

    shardings = mesh.state_shardings(mesh.make_mesh(), shapes, fsdp=False)

    assert all(sharding.is_fully_replicated for sharding in shardings.values())


def test_donating_placed_arrays_keeps_the_originals() -> None:
    devices = mesh.make_mesh()
    original = {"host": np.ones((256, 256), np.float32), "device": jnp.ones((256, 256))}

    placed = mesh.place(original, mesh.replicated(devices))
    jax.block_until_ready(
        jax.jit(lambda tree: jax.tree.map(lambda x: x + 1, tree), donate_argnums=0)(placed)
    )

    for array in original.values():
        np.testing.assert_array_equal(array, 1.0)


def test_placed_arrays_are_copies() -> None:
    numbers = np.ones(2**16 + 16, np.float32)
    original = numbers[-numbers.ctypes.data % 64 // 4 :][
        : 2**16
    ]  # Aligned so that JAX could share the memory.

    placed = mesh.place(original, mesh.batch_sharding(mesh.make_mesh()))
    original[:] = 2

    np.testing.assert_array_equal(placed, 1.0)


def test_gathered_arrays_are_replicated_on_every_device() -> None:
    devices = mesh.make_mesh()
    array = np.arange(2**16, dtype=np.float32).reshape(2, -1)
    placed = mesh.place(
        {"kernel": array}, mesh.state_shardings(devices, {"kernel": array}, fsdp=True)
    )

    gathered = mesh.gather(placed, devices)["kernel"]

    assert placed["kernel"].addressable_shards[0].data.size == array.size // 2
    assert gathered.is_fully_replicated
    np.testing.assert_array_equal(gathered, array)


def test_local_rows_are_in_the_order_of_the_devices() -> None:
    rows = np.arange(12, dtype=np.float32).reshape(4, 3)

    placed = mesh.place(rows, mesh.batch_sharding(mesh.make_mesh()))

    np.testing.assert_array_equal(mesh.local_rows(placed), rows)


def test_device_bytes_count_only_a_devices_shard() -> None:
    devices = mesh.make_mesh()
    tree = {"kernel": np.zeros((256, 256), np.float32), "bias": np.zeros(256, np.float32)}

    shapes = mesh.shapes(tree, mesh.state_shardings(devices, tree, fsdp=True))

    assert mesh.device_bytes(shapes) == 4 * (256 * 256 // 2 + 256)


@pytest.mark.parametrize(
    ("error", "reason"),
    [
        (RuntimeError("Unable to initialize backend\n'tpu'"), "initialize backend 'tpu'"),
        (AssertionError(), "there is no plugin for it"),
    ],
)
def test_missing_devices_are_a_one_line_error(
    error: Exception, reason: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail() -> None:
        raise error

    monkeypatch.setattr(mesh.jax, "devices", fail)

    message = rf"JAX finds no cpu here \(JAX_PLATFORMS=cpu\): .*{reason}\. Unset JAX_PLATFORMS"
    with pytest.raises(checks.SettingError, match=message):
        mesh.require_devices()
