"""The memory plan of a training step on a simulated device."""

import functools
import pathlib
import types
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from configs import remem
from remem_jax import losses, mesh, models, optim, sam
from remem_jax.checks import SettingError
from remem_jax.data.images.augment import Mixing
from remem_jax.data.loaders import resident
from remem_jax.models import decoder, vit
from remem_jax.models.rematerialisation import RECOMPUTED
from remem_jax.records import Batch
from remem_jax.train import compiling, state, steps
from remem_jax.train.division import Division
from remem_jax.workflow import context, memory_plan
from remem_jax.workflow.memory_plan import Plan

SIZE = vit.Size(patch=4, features=16, depth=2, heads=2)
GIB = 2**30
TRACED = memory_plan.Step.traced
# The simulated memory of compiled steps, in GiB.
NEEDS = {
    Plan("nothing"): 160,
    Plan("elementwise"): 40,
    Plan("elementwise", 2): 24,
    Plan("blocks"): 20,
    Plan("blocks", 2): 12,
}


@pytest.fixture
def run(tmp_path: pathlib.Path) -> context.Run:
    """A run of which only the folder and the devices are used."""
    resident: Any = types.SimpleNamespace(resident_bytes=GIB)
    nothing: Any = None
    device = mesh.make_mesh(jax.devices()[:1])
    return context.Run(
        nothing, tmp_path, resident, nothing, nothing, lambda: False, compiling.Counter(), device
    )


@pytest.fixture
def memory(monkeypatch: pytest.MonkeyPatch) -> Callable[[float], None]:
    """Sets the GiB that are free; 60 % of the memory may be used, and the images take 1 GiB."""

    def set_free(free: float) -> None:
        monkeypatch.setattr(resident, "memory", lambda: int((free + 1) * GIB / 0.6 + 1024))

    return set_free


@pytest.fixture(autouse=True)
def traced_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """Traces each plan once for all tests."""
    monkeypatch.setattr(memory_plan.Step, "traced", lambda self, plan: _traced(plan))


@functools.cache
def _traced(plan: Plan) -> memory_plan.Traced:
    return TRACED(make_step(list(NEEDS)), plan)


@functools.cache
def apply(rematerialise: str) -> Any:
    return models.train_apply(vit.make(variant=SIZE, classes=3, rematerialise=rematerialise))


def make_step(
    plans: Sequence[Plan], *, at_rest: float = 2, compiled: list[Plan] | None = None
) -> memory_plan.Step:
    def needs(plan: Plan) -> tuple[int, int]:
        if compiled is not None:
            compiled.append(plan)
        return 0, NEEDS[plan] * GIB

    params = models.shapes(vit.make(variant=SIZE, classes=3), 8)
    shapes = jax.tree.map(lambda leaf: jax.ShapeDtypeStruct(leaf.shape, "float32"), params)
    return memory_plan.Step(
        "teachers/remem", "config.teacher", plans, apply, shapes, {}, int(at_rest * GIB), needs,
        (8, 8, 3), 8, "cuda",
    )  # fmt: skip


@pytest.mark.parametrize(
    ("free", "expected", "compiled"),
    [
        (200, Plan("nothing"), 1),
        (60, Plan("elementwise"), 2),
        (30, Plan("elementwise", 2), 3),
        (22, Plan("blocks"), 4),
        (13, Plan("blocks", 2), 5),
    ],
)
def test_the_cheapest_plan_that_fits_is_chosen(
    run: context.Run,
    memory: Callable[[float], None],
    free: float,
    expected: Plan,
    compiled: int,
) -> None:
    memory(free)
    compiled_plans: list[Plan] = []

    chosen = memory_plan.planned(
        run, make_step(list(NEEDS), at_rest=20 if free > 90 else 5, compiled=compiled_plans)
    )

    assert (chosen, len(compiled_plans)) == (expected, compiled)
    saved = memory_plan.read(run, "teachers/remem")
    assert saved
    assert Plan(saved["rematerialise"], saved["accumulate"]) == expected
    assert (saved["bytes"], saved["compiled"]) == (NEEDS[expected] * GIB, True)
    assert (
        saved["operations"] == 1 if expected.rematerialise == "nothing" else saved["operations"] > 1
    )


def test_nothing_is_compiled_if_activations_are_small(
    run: context.Run, memory: Callable[[float], None]
) -> None:
    memory(40)
    compiled_plans: list[Plan] = []

    assert memory_plan.planned(run, make_step(list(NEEDS), compiled=compiled_plans)) == Plan(
        "nothing"
    )

    assert compiled_plans == []


def test_plans_that_clearly_do_not_fit_are_not_compiled(
    run: context.Run, memory: Callable[[float], None], monkeypatch: pytest.MonkeyPatch
) -> None:
    memory(30)
    stored = {"nothing": 50 * GIB, "elementwise": 27 * GIB, "blocks": GIB}
    monkeypatch.setattr(
        memory_plan.Step,
        "traced",
        lambda self, plan: memory_plan.Traced(stored[plan.rematerialise] // plan.accumulate, 1.0),
    )
    compiled_plans: list[Plan] = []

    chosen = memory_plan.planned(run, make_step(list(NEEDS), at_rest=5, compiled=compiled_plans))

    assert (chosen, compiled_plans) == (Plan("elementwise", 2), [Plan("elementwise", 2)])


def test_a_resumed_run_keeps_its_plan_if_it_fits(
    run: context.Run, memory: Callable[[float], None]
) -> None:
    step = make_step(list(NEEDS), at_rest=5)
    memory(22)
    first = memory_plan.planned(run, step)
    memory(1000)
    later = memory_plan.planned(run, step)
    memory(13)

    assert (first, later) == (Plan("blocks"), Plan("blocks"))
    assert memory_plan.planned(run, step) == Plan("blocks", 2)
    # Another device may have only other plans.
    assert memory_plan.planned(run, make_step([Plan("elementwise", 2)])) == Plan("elementwise", 2)


def test_the_error_names_settings_if_no_plan_fits(
    run: context.Run, memory: Callable[[float], None]
) -> None:
    memory(10)

    with pytest.raises(
        SettingError,
        match=r"ReMem: teacher does not fit.* in 2 microbatches, it takes 12\.00 GiB, and 10\.00.*"
        r"config\.teacher\.batch_size",
    ):
        memory_plan.planned(run, make_step(list(NEEDS), at_rest=5))


@pytest.mark.parametrize("divisible", [True, False])
def test_microbatches_are_advised_only_if_the_batch_is_divisible(
    run: context.Run, memory: Callable[[float], None], divisible: bool
) -> None:
    memory(10)
    plans = [plan for plan in NEEDS if plan.accumulate == 1]
    step = make_step(plans, at_rest=5)._replace(divisible=divisible)

    with pytest.raises(SettingError) as error:
        memory_plan.planned(run, step)

    assert ("config.teacher.accumulate" in str(error.value)) == divisible


def test_a_plan_that_the_compiler_rejects_does_not_fit(
    run: context.Run, memory: Callable[[float], None]
) -> None:
    def needs(plan: Plan) -> tuple[int, int]:
        if plan == Plan("nothing"):
            raise jax.errors.JaxRuntimeError("RESOURCE_EXHAUSTED: Ran out of memory in hbm.")
        return 0, GIB

    memory(10)
    step = make_step([Plan("nothing"), Plan("blocks")], at_rest=5)._replace(needs=needs)

    assert memory_plan.planned(run, step) == Plan("blocks")


def test_settings_of_the_user_are_used(run: context.Run, memory: Callable[[float], None]) -> None:
    memory(1)
    compiled_plans: list[Plan] = []

    chosen = memory_plan.planned(run, make_step([Plan("nothing", 4)], compiled=compiled_plans))

    assert (chosen, compiled_plans) == (Plan("nothing", 4), [])


def test_each_kind_of_plan_is_listed_with_the_chosen_one(
    run: context.Run, memory: Callable[[float], None]
) -> None:
    memory(30)

    options, chosen = memory_plan.listed(run, make_step(list(NEEDS), at_rest=5))

    assert [option.plan for option in options] == [*map(Plan, RECOMPUTED), Plan("elementwise", 2)]
    assert [option.bytes // GIB for option in options] == [160, 40, 20, 24]
    assert chosen == options[-1]
    assert str(chosen).startswith(
        "recomputes elementwise operations, in 2 microbatches: 24.00 GiB, 1."
    )


def candidates(**settings: Any) -> list[Plan]:
    """Returns the candidate plans of the paper's teacher on one device."""
    needs_whole_batch = settings.get("mcmi", 0) > 0
    teacher = remem.get_config().teacher
    teacher.update(settings)
    device = mesh.make_mesh(jax.devices()[:1])
    return memory_plan.candidates(teacher, device, tokens=197, whole=needs_whole_batch)


def test_storing_everything_comes_first_and_small_microbatches_last() -> None:
    plans = candidates()

    assert plans[:3] == [Plan("nothing"), Plan("elementwise"), Plan("elementwise", 2)]
    assert plans.index(Plan("elementwise", 8)) < plans.index(Plan("blocks"))
    assert plans.index(Plan("blocks")) < plans.index(Plan("elementwise", 64))
    assert Plan("nothing", 2) not in plans
    assert plans[-1] == Plan("blocks", 512)


@pytest.mark.parametrize(
    ("settings", "expected"),
    [
        ({"mcmi": 0.2}, [Plan("nothing"), Plan("elementwise"), Plan("blocks")]),
        ({"accumulate": 4}, [Plan("nothing", 4), Plan("elementwise", 4), Plan("blocks", 4)]),
        ({"rematerialise": "nothing", "batch_size": 6}, [Plan("nothing", n) for n in (1, 2, 6)]),
        ({"rematerialise": "True", "accumulate": 1}, [Plan("blocks")]),
        # A device processes a group of two at once, or half a group.
        (
            {"rematerialise": "blocks", "batch_size": 8, "ascent_examples": 2},
            [Plan("blocks", 1), Plan("blocks", 5)],
        ),
    ],
)
def test_settings_restrict_the_plans(settings: dict[str, Any], expected: list[Plan]) -> None:
    assert candidates(**settings) == expected


def take(plan: Plan, *, rho: float, scan: bool = True, looped: bool = False) -> Any:
    """Takes a step in float32; returns its parameters and metrics."""
    rng = np.random.default_rng(0)
    model = vit.make(variant=SIZE, classes=3, scan=scan, rematerialise=plan.rematerialise)
    params = jax.tree.map(
        lambda leaf: jnp.asarray(rng.normal(0, 0.3, leaf.shape), jnp.float32),
        models.shapes(model, 8),
    )
    tx = optim.sgd(lambda _: 0.5, momentum=0.0, nesterov=False, weight_decay=0.0, clip_norm=None)
    step = steps.make_supervised_step(
        models.train_apply(model),
        tx,
        lambda key, images: images,
        key=jax.random.key(0),
        ascent=sam.sam(rho) if rho else None,
        division=Division(0, plan.accumulate, looped=looped),
        loss=losses.cross_entropy,
        mixing=Mixing(),
    )
    images = jnp.asarray(rng.uniform(-1, 1, (4, 8, 8, 3)), jnp.float32)
    labels = jnp.asarray([0, 1, 2, 1], jnp.int32)
    first = state.create({"params": params}, tx)
    after, metrics = jax.jit(step)(first, Batch(images, labels, labels > -1), {})
    return jax.device_get((after.params, metrics))


@functools.cache
def reference(rho: float) -> Any:
    """Takes the step that stores all activations."""
    return take(Plan(), rho=rho)


@pytest.mark.usefixtures("mixed_dtypes")
@pytest.mark.parametrize(
    ("plan", "rho", "scan", "looped"),
    [
        (Plan("nothing"), 0.4, True, True),
        (Plan("elementwise", 2), 0.4, True, True),
        (Plan("blocks", 4), 0.4, False, False),
        (Plan("elementwise"), 0.0, False, False),
        (Plan("blocks", 2), 0.0, True, False),
    ],
)
def test_all_plans_take_the_same_step(plan: Plan, rho: float, scan: bool, looped: bool) -> None:
    actual = take(plan, rho=rho, scan=scan, looped=looped)

    jax.tree.map(
        lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4, atol=2e-6), actual, reference(rho)
    )


def test_rematerialisation_does_not_change_a_decoders_training() -> None:
    rng = np.random.default_rng(0)
    features = jnp.asarray(rng.normal(size=(2, 2, 2, 4)), jnp.float32)
    variables = decoder.make_init(decoder.make(image_size=8), side=2, width=4)(jax.random.key(0))

    def take(rematerialise: str) -> tuple[Any, int]:
        model = decoder.make(image_size=8).clone(rematerialise=rematerialise)
        train = models.train_apply(model)

        def loss(params: Any) -> Any:
            logits, statistics = train(
                params, {"batch_stats": variables["batch_stats"]}, features, jax.random.key(0)
            )
            return jnp.sum(jnp.sin(logits)), statistics

        residuals = jax.eval_shape(lambda p: jax.vjp(loss, p, has_aux=True)[1], variables["params"])
        stored = sum(leaf.size for leaf in jax.tree.leaves(residuals))
        result = jax.jit(jax.value_and_grad(loss, has_aux=True))(variables["params"])
        return jax.device_get(result), stored

    (expected, most), *others = (take(rematerialise) for rematerialise in RECOMPUTED)

    for actual, stored in others:
        jax.tree.map(
            lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-5), actual, expected
        )
        assert stored < most
