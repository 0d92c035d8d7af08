"""The catalogue of recommended teachers, compared with timm's registry."""

from typing import Any

import pytest

from remem_jax.models.normalisation import Normalisation
from remem_jax.weights import costs, teacher_catalog
from remem_jax.weights.teacher_catalog import PUBLISHED
from tests.oracles import peers

# Millions of parameters of each size.
MILLIONS = {"small": (20, 30), "medium": (80, 100), "large": (280, 320)}
PERMISSIVE = ("apache-2.0", "mit")


@pytest.mark.parametrize("name", PUBLISHED)
def test_entries_are_as_in_the_registry_of_timm(name: str) -> None:
    teacher = PUBLISHED[name]
    tag = teacher.name.partition(".")[2]
    config = peers.timm().get_pretrained_cfg(f"{teacher.architecture}.{tag}")

    assert config.hf_hub_id == teacher.repository
    assert config.license == teacher.licence
    assert config.input_size == (3, teacher.pixels, teacher.pixels)
    assert Normalisation(config.mean, config.std) == teacher.normalisation


def network(architecture: str, classes: int = 0) -> Any:
    """Makes timm's network, without memory for its weights."""
    with peers.torch().device("meta"):
        return peers.timm().create_model(architecture, num_classes=classes)


@pytest.mark.parametrize("name", PUBLISHED)
def test_entries_have_the_patch_and_the_size_of_the_network_of_timm(name: str) -> None:
    teacher = PUBLISHED[name]
    model = network(teacher.architecture)

    assert model.patch_embed.patch_size == (teacher.patch, teacher.patch)
    assert model.embed_dim == teacher.features
    low, high = MILLIONS[teacher.size]
    assert low < sum(each.numel() for each in model.parameters()) / 1e6 < high


@pytest.mark.parametrize("name", PUBLISHED)
def test_the_costs_have_as_many_parameters_as_the_network_of_timm(name: str) -> None:
    teacher = PUBLISHED[name]
    parameters = sum(each.numel() for each in network(teacher.architecture, 1000).parameters())
    # Our [CLS] has a position even where timm's has none; it is zeros then.
    positions = teacher.features if "deit3" in name else 0

    counted = costs.COSTS[teacher.architecture][teacher.pixels]

    assert counted.parameters == parameters + positions


def test_networks_with_the_quick_gelu_are_those_of_the_registry_of_timm() -> None:
    timm = peers.timm()
    names = [name for name in timm.list_models(pretrained=True) if "quickgelu" in name]
    quick = {name: timm.get_pretrained_cfg(name).hf_hub_id for name in names}

    assert set(quick.values()) == teacher_catalog.QUICK
    for name, repository in quick.items():
        network, stated = (text.partition(".")[0] for text in (name, repository[len("timm/") :]))
        assert teacher_catalog.natively(repository, stated) == network
        assert teacher_catalog.natively(repository, network) == network
        assert teacher_catalog.natively("me/mine", stated) == stated


def test_the_sizes_are_listed_in_order() -> None:
    order = [teacher_catalog.SIZES.index(teacher.size) for teacher in PUBLISHED.values()]

    assert order == sorted(order)
    assert 12 <= len(order) <= 16
    assert teacher_catalog.EXAMPLE in PUBLISHED


def test_only_permissive_licences_allow_commercial_use_without_conditions() -> None:
    verdicts = {teacher.verdict for teacher in PUBLISHED.values()}
    plain = {teacher.licence for teacher in PUBLISHED.values() if teacher.verdict == "yes"}

    assert verdicts == {"yes", "conditions", "no", "unclear"}
    assert plain <= set(PERMISSIVE)
    for teacher in PUBLISHED.values():
        assert ("noncommercial" in teacher.licence) == (teacher.commercial is False)


def test_a_misspelt_name_is_recognised() -> None:
    expected = ["timm/vit_small_patch14_reg4_dinov2.lvd142m"]

    assert teacher_catalog.similar("vit_small_patch14_reg4_dinov2.lvd142m")[:1] == expected
    assert teacher_catalog.similar("Timm/vit_small_patch14_reg4_dinov2")[:1] == expected
    assert teacher_catalog.similar("nowhere.npz") == []
