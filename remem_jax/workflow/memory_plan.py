"""What a training step computes again instead of storing it: as little as the device asks for."""

import functools
import math
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from absl import logging
from ml_collections import ConfigDict

from remem_jax import mesh, platforms
from remem_jax.checks import SettingError
from remem_jax.models import tuning
from remem_jax.models.rematerialisation import RECOMPUTED
from remem_jax.records import Params, TrainApply
from remem_jax.settings.memory import AUTO, recomputed, splits
from remem_jax.storage import results
from remem_jax.train import flops
from remem_jax.workflow import context

KEPT = "plans.json"  # In a run's folder.
_GIB = 2**30
_PLENTY = 0.25  # Of the memory: what takes less, with all stored, needs no closer look.
_USABLE = 0.95  # Of the memory: allocators leave gaps, and kernels take room to work.
_USABLE_OF_HOST = 0.6  # The same on a CPU, whose memory other programs share.
# What a plan costs where all is stored once, by what it computes again. Blocks: a third more
# operations. Elementwise operations are few, and wait for memory either way.
_COSTS = {"nothing": 1.0, "elementwise": 1.02, "blocks": 4 / 3}
# A part of a batch reads all parameters and adds its gradient to a sum: 20 bytes for each, in
# which time an H100 or a TPU v5e does 6000 operations or more. Training takes 6 for each token.
_TOKENS_PER_PART = 1000
_TOLD = {
    "nothing": "stores all activations",
    "elementwise": "computes elementwise operations again",
    "blocks": "computes blocks again",
}


class Plan(NamedTuple):
    """How a training step is kept within the memory.

    Attributes:
        rematerialise: What it computes again, of `RECOMPUTED`.
        accumulate: In how many parts it takes a batch; see `division.Division`.
    """

    rematerialise: str = "nothing"
    accumulate: int = 1

    def __str__(self) -> str:
        parts = f", in {self.accumulate} parts" if self.accumulate > 1 else ""
        return f"{_TOLD[self.rematerialise]}{parts}"


class Option(NamedTuple):
    """What a plan takes, on each device.

    Attributes:
        plan: The plan.
        bytes: Of memory, at most: arguments of the step, and what it takes more while it runs.
        compiled: Whether the compiled step says so; else they are about the least that it needs.
        operations: Floating-point ones of a gradient, by those where everything is stored.
    """

    plan: Plan
    bytes: int
    compiled: bool
    operations: float

    def record(self) -> dict[str, Any]:
        """As `results.json` has it."""
        return {**self.plan._asdict(), **{k: v for k, v in self._asdict().items() if k != "plan"}}

    def __str__(self) -> str:
        about = "" if self.compiled else "about "
        return (
            f"{self.plan}: {about}{self.bytes / _GIB:.2f} GiB, {self.operations:.2f} x operations"
        )


class Traced(NamedTuple):
    """What is known of a gradient before it is compiled.

    Attributes:
        stored: About the bytes of what the backward pass finds stored, on each device. What the
            compiler keeps or frees beside is not counted.
        operations: Floating-point ones; see `flops.count`.
    """

    stored: int
    operations: float


class Step(NamedTuple):
    """A training step that is planned.

    Attributes:
        part: Name of its part of the run.
        group: Name of its settings, such as "config.teacher".
        plans: Of `candidates`.
        apply: The model in training mode, by what it computes again.
        trainable: Parameters that train, or their shapes.
        frozen: The others.
        at_rest: Bytes between steps, on each device: of the state and of `frozen`.
        needs: What the compiled step takes, by its plan; see `memory.of_step`.
        seen: Shape of what the model sees of one example.
        examples: Of a batch, on each device.
        platform: Of the devices; see `platforms.of`.
        scanned: Whether the model scans over its blocks.
        statistics: Shapes of its other variables.
        divisible: Whether a batch may be taken in parts.
    """

    part: str
    group: str
    plans: Sequence[Plan]
    apply: Callable[[str], TrainApply]
    trainable: Params
    frozen: Params
    at_rest: int
    needs: Callable[[Plan], tuple[int, int]]
    seen: tuple[int, ...]
    examples: int
    platform: str
    scanned: bool = True
    statistics: Params = {}  # noqa: RUF012
    divisible: bool = True

    @property
    def slack(self) -> float:
        """How much more than the memory `stored` may be, for a plan that is looked at closely."""
        # What a scan stacks is there. Of unrolled blocks, fusions compute some of it again.
        return 1.0 if self.scanned else 3.0

    def traced(self, plan: Plan) -> Traced:
        """What is known of a plan's gradient before it is compiled."""
        apply = self.apply(plan.rematerialise)
        count = max(self.examples // plan.accumulate, 1)

        def zeros(tree: Params) -> Params:
            return jax.tree.map(lambda leaf: jnp.zeros(leaf.shape, leaf.dtype), tree)

        def outputs(params: Params) -> jax.Array:
            whole, statistics = tuning.join(params, zeros(self.frozen)), zeros(self.statistics)
            return apply(whole, statistics, jnp.zeros((count, *self.seen)), jax.random.key(0))[0]

        def gradient(params: Params) -> Any:
            logits, pull = jax.vjp(outputs, params)
            return pull(logits), jax.tree.leaves(pull)

        shapes = jax.tree.map(
            lambda leaf: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype), self.trainable
        )
        with platforms.traced_for(self.platform):
            closed, (_, stored) = jax.make_jaxpr(gradient, return_shape=True)(shapes)
        # The parameters are among what it stores; they are arguments of the step.
        own = _bytes((self.trainable, self.frozen))
        return Traced(
            max(_bytes(stored) - own, 0), flops.of_jaxpr(closed.jaxpr, platform=self.platform)
        )


def _bytes(tree: Any) -> int:
    return sum(math.prod(leaf.shape) * leaf.dtype.itemsize for leaf in jax.tree.leaves(tree))


def candidates(
    settings: ConfigDict, on: jax.sharding.Mesh, *, tokens: int, whole: bool = False
) -> list[Plan]:
    """The plans that the settings leave open, from the cheapest.

    A batch is divided only where elementwise operations are computed again, which costs less.

    Args:
        settings: Of a teacher, or of pretraining.
        on: The devices.
        tokens: Of an image.
        whole: Whether the loss is of whole batches.
    """
    wanted = recomputed("rematerialise", settings.rematerialise)
    names: Sequence[str] = RECOMPUTED if wanted == AUTO else (wanted,)
    if settings.accumulate or whole:
        numbers = [max(settings.accumulate, 1)]
    else:
        numbers = list(splits(settings, on))
    found = [
        Plan(name, number)
        for name in names
        for number in numbers
        if wanted != AUTO or name != "nothing" or number == numbers[0]
    ]
    of_part = _TOKENS_PER_PART / (settings.batch_size // on.size * tokens)
    return sorted(found, key=lambda plan: _COSTS[plan.rematerialise] + of_part * plan.accumulate)


def free(run: context.Run) -> int:
    """Bytes of a device's memory that a training step may take."""
    usable = _USABLE_OF_HOST if run.platform == "cpu" else _USABLE
    return int(usable * run.memory()) - run.dataset.resident_bytes


def choose(run: context.Run, step: Step) -> Option | None:
    """The first plan that fits on the device, found before work starts; None if there is none.

    Nothing is compiled where all activations take little, nor of a plan whose activations alone
    take too much. All processes call it, and take the same plan.
    """
    examine, plans = _Examine(run, step), step.plans
    if len(plans) == 1 or examine.plenty():  # One, as the user has set it.
        return examine.estimated(plans[0])
    examined = ((option, _fits(run, option)) for option in map(examine, plans))
    return next((option for option, fits in examined if fits), None)


def listed(run: context.Run, step: Step) -> tuple[list[Option], Option | None]:
    """What each plan takes, up to the one that `choose` takes, and that one.

    Others, which the device's platform or a setting rules out, are listed too, unless they divide
    the batch. Nothing is compiled where all activations take little.
    """
    examine, found, chosen = _Examine(run, step), dict[Plan, Option](), None
    take, plenty = examine, examine.plenty()
    if plenty:
        take = examine.estimated
    for plan in step.plans:
        found[plan] = take(plan)
        if plenty or _fits(run, found[plan]):
            chosen = found[plan]
            break
    least = min(plan.accumulate for plan in step.plans)
    for name in RECOMPUTED:
        plan = Plan(name, least)
        found[plan] = found.get(plan) or take(plan)
    order = sorted(found, key=lambda plan: (plan.accumulate, RECOMPUTED.index(plan.rematerialise)))
    return [found[plan] for plan in order], chosen


class _Examine:
    """From a plan to what it takes: of the compiled step, unless it clearly does not fit."""

    def __init__(self, run: context.Run, step: Step) -> None:
        self._run, self._step = run, step
        self.traced = functools.cache(step.traced)

    def __call__(self, plan: Plan) -> Option:
        least, step = self.estimated(plan), self._step
        if _agreed(least.bytes <= step.slack * free(self._run)):
            try:
                return least._replace(bytes=sum(step.needs(plan)), compiled=True)
            except jax.errors.JaxRuntimeError as error:
                # The compiler of TPUs says so of what does not fit.
                if mesh.out_of_memory(error) is None:
                    raise
        return least

    def plenty(self) -> bool:
        """Whether a part of the memory would do with all activations stored."""
        first, at_rest = self._step.plans[0], self._step.at_rest
        all_stored = self.traced(first._replace(rematerialise="nothing")).stored
        # Gradients, a sum of them, and parameters that SAM has moved.
        return _agreed(3 * at_rest + all_stored < _PLENTY * free(self._run))

    def estimated(self, plan: Plan) -> Option:
        """About the least that it takes."""
        own, whole = (self.traced(p) for p in (plan, plan._replace(rematerialise="nothing")))
        ratio = own.operations / whole.operations
        return Option(plan, self._step.at_rest + own.stored, False, ratio)


def _fits(run: context.Run, option: Option) -> bool:
    return _agreed(option.compiled and option.bytes <= free(run))


def _agreed(says: bool) -> bool:
    """Whether all processes say yes; all call it, in the same order."""
    return not mesh.any_process(not says)


def planned(run: context.Run, step: Step) -> Plan:
    """The plan of a part of a run: what its first start chose, where that fits, else the cheapest.

    It is kept in the run's folder, with what it takes; see `read`.

    Raises:
        SettingError: If none fits.
    """
    kept = results.read_for_all(run.workdir / KEPT) or {}
    before = kept.get(step.part, {})
    # The sort is stable: of the others, the cheapest comes first.
    plans = sorted(step.plans, key=lambda plan: not plan._asdict().items() <= before.items())
    option = choose(run, step._replace(plans=plans))
    if option is None:
        raise does_not_fit(step, _Examine(run, step)(step.plans[-1]), free(run))
    results.write_for_all(run.workdir / KEPT, kept | {step.part: option.record()})
    logging.info("%s %s.", step.part, option)
    return option.plan


def read(run: context.Run, part: str) -> dict[str, Any] | None:
    """What `planned` has kept of a part; None of one that an earlier version trained."""
    return (results.read_for_all(run.workdir / KEPT) or {}).get(part)


def does_not_fit(step: Step, least: Option, there: int) -> SettingError:
    """What the user is told where no plan fits."""
    undivided = step.divisible and least.plan.accumulate == 1
    divided = f", set {step.group}.accumulate" if undivided else ""
    return SettingError(
        f"{step.part} does not fit on the device: where it {least.plan}, it takes "
        f"{least.bytes / _GIB:.2f} GiB of the {there / _GIB:.2f} that are free. Lower "
        f"{step.group}.batch_size{divided}, or set config.fsdp, config.compute_dtype to bfloat16 "
        "or config.data.input to streamed."
    )
