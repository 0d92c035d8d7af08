"""Runs the analyses of some checkpoints on the images of a data set."""

import functools
from typing import Any

import jax
from absl import logging

from remem_jax import mesh, models, report
from remem_jax.settings import analysis, located, plain
from remem_jax.storage import results, workdir
from remem_jax.storage.identity import described
from remem_jax.workflow import context, provenance
from remem_jax.workflow.analysis import criticality, expertness, inputs
from remem_jax.workflow.information import decoders, measurement


def run_analysis(run: context.Run) -> None:
    """Runs each of `config.analyses`, or resumes it."""
    config = run.config
    checkpoints = inputs.load(run)
    identity = provenance.identity(
        run, {"models": {checkpoint.name: checkpoint.digest for checkpoint in checkpoints}}
    )
    workdir.begin(run.workdir, located(config), identity)
    measures = {
        "information": _information,
        "expertness": expertness.measure,
        "criticality": criticality.measure,
    }
    measured = {name: measures[name](run, checkpoints) for name in config.analyses}
    if mesh.is_writer():
        results.write(
            run.workdir / "results.json",
            {
                "format": report.ANALYSIS_FORMAT,
                "title": config.title,
                "config": described(plain(config)),
                "identity": {"key": identity.key, **identity.inputs, "code": identity.code},
                "data": provenance.data(run) | {"splits": list(config.images.splits)},
                "models": [inputs.describe(checkpoint) for checkpoint in checkpoints],
                "analyses": measured,
                "seed": config.seed,
                "versions": provenance.versions(),
                "device": provenance.device(),
            },
        )
        report.write_analysis(run.workdir)
        logging.info("Report: %s", run.workdir / "report.html")


def _information(run: context.Run, checkpoints: list[inputs.Checkpoint]) -> dict[str, Any]:
    """Measures the information of the models for each of the decoder settings to compare."""

    @functools.cache  # Compiles them once.
    def load() -> list[decoders.Teacher]:
        return [_teacher(run, checkpoint) for checkpoint in checkpoints]

    measurements = []
    for config in analysis.of_sensitivity(run.config):
        settings = config.information
        corners = "aligned" if settings.align_corners else "half_pixel"
        stage = f"information/rate_{settings.learning_rate:g}_beta2_{settings.betas[1]:g}_{corners}"
        measured = measurement.measure(run._replace(config=config), stage, load)
        measurements.append(
            {
                "folder": stage,
                "learning_rate": settings.learning_rate,
                "second_beta": settings.betas[1],
                "align_corners": settings.align_corners,
                "seconds": measured["seconds"],
                "models": [
                    {"name": checkpoint.name, "title": checkpoint.title, **record}
                    for checkpoint, record in zip(checkpoints, measured["teachers"], strict=True)
                ],
            }
        )
    return {"settings": measurements}


def _teacher(run: context.Run, checkpoint: inputs.Checkpoint) -> decoders.Teacher:
    patches = run.gather_params(models.teacher_apply(checkpoint.model, ("patches",)))
    jitted = jax.jit(patches, out_shardings=mesh.batch_sharding(run.mesh))
    return decoders.Teacher(checkpoint.title, jitted, checkpoint.variables)
