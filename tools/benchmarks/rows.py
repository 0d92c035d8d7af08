"""Rows of the benchmark: work that both sides do, and targets for it."""

from collections.abc import Mapping
from typing import Any, NamedTuple

CPU_TARGETS, GPU_TARGETS = ("must", "aim"), ("pass", "good", "stretch")  # The weakest first.


class Work(NamedTuple):
    """Work that both sides repeat on images that are already on the device.

    Attributes:
        kind: "forward" (a ViT's forward pass), "step" (a ViT's fine-tuning step), "student" (a
            student's step on labels only), or "kd" (a student's step after a ViT's forward pass on
            the same images).
        batch: Number of images.
        pixels: Side of the images.
        dtype: Type of the computation; "bfloat16" is mixed precision, and then torch compiles.
        variant: Variant of the ViT.
        student: Name of the student.
        rho: Radius of SAM; 0 for none.
        rematerialise: What our ViT recomputes in the backward pass.
        accumulate: Microbatches of our ViT's step.
    """

    kind: str
    batch: int
    pixels: int
    dtype: str
    variant: str = ""
    student: str = ""
    rho: float = 0.0
    rematerialise: str = "nothing"
    accumulate: int = 1

    @property
    def name(self) -> str:
        """Name in the table."""
        done = {
            "forward": f"ViT-{self.variant} forward",
            "step": f"ViT-{self.variant} {'SAM' if self.rho else 'fine-tuning'} step",
            "student": f"{self.student} step",
            "kd": f"KD step, ViT-{self.variant} to {self.student}",
        }[self.kind]
        return f"{done}, batch {self.batch}, {self.pixels} px"


class Row(NamedTuple):
    """Work and its targets.

    Attributes:
        work: The work.
        targets: Name -> value. On a CPU: the highest ratio of our seconds to theirs. On a GPU: the
            lowest number of images per second. Empty at sizes that have no targets.
        plan: Description of the step's memory plan; a row with a plan has only our side.
        cores: CPU cores; one core is timed in CPU-seconds, several in wall-clock seconds.
    """

    work: Work
    targets: Mapping[str, float]
    plan: str = ""
    cores: int = 1

    @property
    def name(self) -> str:
        """Name in the table."""
        cores = f"{self.cores} cores" if self.cores > 1 else ""
        return ", ".join(filter(None, (self.work.name, self.plan, cores)))


class Grid(NamedTuple):
    """Students of one teacher, trained together or apart.

    Attributes:
        students: Number of students.
        steps: Steps of each student.
        batch: Number of images in a step.
        pixels: Side of the images.
        classes: Number of classes.
        variant: Variant of the teacher.
        student: Name of the students' network.
        dtype: Type of the computation.
        targets: Name -> lowest ratio of the seconds of separate runs to those of one run.
    """

    students: int
    steps: int
    batch: int
    pixels: int
    classes: int
    variant: str
    student: str
    dtype: str
    targets: Mapping[str, float]

    @property
    def name(self) -> str:
        """Name in the table."""
        return (
            f"{self.students} {self.student} on one ViT-{self.variant}, {self.steps} steps, batch "
            f"{self.batch}, {self.pixels} px"
        )


def _on_cpu(
    kind: str, batch: int, pixels: int, must: float, *, cores: int = 1, **more: object
) -> Row:
    work = Work(kind, batch, pixels, "float32")._replace(**more)
    return Row(work, {"must": must, "aim": 1.0}, cores=cores)


def _on_gpu(kind: str, targets: tuple[float, float, float], **more: object) -> Row:
    work = Work(kind, 256, 224, "bfloat16", variant="B/16")
    named: dict[str, float] = dict(zip(GPU_TARGETS, targets, strict=True))
    return Row(work._replace(**more), named)


# Students of the rows with one network each, in the order of their GMAC.
STUDENTS = (
    "mobilenetv3_small_100",
    "mobilenetv4_conv_small",
    "mobilenetv3_large_100",
    "efficientnet_lite0",
    "efficientnet_b0",
    "regnety_004",
    "efficientnet_lite2",
    "regnety_008",
    "mobilenetv4_conv_medium",
    "vit_tiny_patch16",
    "efficientnet_lite4",
    "resnet26d",
    "resnet50d",
)
CPU = {
    # Typical batch sizes on a CPU.
    "forward": _on_cpu("forward", 64, 96, 1.2, variant="Ti/16"),
    "step": _on_cpu("step", 64, 96, 1.2, variant="Ti/16"),
    "sam": _on_cpu("step", 64, 96, 1.2, variant="Ti/16", rho=0.05),
    "resnet18": _on_cpu("student", 64, 96, 1.2, student="resnet18"),
    "mobilenet_v2": _on_cpu("student", 64, 96, 1.2, student="mobilenet_v2"),
    "kd": _on_cpu("kd", 64, 96, 1.2, variant="Ti/16", student="resnet18"),
    "step_2_cores": _on_cpu("step", 64, 96, 1.2, cores=2, variant="Ti/16"),
    "resnet18_2_cores": _on_cpu("student", 64, 96, 1.2, cores=2, student="resnet18"),
    **{name: _on_cpu("student", 64, 96, 1.2, student=name) for name in STUDENTS},
    # Small batches of larger images.
    "forward_small": _on_cpu("forward", 8, 224, 1.2, variant="Ti/16"),
    "step_small": _on_cpu("step", 4, 224, 1.2, variant="Ti/16"),
    "sam_small": _on_cpu("step", 4, 224, 1.2, variant="Ti/16", rho=0.05),
    "resnet18_small": _on_cpu("student", 4, 112, 1.2, student="resnet18"),
    "mobilenet_v2_small": _on_cpu("student", 4, 112, 1.2, student="mobilenet_v2"),
    "kd_small": _on_cpu("kd", 4, 224, 1.2, variant="Ti/16", student="resnet18"),
}
# Maximum CPU-seconds of compiling the step of the row `sam_small`.
COMPILING = {"must": 8.0, "aim": 5.0}
# Memory plans, the fastest first: what a step stores for its backward pass, as a description and as
# fields of `Work`.
PLANS: Mapping[str, tuple[str, Mapping[str, Any]]] = {
    "stored": ("all activations stored", {"rematerialise": "nothing"}),
    "elementwise": ("elementwise operations recomputed", {"rematerialise": "elementwise"}),
    "blocks": ("blocks recomputed", {"rematerialise": "blocks"}),
    "microbatches": ("in 4 microbatches", {"rematerialise": "elementwise", "accumulate": 4}),
}
# Predicted for an H200, whose matrix products reach 790 TFLOP/s.
GPU = {
    "forward": _on_gpu("forward", (8000, 10_500, 13_000)),
    "step": _on_gpu("step", (2500, 3500, 4200)),
    "sam": _on_gpu("step", (1250, 1750, 2100), rho=0.05),
    "kd": _on_gpu("kd", (5000, 6500, 8000), student="resnet18"),
    "kd_mobilenet_v2": _on_gpu("kd", (4000, 5400, 8000), student="mobilenet_v2"),
    "kd_efficientnet_v2_s": _on_gpu("kd", (2300, 3000, 5000), student="efficientnet_v2_s"),
    **{  # The teacher's step of configs/remem.py.
        f"plan_{name}": Row(
            Work("step", 512, 224, "bfloat16", variant="B/16", rho=0.5, **fields), {}, words
        )
        for name, (words, fields) in PLANS.items()
    },
}
CPU_GRID = Grid(9, 4, 16, 32, 10, "S/16", "resnet18", "float32", {})
GPU_GRID = Grid(
    27, 20, 128, 224, 100, "B/16", "resnet18", "bfloat16",
    {"pass": 2.0, "good": 2.4, "stretch": 2.6},
)  # fmt: skip
NAMES = {
    "cpu": (*CPU, "compile", "lockstep", "load"),
    "gpu": (*GPU, "lockstep", "load"),
}


# Networks at tiny sizes where no peer is measured; see `tools.benchmarks.tiny`.
TINY_TEACHER, TINY_STUDENT = "Ti/16", "resnet6"


def tiny(row: Row) -> Row:
    """Shrinks a row to try the tool quickly; its timings mean nothing."""
    variant, student = row.work.variant and "Ti/16", row.work.student and "resnet18"
    small = {"batch": 2 * row.work.accumulate, "pixels": 32}
    return Row(row.work._replace(variant=variant, student=student, **small), {}, row.plan)


def tiny_grid(grid: Grid) -> Grid:
    """Shrinks a grid of students in the same way."""
    small = {"students": 2, "steps": 2, "batch": 2, "pixels": 32}
    return grid._replace(**small, variant=TINY_TEACHER, student=TINY_STUDENT, targets={})
