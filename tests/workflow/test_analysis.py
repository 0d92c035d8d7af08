"""Analyses of tiny checkpoints, against results on all images at once."""

import json
import pathlib
import shutil
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from remem_jax import report
from remem_jax.analysis import activations, expertness
from remem_jax.analysis import criticality as of_neurons
from remem_jax.checks import SettingError
from remem_jax.data.sources import Subset
from remem_jax.records import Batch
from remem_jax.train import loop
from remem_jax.workflow import context
from remem_jax.workflow.analysis import criticality, inputs, pipeline
from remem_jax.workflow.analysis import expertness as of_blocks
from remem_jax.workflow.information import decoders, measurement
from tests.workflow.conftest import SIZE, Lab

SPLITS = ("train", "validation")
FIGURES = {
    "criticality",
    "decoders",
    "expertness",
    "maps",
    "neurons_model_0_block_2",
    "neurons_model_1_block_2",
    "reconstructions",
}


@pytest.fixture(scope="module")
def whole(lab: Lab, tmp_path_factory: pytest.TempPathFactory) -> tuple[context.Run, dict[str, Any]]:
    """A finished analysis of everything, and its results."""
    run = lab.run(tmp_path_factory.mktemp("whole"))
    run.config.information.steps = run.config.information.evaluations = 2
    run.config.information.info_nce.measured = False
    run.config.images.examples = 100
    run.config.expertness.layers = (0, -1)
    pipeline.run_analysis(run)
    return run, json.loads((run.workdir / "results.json").read_text())


def _refuse(*_: Any, **__: Any) -> Any:
    raise AssertionError("This was done before.")


def test_an_analysis_has_each_model_in_each_analysis(
    whole: tuple[context.Run, dict[str, Any]],
) -> None:
    _, found = whole
    analyses = found["analyses"]

    assert [one["title"] for one in found["models"]] == ["a", "b"]
    (own,) = analyses["information"]["settings"]
    for models in (own["models"], analyses["expertness"]["models"]):
        assert [one["title"] for one in models] == ["a", "b"]
    blocks = [(one["title"], one["layer"]) for one in analyses["criticality"]["blocks"]]
    assert blocks == [("a", 2), ("b", 2)]
    assert {one["images"] for one in analyses["criticality"]["blocks"]} == {100}
    assert analyses["expertness"]["images"] == 100


def test_an_analysis_writes_every_figure_as_picture_and_as_numbers(
    whole: tuple[context.Run, dict[str, Any]],
) -> None:
    run, _ = whole
    names = {path.name for path in (run.workdir / "figures").iterdir()}

    assert names == {f"{name}.{form}" for name in FIGURES for form in ("png", "svg", "csv")}
    assert (run.workdir / "report.html").read_text().count("<svg") == len(FIGURES)


def test_the_report_of_an_analysis_agrees_with_its_numbers(
    whole: tuple[context.Run, dict[str, Any]],
) -> None:
    run, found = whole
    text = (run.workdir / "report.md").read_text()
    first = found["analyses"]["information"]["settings"][0]["models"]

    for title in ("a", "b"):
        assert f"{title}: blocks whose expertness exceeds that of shuffled activations" in text
    for one in first:
        assert f"{one['excess']:.5f}" in text
    assert "Images are resized to 16 x 16 pixels; the paper uses 224 x 224." in text


def test_the_report_of_an_analysis_is_the_same_bytes_again(
    whole: tuple[context.Run, dict[str, Any]],
) -> None:
    run, _ = whole
    paths = [run.workdir / "report.html", run.workdir / "report.md"]
    paths += sorted((run.workdir / "figures").iterdir())
    before = [path.read_bytes() for path in paths]

    report.write_analysis(run.workdir)

    assert [path.read_bytes() for path in paths] == before


def test_a_finished_analysis_is_only_read(
    whole: tuple[context.Run, dict[str, Any]], monkeypatch: pytest.MonkeyPatch
) -> None:
    run, before = whole
    monkeypatch.setattr(decoders, "make", _refuse)
    monkeypatch.setattr(activations, "rows", _refuse)
    monkeypatch.setattr(of_neurons, "criticality", _refuse)
    monkeypatch.setattr(expertness, "expertness", _refuse)

    pipeline.run_analysis(run)

    found = json.loads((run.workdir / "results.json").read_text())
    assert found == before


def test_each_setting_of_decoders_is_measured_and_shown(
    whole: tuple[context.Run, dict[str, Any]],
    tmp_path: pathlib.Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    run, found = whole
    config = run.config.copy_and_resolve_references()
    config.sensitivity.second_betas, config.sensitivity.align_corners = (0.9, 0.999), (False, True)
    (before,) = found["analyses"]["information"]["settings"]
    measured = []

    def measure(run: context.Run, part: str, load: Any) -> dict[str, Any]:
        del load
        own = run.config.information
        measured.append((own.betas[1], own.align_corners, part))
        return {"seconds": 1.0, "teachers": before["models"]}

    monkeypatch.setattr(measurement, "measure", measure)
    own = pipeline._information(run._replace(config=config), inputs.load(run))
    shutil.copytree(run.workdir, tmp_path / "copy")
    changed = found | {"analyses": found["analyses"] | {"information": own}}
    (tmp_path / "copy" / "results.json").write_text(json.dumps(changed))
    report.write_analysis(tmp_path / "copy")

    assert {one[:2] for one in measured} == {(b, c) for b in (0.9, 0.999) for c in (True, False)}
    assert measured[0] == (0.999, True, before["folder"])
    assert len({part for *_, part in measured}) == 4  # Each in a folder of its own.
    settings = [(one["second_beta"], one["align_corners"]) for one in own["settings"]]
    assert settings == [one[:2] for one in measured]
    text = (tmp_path / "copy" / "report.md").read_text()
    assert "with all 4 settings" in text
    assert (tmp_path / "copy" / "figures" / "sensitivity.csv").exists()


@pytest.fixture
def run(lab: Lab, tmp_path: pathlib.Path) -> context.Run:
    """A fresh run; visualisations are looked at elsewhere."""
    made = lab.run(tmp_path)
    made.config.model_order = ("model_0",)
    made.config.criticality.visualization.steps = 0
    return made


@pytest.fixture(scope="module")
def at_once(lab: Lab, tmp_path_factory: pytest.TempPathFactory) -> Batch:
    """All images of `SPLITS` in one batch."""
    run = lab.run(tmp_path_factory.mktemp("at_once"))
    batches = [next(run.loader.evaluation(s, len(run.dataset.splits[s].rows))) for s in SPLITS]
    return jax.tree.map(lambda *some: np.concatenate(some), *jax.device_get(batches))


def _views(run: context.Run, batch: Batch) -> jax.Array:
    return jax.jit(lambda image: run.loader.evaluation_transform(jax.random.key(0), image))(
        batch.image
    )


def test_batches_have_each_image_of_the_splits_once(run: context.Run, at_once: Batch) -> None:
    found = list(inputs.batches(run, 64, examples=0))

    labels = np.concatenate([batch.label[batch.mask] for batch in jax.device_get(found)])
    np.testing.assert_array_equal(labels, at_once.label)
    assert len(labels) == inputs.count(run)


@pytest.mark.parametrize(
    ("examples", "of_images", "expected"), [(70, 0, 70), (70, 40, 40), (0, 40, 40), (1160, 0, 1160)]
)
def test_examples_count_images_over_all_splits(
    run: context.Run, examples: int, of_images: int, expected: int
) -> None:
    run.config.images.examples = of_images

    found = list(inputs.batches(run, 64, examples=examples))

    assert sum(int(np.sum(batch.mask)) for batch in found) == expected


def test_skipped_batches_count_too(run: context.Run) -> None:
    every = jax.device_get(list(inputs.batches(run, 64, examples=1200)))

    rest = jax.device_get(list(inputs.batches(run, 64, examples=1200, skip=5)))

    assert len(rest) == len(every) - 5
    for one, other in zip(every[5:], rest, strict=True):
        jax.tree.map(np.testing.assert_array_equal, one, other)


def test_expertness_is_that_of_the_energies_of_all_images(run: context.Run, at_once: Batch) -> None:
    run.config.images.examples = 90
    (subject,) = inputs.load(run)
    capture = jax.jit(activations.make_capture(subject.model, [0, 2]))
    hidden = capture(subject.variables, _views(run, at_once)[:90]).hidden

    found = of_blocks.measure(run, [subject])

    (model,) = found["models"]
    assert [one["layer"] for one in model["layers"]] == [0, 1, 2]
    for one in (model["layers"][0], model["layers"][2]):
        values = np.asarray(hidden[one["layer"]], np.float64)
        energies = np.square(values).sum(axis=1).astype(np.float32)
        shares = [expertness.expertness(energies, clusters=3, seed=s).share for s in (0, 1)]
        # An image between two clusters may change sides by what float32 rounds.
        assert one["shares"] == pytest.approx(shares, abs=2e-3)
        null = expertness.null(energies, clusters=3, seeds=(0, 1))
        assert one["null_mean"] == pytest.approx(null.mean, abs=5e-3)
        sizes = np.abs(values)
        off = sizes <= 0.1 * sizes.mean(axis=(1, 2), keepdims=True)
        assert one["sparsity"] == pytest.approx(off.mean(), abs=1e-4)
        assert (one["neurons"], one["images"]) == (SIZE.mlp, 90)


def test_a_finished_block_is_not_computed_again(
    run: context.Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    run.config.images.examples = 64
    chosen = inputs.load(run)
    before = of_blocks.measure(run, chosen)
    folder = run.workdir / "expertness" / "model_0"
    (folder / "block_1.json").unlink()
    kept = (folder / "block_0.json").read_bytes()
    computed: list[list[int]] = []
    energies = of_blocks._energies

    def record(*arguments: Any) -> Any:
        computed.append(arguments[2])
        return energies(*arguments)

    monkeypatch.setattr(of_blocks, "_energies", record)
    again = of_blocks.measure(run, chosen)

    assert computed == [[1]]
    assert (folder / "block_0.json").read_bytes() == kept
    first, second = (found["models"][0]["layers"][1] for found in (before, again))
    assert second["shares"] == pytest.approx(first["shares"])


def test_more_clusters_than_images_are_rejected(run: context.Run) -> None:
    run.config.images.examples, run.config.expertness.clusters = 20, 21

    with pytest.raises(SettingError, match=r"expertness\.clusters must be at most 20, the images"):
        of_blocks.measure(run, inputs.load(run))


def test_the_default_number_of_clusters_is_that_of_classes(run: context.Run) -> None:
    run.config.images.examples, run.config.expertness.clusters = 9, 0

    with pytest.raises(SettingError, match=r"at most 9, the images of config\.images; got 10"):
        of_blocks.measure(run, inputs.load(run))


@pytest.mark.parametrize(("layer", "expected"), [(0, 0), (2, 2), (-1, 2), (-3, 0)])
def test_a_block_below_0_is_counted_from_the_top(
    run: context.Run, layer: int, expected: int
) -> None:
    (subject,) = inputs.load(run)

    assert subject.block(layer) == expected


@pytest.mark.parametrize(("layer", "expected"), [(0, 0), (1, 1), (-1, 1), (-2, 0)])
def test_the_top_block_is_the_last_that_has_an_mlp(
    run: context.Run, layer: int, expected: int
) -> None:
    run.config.models.model_0.teacher.pruned_mlp = 1
    (subject,) = inputs.load(run)

    assert subject.block(layer) == expected


@pytest.mark.parametrize("layer", [3, -4])
def test_a_nonexistent_block_is_rejected(run: context.Run, layer: int) -> None:
    run.config.expertness.layers = (layer,)

    with pytest.raises(SettingError, match=rf"a has 3 blocks .* got {layer}:"):
        of_blocks.measure(run, inputs.load(run))


@pytest.fixture(scope="module")
def changes(lab: Lab, at_once: Batch, tmp_path_factory: pytest.TempPathFactory) -> np.ndarray:
    """The influence of each neuron of the top block on each image, in one batch."""
    run = lab.run(tmp_path_factory.mktemp("changes"))
    subject = inputs.load(run)[0]
    influence = of_neurons.make_influence(
        subject.model, run.loader.evaluation_transform, layer=2, chunk=SIZE.mlp
    )
    return np.asarray(jax.jit(influence)(subject.variables, at_once))


def _require_criticality(run: context.Run, found: dict[str, Any], changes: np.ndarray) -> None:
    """What was found and kept is the top of these influences."""
    (block,) = found["blocks"]
    with np.load(run.workdir / block["folder"] / "neurons.npz") as kept:
        values, places = kept["value"], kept["example"]
    ranked = -np.sort(-changes, axis=0)[: len(values)]
    np.testing.assert_allclose(values, ranked, rtol=1e-4, atol=1e-6)
    np.testing.assert_allclose(
        np.take_along_axis(changes, places, axis=0), values, rtol=1e-4, atol=1e-6
    )
    assert block["images"] == len(changes)
    shown = [one["criticality"] for one in block["neurons"]]
    assert shown == pytest.approx(sorted(changes.max(axis=0))[: -len(shown) - 1 : -1], rel=1e-4)
    for one in block["neurons"]:
        assert one["criticality"] == pytest.approx(changes[:, one["neuron"]].max(), rel=1e-4)


@pytest.mark.parametrize("examples", [0, 1200])
def test_criticality_is_that_of_all_images_at_once(
    run: context.Run, changes: np.ndarray, examples: int
) -> None:
    run.config.criticality.examples = (examples,)

    found = criticality.measure(run, inputs.load(run))

    _require_criticality(run, found, changes[: examples or None])


def _stopping_after(calls: int) -> Callable[[], bool]:
    left = iter(range(calls))
    return lambda: next(left, None) is None


@pytest.mark.parametrize("stopped", [True, False])
def test_criticality_resumes_where_it_was_stopped(
    run: context.Run, changes: np.ndarray, monkeypatch: pytest.MonkeyPatch, *, stopped: bool
) -> None:
    seen: list[int] = []
    whole = of_neurons.add

    def add(before: Any, *arguments: Any) -> Any:
        seen.append(before.examples)
        if not stopped and len(seen) == 8:
            raise KeyboardInterrupt
        return whole(before, *arguments)

    monkeypatch.setattr(of_neurons, "add", add)
    if stopped:
        error, interrupted = loop.StoppedError, run._replace(stopping=_stopping_after(13))
    else:
        monkeypatch.setattr(criticality, "_SAVE_SECONDS", 0.0)
        error, interrupted = KeyboardInterrupt, run
    chosen = inputs.load(run)
    with pytest.raises(error):
        criticality.measure(interrupted, chosen)
    before = list(seen)

    found = criticality.measure(run, chosen)

    assert 5 < len(before) < 10
    again = seen[len(before) :]
    assert again[0] == (before[-1] + 64 if stopped else before[-1])
    # Each batch was seen; the last one of each split is not full.
    assert len(set(seen)) == sum(-(-len(run.dataset.splits[s].rows) // 64) for s in SPLITS)
    _require_criticality(run, found, changes)


def _of_place(run: context.Run, place: int) -> tuple[Subset, int]:
    for split in SPLITS:
        part = run.dataset.splits[split]
        if place < len(part.rows):
            return part, int(part.rows[place])
        place -= len(part.rows)
    raise IndexError(place)


def test_the_images_that_are_shown_are_those_of_the_data_set(run: context.Run) -> None:
    places = {0, 63, 64, 1149, 1150, 1436}

    found = inputs.images(run, places)

    assert found.keys() == places
    for place, image in found.items():
        part, row = _of_place(run, place)
        example = part.split.read(row)
        transform = run.loader.evaluation_transform(
            jax.random.key(0), jnp.asarray(example.image)[None]
        )
        np.testing.assert_allclose(image.pixels, (np.asarray(transform[0]) + 1) / 2, atol=1e-6)
        assert image.title == run.dataset.classes[example.label]


def test_a_critical_neuron_is_shown_with_the_images_that_it_influences(run: context.Run) -> None:
    run.config.images.examples, run.config.criticality.examples = 80, (100,)

    (block,) = criticality.measure(run, inputs.load(run))["blocks"]

    assert block["images"] == 80  # Of those of config.images, at most.
    with np.load(run.workdir / block["folder"] / "pictures.npz") as arrays:
        shown = {name: arrays[name] for name in arrays}
    named = {image["place"]: image["class"] for one in block["neurons"] for image in one["images"]}
    assert shown.keys() == {str(place) for place in named}
    expected = inputs.images(run, set(named))
    for place, title in named.items():
        np.testing.assert_allclose(shown[str(place)], expected[place].pixels, atol=1e-3)
        assert title == expected[place].title


def test_the_top_block_costs_a_forward_pass_and_lower_ones_more(run: context.Run) -> None:
    (subject,) = inputs.load(run)

    def cost(layer: int) -> float:
        influence = of_neurons.make_influence(
            subject.model, run.loader.evaluation_transform, layer=layer, chunk=8
        )
        return criticality._cost(run, subject, influence)["forward_passes"]

    top, middle, low = (cost(layer) for layer in (2, 1, 0))

    assert 0.9 < top < 1.5
    # Above the middle one block of three runs for each neuron, above the lowest two.
    assert SIZE.mlp / 4 < middle < low < SIZE.mlp
    assert (low - 1) / (middle - 1) == pytest.approx(2, rel=0.25)
