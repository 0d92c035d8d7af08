"""A study: the grid of the paper, or a budgeted search of it, for one data set.

    python -m remem_jax.main --config=configs/study.py:folder,variant=Ti/16 \
        --workdir=studies/mine --config.base.data.path=my_images --config.search.kind=halving

The same command on another machine is one more worker, where --config.storage is one that both
reach. The tables of the paper, configs/tables/, are made with what is below.
"""

from collections.abc import Iterable, Mapping
from typing import Any

from ml_collections import ConfigDict

from configs import analysis, information, remem
from remem_jax.methods import METHODS

TITLES = {  # The paper's names of its data sets, in the order of Table 1.
    "cifar100": "CIFAR-100",
    "flowers102": "Flowers",
    "pets": "Pet",
    "dtd": "DTD",
    "svhn": "SVHN",
    "caltech101": "Caltech-101",
    "food101": "Food-101",
    "cars196": "Cars",
    "sun397": "SUN397",
    "sun397_tfds": "SUN397 (TFDS)",
    "inat2017": "iNaturalist 2017",
    "pcam": "Patch Camelyon",
    "retinopathy": "Retinopathy",
    "eurosat": "EuroSAT",
    "resisc45": "Resisc45",
    "imagenet_lt": "ImageNet-LT",
}
SIX = ("cifar100", "caltech101", "sun397_tfds", "inat2017", "pcam", "imagenet_lt")
GRID = {  # Of the teacher: the paper's Table 6 [text].
    "learning_rate": (0.005, 0.007, 0.01, 0.03, 0.05, 0.07, 0.1, 0.3, 0.5),
    "rho": (0.005, 0.05, 0.5),
    "mlp_weight": (0.8, 0.9),
}
# The paper's best region, as far as it tells: a large rho, MLPs scaled down [text]; the rate is the
# middle of its range [choice].
NEAR = {"learning_rate": 0.05, "rho": 0.5, "mlp_weight": 0.8}


def get_config(spec: str = "cifar100") -> ConfigDict:
    """Returns a study of fine-tuning and ReMem; `spec` is that of configs/remem.py."""
    name = spec.partition(",")[0]
    return make(
        f"ReMem on {name}",
        rows("scratch", "finetune", "remem"),
        {name: column(name)},
        base=remem.get_config(spec),
    )


def row(title: str, method: str, **changes: Any) -> dict[str, Any]:
    """A row of a table: a method of `config.methods`, and settings that are the row's own."""
    return {"title": title, "group": "", "method": method, "changes": changes}


def column(title: str, **changes: Any) -> dict[str, Any]:
    """A column of a table: settings that are its own."""
    return {"title": title, "changes": changes}


def make(
    title: str,
    rows: Mapping[str, Any],
    columns: Mapping[str, Any],
    *,
    base: ConfigDict,
    table: int = 0,
) -> ConfigDict:
    """Returns a study.

    Args:
        title: Of its report; what stands before a colon is its name in the storage.
        rows: By name; see `row`.
        columns: By name; see `column`.
        base: Settings of all its runs, but for what rows and columns change.
        table: Number of the paper's table that it makes; 0 is none.
    """
    config = ConfigDict()
    config.workflow = "study"
    config.title = title
    config.table = table
    config.mini = ""  # What makes it a mini version, where it is one; stands first in the report.
    config.name = title.partition(":")[0].lower().replace(" ", "_")  # In the storage.
    # "sqlite" and "journal" are files of --workdir, for one machine and for several that share it;
    # or "journal:/shared/file", or "postgresql://user@host/database".
    config.storage = "sqlite"
    config.heartbeat_seconds = 20.0  # How often a worker says that it is at work.
    config.grace_seconds = 180.0  # A worker that has not for so long is taken for dead.
    config.attempts = 5  # A trial that has ended so many workers is not tried again.
    config.only = ""  # Rows and columns, by name, with commas; empty is all.
    # True says what the study costs, and what its runs take of this device's memory, and ends.
    config.plan_only = False
    config.keep_weights = False  # True keeps all teachers and students, not the selected alone.
    config.seeds = (0,)  # Each is the whole protocol once more: data split, teacher, students.
    config.differs = ()  # Sentences for the report.

    config.search = ConfigDict()
    config.search.kind = "grid"  # Or "halving": of each `reduction` trials one goes on, longer.
    config.search.reduction = 4
    config.search.rungs = 3  # The last has all steps, the one before a `reduction`-th of them.
    config.search.budget = (
        0.2  # Of the cost of the grid; fewer trials begin where it would be more.
    )
    config.search.near = ConfigDict(NEAR)  # Where the search begins.

    config.grid = ConfigDict(GRID)  # Settings of the teacher; a method may fix some of them.
    config.rows = ConfigDict(rows)
    config.columns = ConfigDict(columns)
    config.row_order, config.column_order = tuple(rows), tuple(columns)  # Of the table.
    config.base = base
    return config


def rows(*names: str, prefix: str = "", group: str = "", **changes: Any) -> dict[str, Any]:
    """Rows of these methods: a group of a table, with settings that are the group's own."""
    found = {prefix + name: row(METHODS[name].title, name, **changes) for name in names}
    return {name: {**own, "group": group} for name, own in found.items()}


def datasets(names: tuple[str, ...]) -> dict[str, Any]:
    """Columns of data sets."""
    return {name: column(TITLES[name], data={"name": name}) for name in names}


def strengths(dataset: str, *names: str, spec: str) -> dict[str, Any]:
    """Columns of a data set and teachers of these pretrainings, or of all; see `configs.analysis`.

    The mini version has those of which there is a ViT-Ti/16.
    """
    chosen = analysis.strengths(spec)
    variant = "Ti/16" if spec else "B/16"
    return {
        f"{dataset}_{name}": column(
            f"{TITLES[dataset]}, {title}",
            data={"name": dataset},
            teacher={"variant": variant, "init": init},
        )
        for name, (title, init) in chosen.items()
        if name in names or not names
    }


def pruned(blocks: str, counts: Iterable[int]) -> dict[str, Any]:
    """Rows of teachers without these numbers of top blocks, MLPs ("mlp") or attention."""
    titles = {"mlp": "MLPs", "attention": "attentions"}
    return {
        f"{blocks}_{count}": row(
            f"{count} {titles[blocks]} pruned", "finetune", teacher={f"pruned_{blocks}": count}
        )
        for count in counts
    }


def make_figure(
    number: int,
    title: str,
    rows: Mapping[str, Any],
    columns: Mapping[str, Any],
    *,
    spec: str,
) -> ConfigDict:
    """Returns a figure of the paper that shows teachers, their information, and their students.

    Args:
        number: Of the figure.
        title: What it shows.
        rows: By name; see `row`.
        columns: By name; see `strengths`.
        spec: "" for the paper's setting, or "mini".
    """
    base = remem.get_config("cifar100" if not spec else "cifar100,variant=Ti/16")
    base.information = information.make(seeds=(0, 1, 2))
    if spec:
        _shrink(base)
        base.information.seeds = (0, 1)
        base.information.steps = 500
    mini = " (mini)" if spec else ""
    config = make(f"Figure {number}{mini}: {title}", rows, columns, base=base)
    config.grid = ConfigDict({"learning_rate": (0.03,), "rho": (0.5,), "mlp_weight": (0.8,)})
    # What a row sets itself is not searched.
    if any("rho" in own["changes"].get("teacher", {}) for own in rows.values()):
        del config.grid.rho
    config.search.near = ConfigDict({name: values[0] for name, values in config.grid.items()})
    config.mini = MINI if spec else ""
    return config


def make_table(
    number: int,
    title: str,
    rows: Mapping[str, Any],
    columns: Mapping[str, Any],
    *,
    dataset: str = "cifar100",
    spec: str,
    mini: tuple[str, ...],
) -> ConfigDict:
    """Returns a table of the paper, or its mini version.

    Args:
        number: Of the table.
        title: What it shows.
        rows: By name; see `row`.
        columns: By name; see `column`.
        dataset: Of all cells, where columns are not data sets.
        spec: "" for the paper's setting, or "mini".
        mini: The columns that the mini version runs; data sets that are not among the columns are
            put before them.
    """
    if spec not in ("", "mini"):
        raise ValueError(f"A table is the paper's or, with :mini, a mini version; got {spec!r}.")
    if not spec:
        base = remem.get_config(dataset)
        base.choose_on_test = True  # The paper may have chosen so; the report says both.
        return make(f"Table {number}: {title}", rows, columns, base=base, table=number)
    base = remem.get_config(f"{dataset if dataset in SMALL else SMALL[0]},variant=Ti/16")
    base.choose_on_test = True
    _shrink(base)
    known = datasets(tuple(name for name in mini if name not in columns))
    config = make(
        f"Table {number} (mini): {title}", rows, {**known, **columns}, base=base, table=number
    )
    config.name = f"table_{number}_mini"
    config.mini = MINI
    config.only = ",".join(mini)
    config.grid = ConfigDict(
        {"learning_rate": (0.01, 0.03), "rho": (0.05, 0.5), "mlp_weight": (0.8,)}
    )
    config.search.near = ConfigDict({"learning_rate": 0.03, "rho": 0.5, "mlp_weight": 0.8})
    return config


# Data sets that are small enough for a mini version, or that a fifth of them does for.
SMALL = ("caltech101", "cifar100", "flowers102", "eurosat")
MINI = (
    "This is a mini version: a ViT-Ti/16 as the teacher, few steps, a small grid, and whatever "
    "images the data folder holds. Its numbers are not the paper's setting, and not to be compared "
    "with the paper's."
)


def _shrink(base: ConfigDict) -> None:
    """Sizes at which one GPU does a table in less than an hour."""
    base.teacher.steps = (100, 300)
    base.teacher.warmup_steps = 30
    base.teacher.batch_size = base.student.batch_size = 128
    base.student.steps = 1000
    base.student.warmup_steps = 50
    base.student.learning_rates = (0.1,)
    base.student.temperatures = (4.0,)
    base.student.weights = (0.5, 0.9)
    base.student.evaluations = 3
    base.log_every, base.save_every = 50, 300
