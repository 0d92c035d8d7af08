"""Writes the report of an analysis: its figures, the numbers behind them, and its settings."""

import pathlib
from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np

from remem_jax import checks
from remem_jax.report import ANALYSIS_FORMAT, rendering, tables
from remem_jax.report.analysis import rankings
from remem_jax.report.figures import drawing, expertness, neurons, reconstructions
from remem_jax.storage import files, results

Analysis = Mapping[str, Any]


def write(directory: pathlib.Path) -> None:
    """Writes report.md, report.html and figures/; see `report.write_analysis`."""
    path = directory / "results.json"
    analysis = results.read(path)
    if analysis is None:
        raise checks.SettingError(f"{path} does not exist: the analysis has not finished.")
    checks.one_of(f"The format of {path}", analysis.get("format"), (ANALYSIS_FORMAT,))
    plots = [
        drawing.save(
            directory / drawing.FIGURES,
            figure._replace(caption=f"{figure.caption} {data_caption(analysis)}"),
        )
        for figure in _drawings(directory, analysis)
    ]
    content = {
        "title": analysis["title"],
        "summary": summary(analysis),
        "notes": list(_notes(analysis)),
        "plots": plots,
        "tables": [
            *_tables(analysis),
            _models(analysis),
            tables.settings(analysis),
            _versions(analysis),
        ],
        "differs": _differs(analysis),
    }
    files.write_text(directory / "report.html", rendering.html("analysis/page.html.jinja", content))
    files.write_text(directory / "report.md", rendering.markdown("analysis/page.md.jinja", content))


def summary(analysis: Analysis) -> str:
    """Describes the models and the data in a sentence."""
    data, names = analysis["data"], [model["title"] for model in analysis["models"]]
    size = data["image_size"]
    return (
        f"Models: {', '.join(names)}, without further training. Data: {data['title']} "
        f"({data['classes']:,} classes), with images resized to {size} x {size} pixels."
    )


def data_caption(analysis: Analysis) -> str:
    """Describes the data, for the caption of a figure."""
    data = analysis["data"]
    return f"Data: {data['title']}, resized to {data['image_size']} x {data['image_size']} pixels."


def _drawings(directory: pathlib.Path, analysis: Analysis) -> Iterator[drawing.Drawing]:
    analyses = analysis["analyses"]
    figures: list[drawing.Drawing | None] = []
    if "information" in analyses:
        figures += _information(directory, analyses["information"]["settings"])
    if "expertness" in analyses:
        measured = analyses["expertness"]
        figures.append(
            expertness.expertness(
                measured["models"], clusters=measured["clusters"], threshold=measured["threshold"]
            )
        )
    if "criticality" in analyses:
        figures += _criticality(directory, analyses["criticality"]["blocks"])
    yield from (figure for figure in figures if figure is not None)


def _information(
    directory: pathlib.Path, settings: list[dict[str, Any]]
) -> Iterator[drawing.Drawing | None]:
    first = settings[0]
    if len(settings) > 1:
        rows = [
            {"label": rankings.label(setting), "models": setting["models"]} for setting in settings
        ]
        yield reconstructions.sensitivity(
            rows, name="sensitivity", title="Information with other settings of the decoders"
        )
    yield reconstructions.curves(
        first["models"], name="decoders", title="Learning curves of the decoders"
    )
    path = directory / first["folder"] / "pictures.npz"
    if not path.exists():
        return
    with np.load(path, allow_pickle=False) as arrays:
        pixels = [
            {"title": setting["title"], "pixels": arrays[f"pixel_excess_{index}"]}
            for index, setting in enumerate(first["models"])
        ]
        yield reconstructions.maps(
            pixels, name="maps", title="Reconstruction loss by position in the image"
        )
        yield reconstructions.pictures(
            [_row(arrays, index, first["models"]) for index in range(len(arrays["images"]))],
            name="reconstructions",
            title="Images and their reconstructions",
        )


def _row(arrays: Any, index: int, models: list[dict[str, Any]]) -> dict[str, Any]:
    def of_model(model_index: int, title: str) -> dict[str, Any]:
        loss = float(arrays[f"image_losses_{model_index}"][index])
        return {
            "title": title,
            "reconstruction": arrays[f"reconstructions_{model_index}"][index],
            "loss": loss,
            "excess": loss - float(arrays[f"image_floors_{model_index}"][index]),
        }

    return {
        "image": arrays["images"][index],
        "class": f"image {index + 1}",
        "models": [
            of_model(model_index, model["title"]) for model_index, model in enumerate(models)
        ],
    }


def _criticality(
    directory: pathlib.Path, blocks: list[dict[str, Any]]
) -> Iterator[drawing.Drawing | None]:
    values = []
    for block in blocks:
        with np.load(directory / block["folder"] / "neurons.npz", allow_pickle=False) as arrays:
            values.append(
                {"model": block["title"], "layer": block["layer"], "values": arrays["value"][0]}
            )
    yield neurons.criticality(values, name="criticality", title="Criticality of all neurons")
    for block in blocks:
        with np.load(directory / block["folder"] / "pictures.npz", allow_pickle=False) as arrays:
            yield _grid(block, arrays)


def _grid(block: Mapping[str, Any], arrays: Any) -> drawing.Drawing | None:
    pictures = arrays.get("visualisations")
    rows = [
        {
            **neuron,
            "visualisations": [] if pictures is None else list(pictures[number]),
            "images": [
                {**image, "image": arrays[str(image["place"])]} for image in neuron["images"]
            ],
        }
        for number, neuron in enumerate(block["neurons"])
    ]
    title = f"The most critical neurons of block {block['layer'] + 1}, {block['title']}"
    return neurons.grid(
        rows,
        name=f"neurons_{block['name']}_block_{block['layer']}",
        title=title,
        caption=f"Measured on {block['images']:,} images.",
    )


def _notes(analysis: Analysis) -> Iterator[str]:
    analyses = analysis["analyses"]
    if "information" in analyses:
        yield from rankings.sentences(analyses["information"]["settings"])
    for model in analyses.get("expertness", {}).get("models", ()):
        above = [
            str(layer["layer"] + 1)
            for layer in model["layers"]
            if min(layer["shares"]) > layer["null_mean"] + 2 * layer["null_deviation"]
        ]
        yield (
            f"{model['title']}: blocks whose expertness exceeds that of shuffled activations by "
            f"more than two standard deviations, with every seed: {', '.join(above) or 'none'}."
        )


def _tables(analysis: Analysis) -> Iterator[tables.Table]:
    analyses = analysis["analyses"]
    if "information" in analyses:
        yield rankings.table(analyses["information"]["settings"])
    if "expertness" in analyses:
        yield _expertness_table(analyses["expertness"])
    if "criticality" in analyses:
        yield _criticality_table(analyses["criticality"]["blocks"])


def _expertness_table(measured: Mapping[str, Any]) -> tables.Table:
    rows = [
        (
            model["title"],
            str(layer["layer"] + 1),
            tables.decimals(float(np.mean(layer["shares"])), 4),
            tables.decimals(min(layer["shares"]), 4),
            tables.decimals(max(layer["shares"]), 4),
            tables.decimals(layer["null_mean"], 4),
            tables.decimals(layer["null_deviation"], 4),
            tables.decimals(layer["sparsity"], 4),
            tables.decimals(layer["seconds"], 1),
        )
        for model in measured["models"]
        for layer in model["layers"]
    ]
    seconds = "; ".join(
        f"{model['title']} {model['layers'][0]['seconds_of_all_layers']:.1f}"
        for model in measured["models"]
    )
    return tables.Table(
        "Expertness",
        (
            "Model",
            "Block",
            "Expertness",
            "Minimum",
            "Maximum",
            "Shuffled",
            "± (one shuffle)",
            "Sparsity",
            "Clustering, s",
        ),
        tuple(rows),
        note=f"Measured on {measured['images']:,} images, with {measured['clusters']} clusters. "
        "Seconds for one pass "
        f"over all images, for all blocks at once: {seconds}.",
    )


def _criticality_table(blocks: list[dict[str, Any]]) -> tables.Table:
    rows = [
        (
            block["title"],
            str(block["layer"] + 1),
            f"{block['images']:,}",
            tables.number(block["neurons"][0]["neuron"]),
            tables.decimals(block["neurons"][0]["criticality"], 4),
            f"{block['costs']['forward_passes']:.2f}",
            tables.duration(block["seconds"]),
        )
        for block in blocks
    ]
    return tables.Table(
        "Criticality",
        (
            "Model",
            "Block",
            "Images",
            "Most critical neuron",
            "Its criticality",
            "Cost, forward passes per image",
            "Time",
        ),
        tuple(rows),
        note="A neuron's criticality is the largest relative change of the head's input, over the "
        "images, when the neuron is set to zero. The cost is derived from operation counts.",
    )


def _models(analysis: Analysis) -> tables.Table:
    return tables.Table(
        "Models",
        ("Model", "Checkpoint", "Hash of the file", "Blocks", "Neurons per block", "Parameters"),
        tuple(
            (
                model["title"],
                str(model["init"]).rpartition("/")[2]
                if model["init"].endswith(".npz")
                else model["init"],
                model["init_digest"],
                tables.number(model["depth"]),
                f"{model['neurons']:,}",
                f"{model['parameters']:,}",
            )
            for model in analysis["models"]
        ),
    )


def _versions(analysis: Analysis) -> tables.Table:
    device = analysis["device"]
    rows = [("Device", f"{device['count']} x {device['kind']}"), ("Seed", str(analysis["seed"]))]
    rows += [(f"Version of {name}", version) for name, version in analysis["versions"].items()]
    return tables.Table("Versions", ("Software", "Version"), tuple(rows), numeric=False)


def _differs(analysis: Analysis) -> list[str]:
    sentences = list(analysis["config"].get("differs", ()))
    if analysis["data"]["official"] is False:
        sentences.append("The number of images differs from that of the official data set.")
    size = analysis["data"]["image_size"]
    if size != 224:
        sentences.append(f"Images are resized to {size} x {size} pixels; the paper uses 224 x 224.")
    if "information" in analysis["analyses"]:
        sentences.append(
            "The decoders' learning rate, betas, number of updates and augmentation (crops and "
            "flips) are our choices: the paper's values are lost."
        )
    if "expertness" in analysis["analyses"]:
        sentences.append(
            "Expertness is divided by the energy of all pairs, so that it lies between 0 and 1."
        )
    return sentences
