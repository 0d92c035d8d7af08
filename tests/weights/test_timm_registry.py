"""timm's registry: which of its ViTs are read, and that what their names say is what timm has."""

import functools
import warnings
from collections.abc import Mapping
from typing import Any, NamedTuple

import numpy as np
import pytest

from remem_jax.checks import SettingError
from remem_jax.models.rotary import Rotary
from remem_jax.weights import augreg, timm_architectures, timm_names
from tests.oracles import peers

MODULES = ("vision_transformer", "eva", "deit", "vision_transformer_hybrid", "beit")
# The networks that are not read, by the words of the message.
REFUSED = {
    "distilled DeiT": 4,
    "parallel sub-blocks": 7,
    "relative positions": 7,
    "differential attention": 2,
    "norms after its sub-blocks": 2,
    "LayerScale for the attention alone": 5,
    "no parameter for patch_embed.backbone": 5,  # Hybrids with other stems than AugReg's.
}


class Network(NamedTuple):
    """A network of timm, and what is read of it.

    Attributes:
        module: The network, with fewer blocks, and without memory for its parameters.
        checkpoint: What is read, without arrays; None if it is refused.
        refusal: The message that refuses it.
        shapes: Shapes of its state dict, and the same from our arrays; None for a network whose
            parameters have the names of an earlier one, because sizes change none of them.
    """

    module: Any
    checkpoint: augreg.Checkpoint | None
    refusal: str
    shapes: tuple[Mapping[str, Any], Mapping[str, Any]] | None = None


def names() -> list[str]:
    """Returns the names of all networks of timm's modules with ViTs."""
    return sorted({name for module in MODULES for name in peers.timm().list_models(module=module)})


def make(name: str) -> Any:
    with peers.torch().device("meta"), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            return peers.timm().create_model(name, depth=1)
        except AssertionError:  # Some have a list with an entry for each block.
            return peers.timm().create_model(name)


def read(name: str) -> Network:
    """Reads a network as if it came from a file with its name."""
    module = make(name)
    theirs = {n: tuple(p.shape) for n, p in module.state_dict().items()}
    arrays = {n: np.broadcast_to(np.int8(0), shape) for n, shape in theirs.items()}
    try:
        facts = timm_architectures.facts(name)
        ours = timm_names.from_timm(arrays, heads=facts.heads, pool_heads=facts.pool_heads)
        found = augreg.describe(ours, form="timm", source=name, facts=facts)
        shapes = None
        if frozenset(theirs) not in _seen:
            augreg.require_whole(found, image_size=found.image_size)
            back = timm_names.to_timm(ours, layout=timm_names.layout_of(arrays))
            shapes = theirs, {n: array.shape for n, array in back.items()}
            _seen.add(frozenset(theirs))
    except SettingError as error:
        return Network(module, None, str(error))
    return Network(module, found._replace(arrays={}), "", shapes)


_seen: set[frozenset[str]] = set()  # Names of the parameters of the networks that were read.


@functools.cache
def networks() -> Mapping[str, Network]:
    return {name: read(name) for name in names()}


def rotary_of(module: Any) -> Rotary | None:
    """Returns timm's rotary positions as ours."""
    rope = getattr(module, "rope", None)
    if rope is None:
        return None
    kinds = {"RotaryEmbeddingDinoV3": "centred", "RotaryEmbeddingCat": "index"}
    kind = kinds.get(type(rope).__name__, "mixed")
    reference = getattr(rope, "ref_feat_shape", None) or (0, 0)
    return Rotary(
        kind,
        float(rope.temperature),
        bool(getattr(rope, "rotate_half", False)),
        rope.grid_indexing == "xy",
        float(getattr(rope, "grid_offset", 0.0)),
        reference[0],
    )


def test_the_vits_that_are_not_read_are_counted() -> None:
    refused = {name: each.refusal for name, each in networks().items() if each.refusal}
    counts = {reason: sum(reason in text for text in refused.values()) for reason in REFUSED}
    others = {n: t for n, t in refused.items() if not any(reason in t for reason in REFUSED)}
    assert not others
    assert counts == REFUSED
    assert len(networks()) - len(refused) >= 233


def theirs(kind: str, network: Network) -> Any:
    """Returns a fact on one of timm's networks in our words."""
    block, pool = network.module.blocks[0], network.module.global_pool
    act = type(block.mlp.act).__name__
    return {
        "heads": block.attn.num_heads,
        "gelu": {"GELUTanh": "tanh", "QuickGELU": "quick"}.get(act, "erf"),
        "epsilon": block.norm1.eps,
        "pool": {"token": "cls", "avg": "gap", "map": "map"}[pool],
        "rope": rotary_of(network.module),
    }[kind]


@pytest.mark.parametrize("kind", ["heads", "gelu", "epsilon", "pool", "rope"])
def test_what_a_name_says_is_what_timm_has(kind: str) -> None:
    differ = {}
    for name, network in networks().items():
        if network.checkpoint is None:
            continue
        model = network.checkpoint.make(classes=1)
        ours = model.size.heads if kind == "heads" else getattr(model, kind)
        if ours != theirs(kind, network):
            differ[name] = (ours, theirs(kind, network))
    assert not differ


def test_no_network_with_other_blocks_is_read() -> None:
    read = [each.module for each in networks().values() if each.checkpoint]
    assert {type(module.blocks[0]).__name__ for module in read} == {"Block", "EvaBlock"}
    assert {type(module).__name__ for module in read} == {"VisionTransformer", "Eva"}


def test_timms_names_come_back() -> None:
    shapes = {name: each.shapes for name, each in networks().items() if each.shapes}
    assert len(shapes) > 20
    for name, (theirs, back) in shapes.items():
        assert dict(back) == dict(theirs), name
