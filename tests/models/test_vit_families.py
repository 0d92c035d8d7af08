"""What works with a plain ViT works with every family of timm's ViTs."""

import collections
import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import traverse_util

from remem_jax import models
from remem_jax.models import adapter, encoder, lora, tuning, vit
from remem_jax.weights import augreg, described, folding, timm_names
from tests.oracles import peers
from tests.weights.test_timm_families import as_torch, require_close, saved
from tests.weights.timm_families import CLASSES, DEPTH, FAMILIES, HEADS, SIDES, state_of

# Together they have every value of every option that any family has.
COVERING = (
    *("dinov2_giant", "dinov3", "eva02_clip", "rope_vit_mixed", "aimv2", "beit3", "qk_norm"),
    *("pe_core", "clip_quickgelu", "siglip", "radio"),
)
SIDE = SIDES[0]


class Case(NamedTuple):
    """A family's network, timm's module, and our outputs.

    Attributes:
        name: Name of the family.
        peer: timm's module.
        checkpoint: Its file.
        model: Our network.
        params: Its parameters.
        images: Images.
        logits: Logits of the images.
    """

    name: str
    peer: Any
    checkpoint: augreg.Checkpoint
    model: vit.VisionTransformer
    params: Any
    images: Any
    logits: np.ndarray

    def of_peer(self) -> np.ndarray:
        """Returns timm's logits."""
        with peers.torch().no_grad():
            return self.peer(as_torch(self.images)).numpy()


@pytest.fixture(scope="module", params=COVERING)
def case(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Case:
    path = tmp_path_factory.mktemp("family") / "vit.safetensors"
    peer, checkpoint = saved(FAMILIES[request.param], path)
    images = np.random.default_rng(0).uniform(-1, 1, (2, SIDE, SIDE, 3)).astype(np.float32)
    model = checkpoint.make(classes=CLASSES)
    params = jax.tree.map(jnp.asarray, augreg.into(checkpoint, model)["params"])
    logits = np.asarray(jax.jit(model.apply)({"params": params}, images))
    return Case(request.param, peer, checkpoint, model, params, images, logits)


def flatten(params: Any) -> Any:
    return traverse_util.flatten_dict(params, sep="/")


def random_like(shapes: Any) -> Any:
    rng = np.random.default_rng(1)
    return jax.tree.map(lambda s: jnp.asarray(rng.normal(0, 0.3, s.shape), jnp.float32), shapes)


def with_random(params: Any, shapes: Any) -> Any:
    """Returns parameters with random values for those that only `shapes` has."""
    known = flatten(params)
    added = random_like({name: leaf for name, leaf in flatten(shapes).items() if name not in known})
    return traverse_util.unflatten_dict(known | added, sep="/")


def test_the_chosen_families_cover_every_option(tmp_path: Any) -> None:
    values: dict[str, dict[str, Any]] = {}
    for name, family in FAMILIES.items():
        model = saved(family, tmp_path / "vit.safetensors")[1].make(classes=CLASSES)
        values[name] = {option: getattr(model, option) for option in vit.ARCHITECTURE}
        values[name]["rope"] = model.rope and (model.rope.kind, model.rope.half)
        values[name]["registers"] = model.registers > 0
    for option in vit.ARCHITECTURE:
        assert {values[name][option] for name in COVERING} == {
            values[name][option] for name in FAMILIES
        }, option


def test_scanned_unrolled_and_stacked_blocks_are_equal(case: Case) -> None:
    unrolled = case.model.clone(scan=False)
    stacked = encoder.stack(case.params)

    logits = [
        jax.jit(unrolled.apply)({"params": case.params}, case.images),
        jax.jit(case.model.apply)({"params": stacked}, case.images),
    ]

    assert encoder.STACK in stacked["Transformer"]
    for actual in logits:
        require_close(actual, case.logits, tolerance=1e-5)
    jax.tree.map(np.testing.assert_array_equal, encoder.unstack(stacked), case.params)


# Gradients take long to compile; these have everything that blocks can have.
@pytest.mark.parametrize(
    "case", ["dinov2_giant", "eva02_clip", "rope_vit_mixed", "qk_norm"], indirect=True
)
def test_rematerialised_gradients_are_equal(case: Case) -> None:
    images = jnp.asarray(case.images)

    def gradient(recompute: str) -> Any:
        apply = models.train_apply(case.model.clone(rematerialise=recompute))

        def loss(params: Any) -> jax.Array:
            return jnp.sum(jnp.sin(apply(params, {}, images, jax.random.key(0))[0]))

        return flatten(jax.jit(jax.grad(loss))(encoder.stack(case.params)))

    expected = gradient("nothing")
    largest = max(np.abs(leaf).max() for leaf in expected.values())
    for recompute in ("elementwise", "blocks"):
        for name, actual in gradient(recompute).items():
            np.testing.assert_allclose(actual, expected[name], rtol=1e-3, atol=1e-5 * largest)


def test_bfloat16_is_near_float32(case: Case) -> None:
    model = case.model.clone(dtype="bfloat16")

    def outputs(params: Any) -> Any:
        tokens: Any = model.apply({"params": params}, case.images, method="trunk")
        return tokens, model.apply({"params": params}, tokens, method="head")

    with nn.intercept_methods(lenient_norms):
        tokens, logits = jax.jit(outputs)(case.params)

    assert (tokens.dtype, logits.dtype) == (jnp.bfloat16, jnp.float32)
    error = np.linalg.norm(np.asarray(logits) - case.logits)
    assert error < 0.05 * np.linalg.norm(case.logits)


def lenient_norms(call: Callable[..., Any], args: Any, kwargs: Any, context: Any) -> Any:
    """Lets Flax's norms mix types, which they do, but nothing else."""
    is_norm = isinstance(context.module, nn.LayerNorm | nn.RMSNorm)
    with jax.numpy_dtype_promotion("standard" if is_norm else "strict"):
        return call(*args, **kwargs)


def lora_in_blocks(params: Any, share: float) -> Callable[..., Any]:
    """Returns an interceptor that adds share * (x A) B to the outputs of layers with LoRA.

    Blocks are applied in their order, so the number of calls of a layer so far is its block.
    """
    flat, calls = flatten(params), collections.Counter[str]()

    def intercept(call: Callable[..., Any], args: Any, kwargs: Any, context: Any) -> Any:
        out = call(*args, **kwargs)
        layer = "/".join(context.module.path[-2:])
        if context.method_name != "__call__":
            return out
        name = f"Transformer/encoderblock_{calls[layer]}/{layer}"
        if f"{name}/lora_a" not in flat:
            return out
        calls[layer] += 1
        a, b = flat[f"{name}/lora_a"], flat[f"{name}/lora_b"]
        inputs = args[0].reshape(*args[0].shape[:2], len(a))
        return out + (share * (inputs @ a) @ b).reshape(out.shape)

    return intercept


def test_merged_lora_equals_its_addition_to_each_layer(case: Case, key: jax.Array) -> None:
    targets = tuple(t for t in lora.TARGETS if t != "gate" or case.model.gated)
    added = lora.add(case.params, key, targets=targets, rank=2)
    jax.tree.map(np.testing.assert_array_equal, lora.merge(added), case.params)
    drawn = with_random(case.params, added)

    merged = jax.jit(case.model.apply)({"params": lora.merge(drawn, scale=0.5)}, case.images)

    unrolled = case.model.clone(scan=False)
    with nn.intercept_methods(lora_in_blocks(drawn, 0.25)):
        expected = np.asarray(jax.jit(unrolled.apply)({"params": case.params}, case.images))
    require_close(merged, expected)
    assert np.abs(expected - case.logits).max() > 0.01 * np.abs(case.logits).max()
    assert len(flatten(added)) - len(flatten(case.params)) == 2 * DEPTH * len(targets)


@pytest.mark.parametrize(
    ("case", "placement"),
    [*((name, "houlsby") for name in COVERING), ("dinov2_giant", "pfeiffer")],
    indirect=["case"],
)
def test_adapters_act_on_the_sub_blocks_of_timm(case: Case, placement: str) -> None:
    # They are the outputs of timm's modules before LayerScale, which is a module or factor outside.
    torch = peers.torch()
    added = adapter.add(case.params, jax.random.key(0), placement=placement, reduction=4)
    drawn = with_random(case.params, added)
    apply = jax.jit(adapter.wrap(case.model.apply))

    at_first = apply({"params": added}, case.images)
    actual = apply({"params": drawn}, case.images)

    def adapt(module: Any, inputs: Any, out: Any, *, name: str) -> Any:
        del module, inputs
        down, up = (flat_torch(drawn, f"{name}/Adapter_0/{part}") for part in ("down", "up"))
        hidden = torch.nn.functional.gelu(out @ down[0] + down[1], approximate="tanh")
        return out + hidden @ up[0] + up[1]

    hooks = []
    for i, block in enumerate(case.peer.blocks):
        modules = {"MultiHeadDotProductAttention_1": block.attn, "MlpBlock_3": block.mlp}
        for sub_block in adapter.PLACEMENTS[placement]:
            name = f"Transformer/encoderblock_{i}/{sub_block}"
            hook = functools.partial(adapt, name=name)
            hooks.append(modules[sub_block].register_forward_hook(hook))
    expected = case.of_peer()
    for hook in hooks:
        hook.remove()

    require_close(at_first, case.logits, tolerance=1e-5)
    require_close(actual, expected)
    assert np.abs(expected - case.logits).max() > 0.01 * np.abs(case.logits).max()


def flat_torch(params: Any, name: str) -> tuple[Any, Any]:
    """Returns kernel and bias of a dense layer for torch."""
    flat = flatten(params)
    kernel, bias = (
        peers.torch().tensor(np.asarray(flat[f"{name}/{leaf}"])) for leaf in ("kernel", "bias")
    )
    return kernel, bias


@pytest.mark.parametrize("name", FAMILIES)
def test_the_norms_that_train_with_adapters_are_timms_norms(name: str) -> None:
    peer, family = FAMILIES[name].make(SIDE), FAMILIES[name]
    of_norms = {
        f"{module_name}.{leaf}"
        for module_name, module in peer.named_modules()
        if "norm" in type(module).__name__.lower()
        for leaf, _ in module.named_parameters(recurse=False)
    }
    marked = {n: np.full_like(a, n in of_norms) for n, a in state_of(peer).items()}
    arrays = timm_names.from_timm(marked, heads=HEADS, pool_heads=family.facts.pool_heads)

    for method, with_norms in (("adapter_houlsby", True), ("adapter_pfeiffer", False)):
        trains = tuning.make(method, reduction=4).trains
        expected = {n for n, array in arrays.items() if array.all() and with_norms}
        assert {n for n in arrays if trains(n)} == expected | {n for n in arrays if "head/" in n}
    assert of_norms


@pytest.mark.parametrize(("pruned_mlp", "pruned_attention"), [(1, 2), (DEPTH, DEPTH)])
def test_pruned_sub_blocks_add_nothing_and_timm_loads_the_folded_file(
    case: Case, pruned_mlp: int, pruned_attention: int
) -> None:
    pruned: dict[str, Any] = {"pruned_mlp": pruned_mlp, "pruned_attention": pruned_attention}
    model = case.checkpoint.make(classes=CLASSES, **pruned)
    variables = augreg.into(case.checkpoint, model)
    hooks = [
        module.register_forward_hook(lambda module, inputs, out: 0 * out)
        for name, number in (("mlp", pruned_mlp), ("attn", pruned_attention))
        for module in (getattr(block, name) for block in case.peer.blocks[DEPTH - number :])
    ]
    expected = case.of_peer()
    for hook in hooks:
        hook.remove()

    actual = jax.jit(model.apply)(variables, case.images)

    require_close(actual, expected)
    folded = folding.fold(
        augreg.flatten(variables["params"]),
        mlp_weight=1.0,
        attention_weight=1.0,
        residual="two_minus",
        **pruned,
        unpruned=augreg.names_and_shapes(case.model, SIDE),
    )
    require_close(of_timm(case, folded), expected)


@pytest.mark.parametrize("case", ["dinov2_giant", "dinov3", "pe_core"], indirect=True)
def test_a_pruned_and_reweighted_network_is_folded(case: Case) -> None:
    pruned: dict[str, Any] = {"pruned_mlp": 1, "pruned_attention": 2}
    weights: dict[str, Any] = {"mlp_weight": 0.8, "attention_weight": 0.9, "residual": "two_minus"}
    model = case.checkpoint.make(classes=CLASSES, **weights, **pruned)
    variables = augreg.into(case.checkpoint, model)

    expected = np.asarray(jax.jit(model.apply)(variables, case.images))

    unpruned = augreg.names_and_shapes(case.model, SIDE)
    folded = folding.fold(
        augreg.flatten(variables["params"]), **weights, **pruned, unpruned=unpruned
    )
    require_close(of_timm(case, folded), expected)


def of_timm(case: Case, arrays: Any) -> np.ndarray:
    """Returns the logits of timm's module with our arrays, which it loads strictly."""
    torch = peers.torch()
    other = FAMILIES[case.name].make(SIDE)
    state = timm_names.to_timm(arrays, layout=case.checkpoint.layout)
    other.load_state_dict({name: torch.tensor(a) for name, a in state.items()}, strict=True)
    with torch.no_grad():
        return other(as_torch(case.images)).numpy()


@pytest.mark.parametrize(
    ("case", "pool"),
    [("dinov2_giant", "gap"), ("clip_quickgelu", "gap"), ("dinov3", "cls"), ("beit3", "cls")],
    indirect=["case"],
)
def test_another_pool_is_timms(case: Case, pool: str) -> None:
    before, case.peer.global_pool = case.peer.global_pool, {"gap": "avg", "cls": "token"}[pool]
    expected = case.of_peer()
    case.peer.global_pool = before
    model = case.checkpoint.make(classes=CLASSES, pool=pool)

    actual = jax.jit(model.apply)(augreg.into(case.checkpoint, model), case.images)

    require_close(actual, expected)


def test_both_pools_have_no_norm_of_their_own(tmp_path: Any) -> None:
    _, checkpoint = saved(FAMILIES["beit3"], tmp_path / "vit.safetensors")
    assert not described.can_pool("cls_gap", checkpoint.arrays)
    assert described.can_pool("cls", checkpoint.arrays)


def test_features_of_a_teacher_are_timms_tokens(case: Case) -> None:
    fields = ("patches", "cls") if case.model.has_cls else ("patches",)
    with peers.torch().no_grad():
        tokens = case.peer.forward_features(as_torch(case.images)).numpy()

    outputs = jax.jit(models.teacher_apply(case.model, fields))(
        {"params": case.params}, case.images
    )

    assert case.peer.num_prefix_tokens == case.model.prefix
    require_close(outputs.patches, tokens[:, case.peer.num_prefix_tokens :])
    if case.model.has_cls:
        require_close(outputs.cls, tokens[:, 0])
    require_close(outputs.logits, case.logits, tolerance=1e-5)
