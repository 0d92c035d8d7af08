"""Identities: the settings and inputs that determine a result."""

from typing import Any

import pytest

from remem_jax.storage import identity, results
from remem_jax.storage.identity import Identity

RUN: dict[str, Any] = {
    "seed": 0,
    "log_every": 10,
    "data": {"name": "folder", "path": "here", "dir": "", "threads": 2},
    "teacher": {"init": "a.npz", "mirror": "", "rho": 0.5},
}


def test_the_settings_that_describe_a_run_include_paths() -> None:
    assert identity.described(RUN) == {
        "seed": 0,
        "data": {"name": "folder", "path": "here", "dir": ""},
        "teacher": {"init": "a.npz", "mirror": "", "rho": 0.5},
    }


def test_the_settings_that_determine_results_exclude_paths() -> None:
    assert identity.deciding(RUN) == {
        "seed": 0,
        "data": {"name": "folder"},
        "teacher": {"rho": 0.5},
    }


def test_paths_are_removed_at_any_depth() -> None:
    model = {"models": {"mine": {"teacher": {"init": "a.npz", "gelu": "erf"}}}}

    assert identity.deciding(model) == {"models": {"mine": {"teacher": {"gelu": "erf"}}}}


@pytest.mark.parametrize(
    "other",
    [
        Identity({"seed": 1}, {"data": "a"}),
        Identity({"seed": 0}, {"data": "b"}),
    ],
    ids=["settings", "inputs"],
)
def test_each_field_of_an_identity_changes_its_key(other: Identity) -> None:
    assert Identity({"seed": 0}, {"data": "a"}).key != other.key


def _of_loss(loss: str, *methods: str) -> Identity:
    return Identity({"methods": list(methods), "student": {"losses": ["kd", loss]}}, {"data": "a"})


def test_a_loss_that_has_changed_changes_the_key_of_runs_with_it_alone() -> None:
    changed = _of_loss("kd_standardised", "scratch", "remem")
    others = [_of_loss("dist", "remem"), _of_loss("kd_standardised", "scratch", "alone")]

    assert changed.code == 3
    assert [other.code for other in others] == [identity.TRAINING] * 2
    # The keys of earlier versions.
    for each, same in ((changed, False), *((other, True) for other in others)):
        before = {"settings": each.settings, "inputs": each.inputs, "code": identity.TRAINING}
        assert (each.key == results.fingerprint(before)) == same


def test_a_key_does_not_depend_on_the_order_of_names() -> None:
    first = Identity({"a": 1, "b": 2}, {"data": "a", "teacher": "b"})

    assert Identity({"b": 2, "a": 1}, {"teacher": "b", "data": "a"}).key == first.key


def test_fields_present_on_one_side_are_compared_on_request() -> None:
    before, now = {"a": 1, "b": {"c": 2}}, {"a": 1, "b": {"c": 3, "d": 4}}

    assert identity.differences(before, now) == ["b.c was 2, is 3", "b.d was None, is 4"]
    assert identity.differences(before, now, counts=lambda name: False) == ["b.c was 2, is 3"]


def test_a_setting_that_earlier_versions_lack_counts_only_if_it_is_not_neutral() -> None:
    now = {**RUN, "data": {**RUN["data"], **identity.ADDED["data"]}}
    changed = {**now, "data": {**now["data"], "flip": "False"}}

    unlabelled = {**now, "data": {**now["data"], "unlabelled_share": 0.5}}

    assert identity.deciding(now) == identity.deciding(RUN) == identity.deciding(unlabelled)
    assert identity.differences(identity.deciding(RUN), identity.deciding(changed)) == [
        "data.flip was None, is False"
    ]


def test_unlabelled_images_are_identified_by_their_share_and_not_by_their_path() -> None:
    images = {**RUN["data"], "unlabelled_share": 0.5}
    here, there = ({**RUN, "data": {**images, "unlabelled": path}} for path in ("a", "b"))

    assert identity.deciding(here) == identity.deciding(there)
    assert identity.differences(identity.deciding(RUN), identity.deciding(here)) == [
        "data.unlabelled_share was None, is 0.5"
    ]
