"""Analyses of tiny checkpoints agree with results on all images at once."""

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
from remem_jax.analysis import criticality as neuron_criticality
from remem_jax.checks import SettingError
from remem_jax.data.sources import Subset
from remem_jax.records import Batch
from remem_jax.train import loop
from remem_jax.workflow import context
from remem_jax.workflow.analysis import criticality, inputs, pipeline
from remem_jax.workflow.analysis import expertness as block_expertness
from remem_jax.workflow.information import decoders, measurement
from tests.workflow.conftest import SIZE, Shared

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
def finished(
    shared: Shared, tmp_path_factory: pytest.TempPathFactory
) -> tuple[context.Run, dict[str, Any]]:
    """A finished run of all analyses, and its results."""
    run = shared.run(tmp_path_factory.mktemp("finished"))
    run.config.information.steps = run.config.information.evaluations = 2
    run.config.information.info_nce.measured = False
    run.config.images.examples = 100
    run.config.expertness.layers = (0, -1)
    pipeline.run_analysis(run)
    return run, json.loads((run.workdir / "results.json").read_text())


def _refuse(*_: Any, **__: Any) -> Any:
    raise AssertionError("It was finished before.")


def test_each_analysis_includes_each_model(
    finished: tuple[context.Run, dict[str, Any]],
) -> None:
    _, results = finished
    analyses = results["analyses"]

    assert [model["title"] for model in results["models"]] == ["a", "b"]
    (setting,) = analyses["information"]["settings"]
    for models in (setting["models"], analyses["expertness"]["models"]):
        assert [model["title"] for model in models] == ["a", "b"]
    blocks = [(block["title"], block["layer"]) for block in analyses["criticality"]["blocks"]]
    assert blocks == [("a", 2), ("b", 2)]
    assert {block["images"] for block in analyses["criticality"]["blocks"]} == {100}
    assert analyses["expertness"]["images"] == 100


def test_every_figure_is_written_as_png_svg_and_csv(
    finished: tuple[context.Run, dict[str, Any]],
) -> None:
    run, _ = finished
    names = {path.name for path in (run.workdir / "figures").iterdir()}

    assert names == {f"{name}.{form}" for name in FIGURES for form in ("png", "svg", "csv")}
    assert (run.workdir / "report.html").read_text().count("<svg") == len(FIGURES)


def test_the_report_of_an_analysis_agrees_with_its_results(
    finished: tuple[context.Run, dict[str, Any]],
) -> None:
    run, results = finished
    text = (run.workdir / "report.md").read_text()
    models = results["analyses"]["information"]["settings"][0]["models"]

    for title in ("a", "b"):
        assert f"{title}: blocks whose expertness exceeds that of shuffled activations" in text
    for model in models:
        assert f"{model['excess']:.5f}" in text
    assert "Images are resized to 16 x 16 pixels; the paper uses 224 x 224." in text


def test_writing_the_report_again_gives_the_same_bytes(
    finished: tuple[context.Run, dict[str, Any]],
) -> None:
    run, _ = finished
    paths = [run.workdir / "report.html", run.workdir / "report.md"]
    paths += sorted((run.workdir / "figures").iterdir())
    before = [path.read_bytes() for path in paths]

    report.write_analysis(run.workdir)

    assert [path.read_bytes() for path in paths] == before


def test_a_finished_analysis_is_not_repeated(
    finished: tuple[context.Run, dict[str, Any]], monkeypatch: pytest.MonkeyPatch
) -> None:
    run, before = finished
    monkeypatch.setattr(decoders, "make", _refuse)
    monkeypatch.setattr(activations, "rows", _refuse)
    monkeypatch.setattr(neuron_criticality, "criticality", _refuse)
    monkeypatch.setattr(expertness, "expertness", _refuse)

    pipeline.run_analysis(run)

    assert json.loads((run.workdir / "results.json").read_text()) == before


def test_each_decoder_configuration_is_measured_and_reported(
    finished: tuple[context.Run, dict[str, Any]],
    tmp_path: pathlib.Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    run, results = finished
    config = run.config.copy_and_resolve_references()
    config.sensitivity.second_betas, config.sensitivity.align_corners = (0.9, 0.999), (False, True)
    (before,) = results["analyses"]["information"]["settings"]
    measured = []

    def measure(run: context.Run, stage: str, load: Any) -> dict[str, Any]:
        del load
        setting = run.config.information
        measured.append((setting.betas[1], setting.align_corners, stage))
        return {"seconds": 1.0, "teachers": before["models"]}

    monkeypatch.setattr(measurement, "measure", measure)
    information = pipeline._information(run._replace(config=config), inputs.load(run))
    shutil.copytree(run.workdir, tmp_path / "copy")
    changed = results | {"analyses": results["analyses"] | {"information": information}}
    (tmp_path / "copy" / "results.json").write_text(json.dumps(changed))
    report.write_analysis(tmp_path / "copy")

    assert {setting[:2] for setting in measured} == {
        (b, c) for b in (0.9, 0.999) for c in (True, False)
    }
    assert measured[0] == (0.999, True, before["folder"])
    assert len({stage for *_, stage in measured}) == 4  # Each has its own folder.
    settings = [(s["second_beta"], s["align_corners"]) for s in information["settings"]]
    assert settings == [setting[:2] for setting in measured]
    text = (tmp_path / "copy" / "report.md").read_text()
    assert "with all 4 settings" in text
    assert (tmp_path / "copy" / "figures" / "sensitivity.csv").exists()


@pytest.fixture
def run(shared: Shared, tmp_path: pathlib.Path) -> context.Run:
    """A new run without visualisations, which have their own tests."""
    made = shared.run(tmp_path)
    made.config.model_order = ("model_0",)
    made.config.criticality.visualization.steps = 0
    return made


@pytest.fixture(scope="module")
def at_once(shared: Shared, tmp_path_factory: pytest.TempPathFactory) -> Batch:
    """All images of `SPLITS` in one batch."""
    run = shared.run(tmp_path_factory.mktemp("at_once"))
    batches = [next(run.loader.evaluation(s, len(run.dataset.splits[s].rows))) for s in SPLITS]
    return jax.tree.map(lambda *arrays: np.concatenate(arrays), *jax.device_get(batches))


def _inputs(run: context.Run, batch: Batch) -> jax.Array:
    """Returns the model inputs of a batch."""
    return jax.jit(lambda image: run.loader.evaluation_transform(jax.random.key(0), image))(
        batch.image
    )


def test_batches_contain_each_image_of_the_splits_once(run: context.Run, at_once: Batch) -> None:
    batches = list(inputs.batches(run, 64, examples=0))

    labels = np.concatenate([batch.label[batch.mask] for batch in jax.device_get(batches)])
    np.testing.assert_array_equal(labels, at_once.label)
    assert len(labels) == inputs.count(run)


@pytest.mark.parametrize(
    ("examples", "limit", "expected"), [(70, 0, 70), (70, 40, 40), (0, 40, 40), (1160, 0, 1160)]
)
def test_examples_count_images_over_all_splits(
    run: context.Run, examples: int, limit: int, expected: int
) -> None:
    run.config.images.examples = limit

    batches = list(inputs.batches(run, 64, examples=examples))

    assert sum(int(np.sum(batch.mask)) for batch in batches) == expected


def test_skipped_batches_count_towards_the_examples(run: context.Run) -> None:
    every = jax.device_get(list(inputs.batches(run, 64, examples=1200)))

    rest = jax.device_get(list(inputs.batches(run, 64, examples=1200, skip=5)))

    assert len(rest) == len(every) - 5
    for expected, actual in zip(every[5:], rest, strict=True):
        jax.tree.map(np.testing.assert_array_equal, actual, expected)


def test_expertness_is_computed_from_the_energies_of_all_images(
    run: context.Run, at_once: Batch
) -> None:
    run.config.images.examples = 90
    (subject,) = inputs.load(run)
    capture = jax.jit(activations.make_capture(subject.model, [0, 2]))
    hidden = capture(subject.variables, _inputs(run, at_once)[:90]).hidden

    (model,) = block_expertness.measure(run, [subject])["models"]

    assert [layer["layer"] for layer in model["layers"]] == [0, 1, 2]
    for layer in (model["layers"][0], model["layers"][2]):
        values = np.asarray(hidden[layer["layer"]], np.float64)
        energies = np.square(values).sum(axis=1).astype(np.float32)
        shares = [expertness.expertness(energies, clusters=3, seed=s).share for s in (0, 1)]
        # Float32 rounding may move an image between two clusters.
        assert layer["shares"] == pytest.approx(shares, abs=2e-3)
        null = expertness.null(energies, clusters=3, seeds=(0, 1))
        assert layer["null_mean"] == pytest.approx(null.mean, abs=5e-3)
        sizes = np.abs(values)
        off = sizes <= 0.1 * sizes.mean(axis=(1, 2), keepdims=True)
        assert layer["sparsity"] == pytest.approx(off.mean(), abs=1e-4)
        assert (layer["neurons"], layer["images"]) == (SIZE.mlp, 90)


def test_a_finished_block_is_not_computed_again(
    run: context.Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    run.config.images.examples = 64
    chosen = inputs.load(run)
    before = block_expertness.measure(run, chosen)
    folder = run.workdir / "expertness" / "model_0"
    (folder / "block_1.json").unlink()
    kept = (folder / "block_0.json").read_bytes()
    computed: list[list[int]] = []
    energies = block_expertness._energies

    def record(*arguments: Any) -> Any:
        computed.append(arguments[2])
        return energies(*arguments)

    monkeypatch.setattr(block_expertness, "_energies", record)
    again = block_expertness.measure(run, chosen)

    assert computed == [[1]]
    assert (folder / "block_0.json").read_bytes() == kept
    first, second = (record["models"][0]["layers"][1] for record in (before, again))
    assert second["shares"] == pytest.approx(first["shares"])


def test_more_clusters_than_images_are_rejected(run: context.Run) -> None:
    run.config.images.examples, run.config.expertness.clusters = 20, 21

    with pytest.raises(SettingError, match=r"expertness\.clusters must be at most 20, the images"):
        block_expertness.measure(run, inputs.load(run))


def test_the_default_number_of_clusters_is_the_number_of_classes(run: context.Run) -> None:
    run.config.images.examples, run.config.expertness.clusters = 9, 0

    with pytest.raises(SettingError, match=r"at most 9, the images of config\.images; got 10"):
        block_expertness.measure(run, inputs.load(run))


@pytest.mark.parametrize(("layer", "expected"), [(0, 0), (2, 2), (-1, 2), (-3, 0)])
def test_a_negative_block_counts_from_the_last(run: context.Run, layer: int, expected: int) -> None:
    (subject,) = inputs.load(run)

    assert subject.block(layer) == expected


@pytest.mark.parametrize(("layer", "expected"), [(0, 0), (1, 1), (-1, 1), (-2, 0)])
def test_the_last_block_is_the_last_with_an_mlp(
    run: context.Run, layer: int, expected: int
) -> None:
    run.config.models.model_0.teacher.pruned_mlp = 1
    (subject,) = inputs.load(run)

    assert subject.block(layer) == expected


@pytest.mark.parametrize("layer", [3, -4])
def test_a_nonexistent_block_is_rejected(run: context.Run, layer: int) -> None:
    run.config.expertness.layers = (layer,)

    with pytest.raises(SettingError, match=rf"a has 3 blocks .* got {layer}:"):
        block_expertness.measure(run, inputs.load(run))


@pytest.fixture(scope="module")
def changes(shared: Shared, at_once: Batch, tmp_path_factory: pytest.TempPathFactory) -> np.ndarray:
    """The influence of each neuron of the last block on each image, in one batch."""
    run = shared.run(tmp_path_factory.mktemp("changes"))
    subject = inputs.load(run)[0]
    influence = neuron_criticality.make_influence(
        subject.model, run.loader.evaluation_transform, layer=2, chunk=SIZE.mlp
    )
    return np.asarray(jax.jit(influence)(subject.variables, at_once))


def _require_criticality(run: context.Run, record: dict[str, Any], changes: np.ndarray) -> None:
    """Checks that the record and its file contain the largest of these influences."""
    (block,) = record["blocks"]
    with np.load(run.workdir / block["folder"] / "neurons.npz") as kept:
        values, places = kept["value"], kept["example"]
    ranked = -np.sort(-changes, axis=0)[: len(values)]
    np.testing.assert_allclose(values, ranked, rtol=1e-4, atol=1e-6)
    np.testing.assert_allclose(
        np.take_along_axis(changes, places, axis=0), values, rtol=1e-4, atol=1e-6
    )
    assert block["images"] == len(changes)
    reported = [neuron["criticality"] for neuron in block["neurons"]]
    largest = sorted(changes.max(axis=0))[: -len(reported) - 1 : -1]
    assert reported == pytest.approx(largest, rel=1e-4)
    for neuron in block["neurons"]:
        expected = changes[:, neuron["neuron"]].max()
        assert neuron["criticality"] == pytest.approx(expected, rel=1e-4)


@pytest.mark.parametrize("examples", [0, 1200])
def test_criticality_equals_that_of_all_images_at_once(
    run: context.Run, changes: np.ndarray, examples: int
) -> None:
    run.config.criticality.examples = (examples,)

    record = criticality.measure(run, inputs.load(run))

    _require_criticality(run, record, changes[: examples or None])


def _stopping_after(calls: int) -> Callable[[], bool]:
    left = iter(range(calls))
    return lambda: next(left, None) is None


@pytest.mark.parametrize("stopped", [True, False])
def test_stopped_criticality_resumes(
    run: context.Run, changes: np.ndarray, monkeypatch: pytest.MonkeyPatch, *, stopped: bool
) -> None:
    counts: list[int] = []
    original = neuron_criticality.add

    def add(before: Any, *arguments: Any) -> Any:
        counts.append(before.examples)
        if not stopped and len(counts) == 8:
            raise KeyboardInterrupt
        return original(before, *arguments)

    monkeypatch.setattr(neuron_criticality, "add", add)
    if stopped:
        error, interrupted = loop.StoppedError, run._replace(stopping=_stopping_after(13))
    else:
        monkeypatch.setattr(criticality, "_SAVE_SECONDS", 0.0)
        error, interrupted = KeyboardInterrupt, run
    chosen = inputs.load(run)
    with pytest.raises(error):
        criticality.measure(interrupted, chosen)
    before = list(counts)

    record = criticality.measure(run, chosen)

    assert 5 < len(before) < 10
    again = counts[len(before) :]
    assert again[0] == (before[-1] + 64 if stopped else before[-1])
    # Each batch was used; the last one of each split is not full.
    assert len(set(counts)) == sum(-(-len(run.dataset.splits[s].rows) // 64) for s in SPLITS)
    _require_criticality(run, record, changes)


def _locate(run: context.Run, place: int) -> tuple[Subset, int]:
    """Returns the subset and the row of an image, by its place among all splits."""
    for split in SPLITS:
        subset = run.dataset.splits[split]
        if place < len(subset.rows):
            return subset, int(subset.rows[place])
        place -= len(subset.rows)
    raise IndexError(place)


def test_the_shown_images_come_from_the_data_set(run: context.Run) -> None:
    places = {0, 63, 64, 1149, 1150, 1436}

    images = inputs.images(run, places)

    assert images.keys() == places
    for place, image in images.items():
        subset, row = _locate(run, place)
        example = subset.split.read(row)
        transformed = run.loader.evaluation_transform(
            jax.random.key(0), jnp.asarray(example.image)[None]
        )
        np.testing.assert_allclose(image.pixels, (np.asarray(transformed[0]) + 1) / 2, atol=1e-6)
        assert image.title == run.dataset.classes[example.label]


def test_a_critical_neuron_is_shown_with_its_images(run: context.Run) -> None:
    run.config.images.examples, run.config.criticality.examples = 80, (100,)

    (block,) = criticality.measure(run, inputs.load(run))["blocks"]

    assert block["images"] == 80  # The limit of config.images applies.
    with np.load(run.workdir / block["folder"] / "pictures.npz") as arrays:
        shown = {name: arrays[name] for name in arrays}
    listed = [image for neuron in block["neurons"] for image in neuron["images"]]
    classes = {image["place"]: image["class"] for image in listed}
    assert shown.keys() == {str(place) for place in classes}
    expected = inputs.images(run, set(classes))
    for place, title in classes.items():
        np.testing.assert_allclose(shown[str(place)], expected[place].pixels, atol=1e-3)
        assert title == expected[place].title


def test_the_last_block_costs_a_forward_pass_and_earlier_ones_more(run: context.Run) -> None:
    (subject,) = inputs.load(run)

    def cost(layer: int) -> float:
        influence = neuron_criticality.make_influence(
            subject.model, run.loader.evaluation_transform, layer=layer, chunk=8
        )
        return criticality._cost(run, subject, influence)["forward_passes"]

    last, middle, first = (cost(layer) for layer in (2, 1, 0))

    assert 0.9 < last < 1.5
    # After the middle block, one of three blocks runs per neuron; after the first, two do.
    assert SIZE.mlp / 4 < middle < first < SIZE.mlp
    assert (first - 1) / (middle - 1) == pytest.approx(2, rel=0.25)
