"""`remem models`, and the costs that it lists."""

import json
import pathlib
import re
import subprocess
import sys
from typing import Any

import pytest

from remem_jax import models
from remem_jax.commands import models as command
from remem_jax.models import vit
from remem_jax.weights import available, catalog, costs, student_catalog, teacher_catalog
from tests import tiny_run
from tests.weights import hub_server
from tools import make_costs

ROOT = pathlib.Path(__file__).parents[2]
PAGE = ROOT / "docs" / "students.md"


@pytest.fixture(autouse=True)
def caches(tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Empty caches of both kinds of weights, and no networks of other tests."""
    for name in (tiny_run.NAME, tiny_run.VIT_NAME):
        monkeypatch.delitem(models.STUDENTS, name, raising=False)
    monkeypatch.setenv("REMEM_CACHE", str(tmp_path / "remem"))
    monkeypatch.delenv("REMEM_MIRROR", raising=False)
    # huggingface_hub reads its variables when it is imported.
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path / "hub"))


def listed(capsys: pytest.CaptureFixture[str], *arguments: str) -> str:
    assert command.main(arguments) == 0
    return capsys.readouterr().out


def records(capsys: pytest.CaptureFixture[str], *arguments: str) -> dict[str, dict[str, Any]]:
    found = json.loads(listed(capsys, *arguments, "--json"))
    return {record["weights"] or record["network"]: record for record in found}


# The costs.


@pytest.mark.parametrize(
    ("name", "side"),
    [
        *(("resnet18", 224), ("mobilenetv3_small_100", 224), ("Ti/16", 224), ("S/32", 384)),
        *(("vit_small_patch16_dinov3", 256), ("vit_small_patch14_reg4_dinov2", 518)),
    ],
)
def test_stored_costs_are_those_of_the_networks(name: str, side: int) -> None:
    assert make_costs.cost(name, side) == costs.COSTS[name][side]


def test_all_networks_have_costs_at_all_sizes_of_their_weights() -> None:
    assert {name: tuple(sides) for name, sides in costs.COSTS.items()} == make_costs.pixels()


def _of_page() -> dict[str, tuple[float, float]]:
    """Returns millions of parameters and GMAC of docs/students.md, which other tests check."""
    row = re.compile(r"^\| `(\w+)` \|.*\| ([\d.]+) M \| ([\d.]+) \|$", re.MULTILINE)
    return {
        match[1]: (float(match[2]), float(match[3])) for match in row.finditer(PAGE.read_text())
    }


@pytest.mark.parametrize("name", models.STUDENTS)
def test_costs_agree_with_timms(name: str) -> None:
    parameters, gigamacs = _of_page()[name]
    cost = costs.COSTS[name][224]

    assert cost.parameters / 1e6 == pytest.approx(parameters, abs=0.051)
    if models.STUDENTS[name].patch == 1:  # Those of ViTs do not count the attention there.
        assert cost.gflops / 2 == pytest.approx(gigamacs, abs=0.0051)


@pytest.mark.parametrize("variant", ["Ti/16", "S/16", "B/16", "B/8", "L/16"])
@pytest.mark.parametrize("side", [224, 384])
def test_operations_of_a_vit_are_those_of_the_formula(variant: str, side: int) -> None:
    size = vit.VARIANTS[variant]
    patches, width = (side // size.patch) ** 2, size.features
    tokens = patches + 1  # With [CLS].
    linear = 12 * width**2 * tokens  # Query, key, value, output: 4; MLP: 8.
    attention = 2 * width * tokens**2  # Scores, and the weighted sum.
    stem, head = 3 * size.patch**2 * width * patches, 1000 * width

    operations = 2 * (size.depth * (linear + attention) + stem + head)

    if side in costs.COSTS[variant]:
        assert costs.COSTS[variant][side].gflops == pytest.approx(operations / 1e9, abs=6e-4)


# The lists.


def test_every_network_and_all_weights_are_listed(capsys: pytest.CaptureFixture[str]) -> None:
    found = records(capsys)

    weights = {*student_catalog.PUBLISHED, *catalog.PUBLISHED, *catalog.BUNDLED}
    weights |= {*teacher_catalog.PUBLISHED}
    without = {name for name in models.STUDENTS if not student_catalog.of_student(name)}
    assert set(found) == weights | without
    table = listed(capsys)
    names = (*models.STUDENTS, *teacher_catalog.PUBLISHED, *catalog.PUBLISHED)
    assert all(f"\n{name} " in f"\n{table}" for name in names)
    assert table.index("recommended teacher") < table.index("\nbundled:Ti/16")


def test_one_kind_is_listed_on_request(capsys: pytest.CaptureFixture[str]) -> None:
    students, teachers = records(capsys, "--students"), records(capsys, "--teachers")

    assert {record["role"] for record in students.values()} == {"student"}
    assert {record["role"] for record in teachers.values()} == {"teacher"}
    assert len(students) + len(teachers) == len(records(capsys))


def test_a_student_has_the_facts_of_its_weights(capsys: pytest.CaptureFixture[str]) -> None:
    record = records(capsys)["tf_efficientnet_lite4.in1k"]

    assert record["network"] == "efficientnet_lite4"
    assert (record["pixels"], record["top1"], record["licence"]) == (380, 81.54, "apache-2.0")
    assert record["gflops"] == costs.COSTS["efficientnet_lite4"][380].gflops
    assert record["place"] == available.AWAY


def test_a_recommended_teacher_has_a_licence_and_says_whether_commercial_use_is_allowed(
    capsys: pytest.CaptureFixture[str],
) -> None:
    eupe = "timm/vit_small_patch16_dinov3_qkvb.eupe_lvd1689m"
    record = records(capsys, "--teachers")[eupe]

    assert (record["licence"], record["commercial"]) == (
        "fair-noncommercial-research-license",
        "no",
    )
    assert (record["pixels"], record["place"]) == (256, available.AWAY)
    text = " ".join(listed(capsys, eupe).split())
    assert f"remem distil IMAGES --teacher={eupe} licence" in text
    assert "commercial use: not allowed: Meta's FAIR licence" in text
    assert f"(https://huggingface.co/{eupe})" in text


def test_bundled_weights_are_here(capsys: pytest.CaptureFixture[str]) -> None:
    for name in catalog.BUNDLED:
        record = records(capsys)[name]

        assert record["place"] == available.BUNDLED
        assert record["mebibytes"] == pytest.approx(catalog.locate(name).stat().st_size / 2**20)


def test_downloaded_weights_are_here(
    tmp_path: pathlib.Path, capsys: pytest.CaptureFixture[str]
) -> None:
    teacher, student = catalog.PUBLISHED["gsam:S/16"], "resnet18.tv_in1k"
    path = catalog.in_mirror(teacher.path)
    path.parent.mkdir(parents=True)
    path.write_bytes(b"weights")
    for name in (student, teacher_catalog.EXAMPLE.removeprefix("timm/")):
        repository = tmp_path / f"hub/models--timm--{name}"
        snapshot = repository / "snapshots" / hub_server.COMMIT
        snapshot.mkdir(parents=True)
        (snapshot / "model.safetensors").write_bytes(b"weights")
        (repository / "refs").mkdir()
        (repository / "refs/main").write_text(hub_server.COMMIT)

    found = records(capsys)

    here = {name for name, record in found.items() if record["place"] == available.HERE}
    assert here == {teacher.name, student, teacher_catalog.EXAMPLE}


def test_a_network_is_described_with_all_of_its_weights(
    capsys: pytest.CaptureFixture[str],
) -> None:
    text = listed(capsys, "resnet50")

    assert all(each.name in text for each in student_catalog.of_student("resnet50"))
    assert "25,557,032" in text
    assert "remem distil IMAGES --student=resnet50\n" in text
    assert "https://huggingface.co/timm/resnet50.a1_in1k" in text


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("resnet18.tv_in1k", "--student=resnet18 --student-weights=resnet18.tv_in1k\n"),
        ("mobilenet_v2_035", "--student=mobilenet_v2_035 --student-weights=''\n"),
        ("vit_tiny_patch16", "multiples of 16 pixels"),
        ("sam:B/16", "remem distil IMAGES --teacher=sam:B/16\n"),
        ("H/14", "i21k:H/14"),
        (f"hf-hub:{teacher_catalog.EXAMPLE}@main", f"--teacher={teacher_catalog.EXAMPLE}\n"),
        ("vit_small_patch16_dinov3", "timm/vit_small_patch16_dinov3.lvd1689m, a teacher"),
        (f"augreg:{'B_16-i21k-300ep-lr_0.001-aug_none-wd_0.1-do_0.0-sd_0.0'}", "86,567,656"),
    ],
)
def test_each_name_is_described(name: str, text: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert text in listed(capsys, name)


@pytest.mark.parametrize(
    ("name", "similar"),
    [
        ("resnet19", "resnet18"),
        ("augreg:B/17", "augreg:B/16"),
        ("vit_small_patch16_dinov3.lvd1689m", "timm/vit_small_patch16_dinov3.lvd1689m"),
        ("me/mine", "other repositories on the Hub are not listed, and can be used"),
    ],
)
def test_an_unknown_name_is_an_error_with_similar_ones(
    name: str, similar: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert command.main([name]) == 1

    errors = capsys.readouterr().err
    assert len(errors.splitlines()) == 1
    assert similar in errors


def test_help_does_not_import_jax() -> None:
    code = (
        "import sys; from remem_jax.commands import models\n"
        "try: models.main(['--help'])\n"
        "except SystemExit: print('jax' in sys.modules)"
    )

    outcome = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=ROOT
    )

    assert outcome.stdout.endswith("False\n")
