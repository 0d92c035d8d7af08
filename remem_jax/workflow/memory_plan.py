"""Plans rematerialisation and gradient accumulation so that a training step fits into memory."""

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
from remem_jax.workflow import context, stages

_FILE = "plans.json"  # In the folder of a run.
_GIB = 2**30
_PLENTY = 0.25  # Fraction of the memory below which a step needs no plan.
_USABLE = 0.95  # Fraction of the memory: allocators leave gaps, and kernels need workspace.
_USABLE_OF_HOST = 0.6  # Fraction on a CPU, whose memory other programs share.
# Cost of a plan relative to storing all activations. Recomputing blocks takes a third more
# operations; elementwise operations are few and limited by memory bandwidth anyway.
_COSTS = {"nothing": 1.0, "elementwise": 1.02, "blocks": 4 / 3}
# A microbatch reads all parameters and adds its gradient to a sum: 20 bytes per parameter. In that
# time an H100 or a TPU v5e does at least 6000 operations; training takes 6 per token.
_TOKENS_PER_MICROBATCH = 1000
_DESCRIPTIONS = {
    "nothing": "stores all activations",
    "elementwise": "recomputes elementwise operations",
    "blocks": "recomputes blocks",
}


class Plan(NamedTuple):
    """How a training step saves memory.

    Attributes:
        rematerialise: What the backward pass recomputes, one of `RECOMPUTED`.
        accumulate: Number of microbatches; see `division.Division`.
    """

    rematerialise: str = "nothing"
    accumulate: int = 1

    def __str__(self) -> str:
        microbatches = f", in {self.accumulate} microbatches" if self.accumulate > 1 else ""
        return f"{_DESCRIPTIONS[self.rematerialise]}{microbatches}"


class Option(NamedTuple):
    """Memory and operations of a plan, per device.

    Attributes:
        plan: The plan.
        bytes: Peak memory: arguments of the step, and other memory while it runs.
        compiled: Whether `bytes` is from the compiled step; else it is an approximate lower bound.
        operations: Floating-point operations of a gradient, relative to storing all activations.
    """

    plan: Plan
    bytes: int
    compiled: bool
    operations: float

    def record(self) -> dict[str, Any]:
        """Returns the record for `results.json`."""
        return {**self.plan._asdict(), **{k: v for k, v in self._asdict().items() if k != "plan"}}

    def __str__(self) -> str:
        about = "" if self.compiled else "about "
        return (
            f"{self.plan}: {about}{self.bytes / _GIB:.2f} GiB, {self.operations:.2f} x operations"
        )


class Traced(NamedTuple):
    """Properties of a gradient, known before compilation.

    Attributes:
        stored: Approximate bytes of the stored activations, per device, before the compiler
            optimises them.
        operations: Floating-point operations; see `flops.count`.
    """

    stored: int
    operations: float


class Step(NamedTuple):
    """A training step to be planned.

    Attributes:
        stage: Name of its stage of the run.
        group: Name of the group of its settings, such as "config.teacher".
        plans: Candidates, cheapest first.
        apply: Returns the model in training mode, given what it recomputes.
        trainable: Trainable parameters, or their shapes.
        frozen: Other parameters.
        at_rest: Bytes between steps, per device, of the state and of `frozen`.
        needs: Returns the memory of the compiled step of a plan; see `step_memory.of_step`.
        input_shape: Shape of the model's input for one example.
        examples: Batch size per device.
        platform: Platform of the devices; see `platforms.of`.
        scanned: Whether the model scans over its blocks.
        statistics: Shapes of the model's other variables.
        divisible: Whether a batch may be divided into microbatches.
    """

    stage: str
    group: str
    plans: Sequence[Plan]
    apply: Callable[[str], TrainApply]
    trainable: Params
    frozen: Params
    at_rest: int
    needs: Callable[[Plan], tuple[int, int]]
    input_shape: tuple[int, ...]
    examples: int
    platform: str
    scanned: bool = True
    statistics: Params = {}  # noqa: RUF012
    divisible: bool = True

    @property
    def slack(self) -> float:
        """Factor by which `stored` may exceed the memory for a plan to be compiled."""
        # A scan stores all that it stacks; with unrolled blocks, fusions recompute some of it.
        return 1.0 if self.scanned else 3.0

    def traced(self, plan: Plan) -> Traced:
        """Traces the gradient of a plan, without compiling it."""
        apply = self.apply(plan.rematerialise)
        count = max(self.examples // plan.accumulate, 1)

        def zeros(tree: Params) -> Params:
            return jax.tree.map(lambda leaf: jnp.zeros(leaf.shape, leaf.dtype), tree)

        def outputs(params: Params) -> jax.Array:
            whole, statistics = tuning.join(params, zeros(self.frozen)), zeros(self.statistics)
            return apply(
                whole, statistics, jnp.zeros((count, *self.input_shape)), jax.random.key(0)
            )[0]

        def gradient(params: Params) -> Any:
            logits, pull = jax.vjp(outputs, params)
            return pull(logits), jax.tree.leaves(pull)

        shapes = jax.tree.map(
            lambda leaf: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype), self.trainable
        )
        with platforms.traced_for(self.platform):
            closed, (_, stored) = jax.make_jaxpr(gradient, return_shape=True)(shapes)
        # The stored values include the parameters, which are arguments of the step.
        parameters = _bytes((self.trainable, self.frozen))
        return Traced(
            max(_bytes(stored) - parameters, 0),
            flops.of_jaxpr(closed.jaxpr, platform=self.platform),
        )


def _bytes(tree: Any) -> int:
    return sum(math.prod(leaf.shape) * leaf.dtype.itemsize for leaf in jax.tree.leaves(tree))


def candidates(
    settings: ConfigDict, device_mesh: jax.sharding.Mesh, *, tokens: int, whole: bool = False
) -> list[Plan]:
    """Returns the plans that the settings allow, cheapest first.

    A batch is divided only if elementwise operations are recomputed, which costs less.

    Args:
        settings: Settings of a teacher.
        device_mesh: Mesh of devices.
        tokens: Number of tokens of an image.
        whole: Whether the loss needs whole batches.
    """
    setting = recomputed("rematerialise", settings.rematerialise)
    names: Sequence[str] = RECOMPUTED if setting == AUTO else (setting,)
    if settings.accumulate or whole:
        counts = [max(settings.accumulate, 1)]
    else:
        counts = list(splits(settings, device_mesh))
    plans = [
        Plan(name, count)
        for name in names
        for count in counts
        if setting != AUTO or name != "nothing" or count == counts[0]
    ]
    cost_of_microbatch = _TOKENS_PER_MICROBATCH / (settings.batch_size // device_mesh.size * tokens)
    return sorted(
        plans, key=lambda plan: _COSTS[plan.rematerialise] + cost_of_microbatch * plan.accumulate
    )


def free(run: context.Run) -> int:
    """Returns the memory of a device that a training step may use, in bytes."""
    usable = _USABLE_OF_HOST if run.platform == "cpu" else _USABLE
    return int(usable * run.memory()) - run.dataset.resident_bytes


def choose(run: context.Run, step: Step) -> Option | None:
    """Returns the first plan that fits on the device; None if there is none.

    Nothing is compiled if the activations are small, nor for a plan whose activations alone are too
    large. All processes must call it, and get the same plan.
    """
    examine, plans = _Examine(run, step), step.plans
    if len(plans) == 1 or examine.plenty():  # The user has set it.
        return examine.estimated(plans[0])
    examined = ((option, _fits(run, option)) for option in map(examine, plans))
    return next((option for option, fits in examined if fits), None)


def listed(run: context.Run, step: Step) -> tuple[list[Option], Option | None]:
    """Returns the option of each plan up to the chosen one, and the chosen one.

    Plans that the platform or a setting rules out are listed too, unless they divide the batch.
    Nothing is compiled if the activations are small.
    """
    examine, options, chosen = _Examine(run, step), dict[Plan, Option](), None
    examined, plenty = examine, examine.plenty()
    if plenty:
        examined = examine.estimated
    for plan in step.plans:
        options[plan] = examined(plan)
        if plenty or _fits(run, options[plan]):
            chosen = options[plan]
            break
    least = min(plan.accumulate for plan in step.plans)
    for name in RECOMPUTED:
        plan = Plan(name, least)
        options[plan] = options.get(plan) or examined(plan)
    order = sorted(
        options, key=lambda plan: (plan.accumulate, RECOMPUTED.index(plan.rematerialise))
    )
    return [options[plan] for plan in order], chosen


class _Examine:
    """Examines plans: compiles the step, unless it clearly does not fit."""

    def __init__(self, run: context.Run, step: Step) -> None:
        self._run, self._step = run, step
        self.traced = functools.cache(step.traced)

    def __call__(self, plan: Plan) -> Option:
        estimate, step = self.estimated(plan), self._step
        if _agreed(estimate.bytes <= step.slack * free(self._run)):
            try:
                return estimate._replace(bytes=sum(step.needs(plan)), compiled=True)
            except jax.errors.JaxRuntimeError as error:
                # The TPU compiler raises this for a step that does not fit.
                if mesh.out_of_memory(error) is None:
                    raise
        return estimate

    def plenty(self) -> bool:
        """Returns whether all activations can be stored in a fraction of the memory."""
        cheapest, at_rest = self._step.plans[0], self._step.at_rest
        all_stored = self.traced(cheapest._replace(rematerialise="nothing")).stored
        # Gradients, their sum, and SAM's perturbed parameters.
        return _agreed(3 * at_rest + all_stored < _PLENTY * free(self._run))

    def estimated(self, plan: Plan) -> Option:
        """Returns an approximate lower bound of the memory of a plan."""
        with_plan, without_plan = (
            self.traced(p) for p in (plan, plan._replace(rematerialise="nothing"))
        )
        ratio = with_plan.operations / without_plan.operations
        return Option(plan, self._step.at_rest + with_plan.stored, False, ratio)


def _fits(run: context.Run, option: Option) -> bool:
    return _agreed(option.compiled and option.bytes <= free(run))


def _agreed(value: bool) -> bool:
    """Returns whether the value is True in all processes; all must call it, in the same order."""
    return not mesh.any_process(not value)


def planned(run: context.Run, step: Step) -> Plan:
    """Returns the plan of a stage: that of the run's first start if it fits, else the cheapest.

    The plan and its memory are saved in the run's folder; see `read`.

    Raises:
        SettingError: If no plan fits.
    """
    saved = results.read_for_all(run.workdir / _FILE) or {}
    earlier = saved.get(step.stage, {})
    # The sort is stable: the others stay ordered by cost.
    plans = sorted(step.plans, key=lambda plan: not plan._asdict().items() <= earlier.items())
    option = choose(run, step._replace(plans=plans))
    if option is None:
        raise does_not_fit(step, _Examine(run, step)(step.plans[-1]), free(run))
    results.write_for_all(run.workdir / _FILE, saved | {step.stage: option.record()})
    # That nothing is saved needs no mention: it is the case wherever memory suffices.
    level = logging.DEBUG if option.plan == Plan("nothing") else logging.INFO
    logging.log(level, "%s, a step %s.", stages.title(step.stage), option)
    return option.plan


def read(run: context.Run, stage: str) -> dict[str, Any] | None:
    """Reads the record that `planned` saved for a stage; None for runs of earlier versions."""
    return (results.read_for_all(run.workdir / _FILE) or {}).get(stage)


def does_not_fit(step: Step, smallest: Option, available: int) -> SettingError:
    """Returns the error for a step that does not fit with any plan.

    Args:
        step: The step.
        smallest: The plan that needs the least memory.
        available: Memory that the step may use, in bytes.
    """
    undivided = step.divisible and smallest.plan.accumulate == 1
    divided = f", set {step.group}.accumulate" if undivided else ""
    return SettingError(
        f"{stages.title(step.stage)} does not fit on the device: if it {smallest.plan}, it takes "
        f"{smallest.bytes / _GIB:.2f} GiB, and {available / _GIB:.2f} GiB are free. Lower "
        f"{step.group}.batch_size{divided}, or set config.fsdp, config.compute_dtype to bfloat16 "
        "or config.data.input to streamed."
    )
