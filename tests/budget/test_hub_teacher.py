"""`remem distil` with a teacher of timm from a local hub that restricts access to it."""

import json
import pathlib
import subprocess
import sys
from typing import Any

import numpy as np
import pytest
from PIL import Image

from remem_jax.models.normalisation import IMAGENET
from remem_jax.weights import timm
from tests import tiny_run
from tests.oracles import peers
from tests.weights import hub_client, hub_server
from tests.weights.hub_server import COMMIT, Hub
from tests.weights.timm_families import state_of

pytestmark = [pytest.mark.slow, pytest.mark.allow_hosts(["127.0.0.1"])]
ROOT = pathlib.Path(__file__).parents[2]
NAME = "me/tiny_dinov2.mine"
NETWORK = "vit_small_patch14_reg4_dinov2"
CONFIG = {
    "architecture": NETWORK,
    "pretrained_cfg": {"mean": list(IMAGENET.mean), "std": list(IMAGENET.std)},
}
COMMAND = """
import sys
from tests import tiny_run
from remem_jax.commands import main

tiny_run.add_student()
sys.exit(main())
"""


def repository(folder: pathlib.Path) -> dict[str, bytes]:
    """Returns the files of a repository with a tiny ViT of timm, with random weights."""
    model: Any = peers.timm().models.vision_transformer.VisionTransformer(
        **{"img_size": 28, "patch_size": 7, "embed_dim": 64, "depth": 2, "num_heads": 1},
        **{"reg_tokens": 4, "no_embed_class": True, "init_values": 1e-5},
    )
    timm.save(folder / "model.safetensors", state_of(model))
    return {
        "model.safetensors": (folder / "model.safetensors").read_bytes(),
        "config.json": json.dumps(CONFIG).encode(),
        "README.md": b"---\nlicense: cc-by-4.0\n---\n# A tiny ViT\n",
    }


@pytest.fixture(scope="module")
def results(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """The record of a run, under "results", and the card of its student, under "card"."""
    folder, rng = tmp_path_factory.mktemp("distil"), np.random.default_rng(0)
    for channel, name in enumerate(("red", "green", "blue")):
        (folder / "images" / name).mkdir(parents=True)
        for i in range(30):
            pixels = rng.integers(0, 120, (16, 16, 3), np.uint8)
            pixels[..., channel] += 100
            Image.fromarray(pixels).save(folder / "images" / name / f"{i}.png")
    options = {
        **{"teacher": NAME, "student": tiny_run.NAME, "student-weights": "", "size": 14},
        **{"hours": 0.1, "out": folder / "run", "config.methods": "('remem',)"},
        **{"config.teacher.steps": "(4,)", "config.student.steps": 4},
    }
    with hub_server.serving(Hub({NAME: repository(folder)})) as site:
        site.gated = {NAME}
        variables = {"REMEM_CACHE": str(folder / "cache"), "HF_TOKEN": site.token}
        process = subprocess.run(
            [
                *(sys.executable, "-c", COMMAND, "distil", str(folder / "images")),
                *(f"--{name}={value}" for name, value in options.items()),
            ],
            cwd=ROOT,
            env=hub_client.environment(site, folder / "hub", **variables),
            text=True,
            capture_output=True,
            check=False,
        )
    assert process.returncode == 0, process.stderr
    written = [path.read_bytes() for path in (folder / "run").rglob("*") if path.is_file()]
    assert not [text for text in (*written, process.stderr.encode()) if site.token.encode() in text]
    (card,) = (folder / "run/selected").glob("*_student.md")
    record = json.loads((folder / "run/results.json").read_text())
    return {"results": record, "card": card.read_text()}


def test_a_teacher_from_the_hub_is_distilled(results: dict[str, Any]) -> None:
    models = results["results"]["models"]
    weights = models["teacher_weights"]

    assert models["init"] == weights["init"] == NAME
    assert (weights["repository"], weights["commit"]) == (NAME, COMMIT)
    assert (weights["architecture"], weights["licence"]) == (NETWORK, "cc-by-4.0")
    assert (weights["mean"], weights["std"]) == (list(IMAGENET.mean), list(IMAGENET.std))
    assert weights["digest"] == models["init_digest"]
    assert results["results"]["methods"][0]["teacher"]


def test_the_card_of_the_student_names_the_repository(results: dict[str, Any]) -> None:
    assert f"base_model: {NAME}\n" in results["card"]
    assert f"| Initial weights of the teacher | {NAME} (commit {COMMIT[:12]}) |" in results["card"]
    page = f"https://huggingface.co/{NAME}"
    assert f"| {NAME} | cc-by-4.0, as its page states | {page} |" in results["card"].replace(
        "<", ""
    ).replace(">", "")
