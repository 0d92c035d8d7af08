"""A study of one data set: a search over the paper's grid, full or with a budget.

    python -m remem_jax.main --config=configs/study.py:folder,variant=Ti/16 \
        --workdir=studies/mine --config.base.data.path=my_images --config.search.kind=halving

The same command on another machine adds a worker, if both machines can reach --config.storage.
configs/settings.py has all settings; configs/tables/ and some of configs/figures/ use the functions
below for the paper's tables and figures.
"""

from collections.abc import Iterable, Mapping
from typing import Any

from ml_collections import ConfigDict

from configs import analysis, remem, settings
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


def get_config(spec: str = "cifar100") -> ConfigDict:
    """Returns a study of fine-tuning and ReMem; `spec` is as in configs/remem.py."""
    name = spec.partition(",")[0]
    return make(
        f"ReMem on {name}",
        rows("scratch", "finetune", "remem"),
        {name: column(name)},
        base=remem.get_config(spec),
    )


def row(
    title: str, method: str, *, parts: Mapping[str, float] | None = None, **changes: Any
) -> dict[str, Any]:
    """Returns a row of a table.

    Args:
        title: Title of the row.
        method: One of `config.methods`.
        parts: Settings of the teacher in steps, such as "probe_steps", as parts of the number of
            steps of other rows.
        **changes: Other settings that the row changes, by group.
    """
    made = {"title": title, "group": "", "method": method, "changes": changes}
    return {**made, "parts": dict(parts)} if parts else made


def column(title: str, **changes: Any) -> dict[str, Any]:
    """Returns a column of a table, with the settings that it changes."""
    return {"title": title, "changes": changes}


def make(
    title: str,
    rows: Mapping[str, Any],
    columns: Mapping[str, Any],
    *,
    base: ConfigDict,
    table: int = 0,
) -> ConfigDict:
    """Returns the config of a study.

    Args:
        title: Title of the report; the text before the colon becomes the name in the storage.
        rows: Rows by name; see `row`.
        columns: Columns by name; see `column`.
        base: Settings of all runs, except those that rows and columns change.
        table: Number of the paper's table that the study reproduces; 0 is none.
    """
    config = settings.study(base)
    config.title = title
    config.table = table
    config.name = title.partition(":")[0].lower().replace(" ", "_")
    config.rows = ConfigDict(rows)
    config.columns = ConfigDict(columns)
    config.row_order, config.column_order = tuple(rows), tuple(columns)
    return config


def rows(*names: str, prefix: str = "", group: str = "", **changes: Any) -> dict[str, Any]:
    """Returns a group of rows, one for each of these methods.

    Args:
        *names: Names of methods.
        prefix: Added before each method's name to form the row's name.
        group: Title of the group in the table; empty is none.
        **changes: Settings that all rows of the group change.
    """
    return {
        prefix + name: row(METHODS[name].title, name, **changes) | {"group": group}
        for name in names
    }


def datasets(names: tuple[str, ...]) -> dict[str, Any]:
    """Returns a column for each of these data sets."""
    return {name: column(TITLES[name], data={"name": name}) for name in names}


def strengths(dataset: str, *names: str, spec: str) -> dict[str, Any]:
    """Returns columns of one data set, each with a teacher of another pretraining.

    Args:
        dataset: Name of the data set.
        *names: Names of pretrainings in configs/analysis.py; none for all of them.
        spec: "" for the paper's setting, or "mini", which has only pretrainings with a ViT-Ti/16.
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
    """Returns a row for each count: teachers with this many top blocks pruned.

    Args:
        blocks: "mlp" or "attention".
        counts: Numbers of pruned blocks.
    """
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
    """Returns the study of a figure that shows teachers, their information and their students.

    Args:
        number: Number of the figure in the paper.
        title: Title of the figure.
        rows: Rows by name; see `row`.
        columns: Columns by name; see `strengths`.
        spec: "" for the paper's setting, or "mini".
    """
    base = remem.get_config("cifar100" if not spec else "cifar100,variant=Ti/16")
    base.information.seeds = (0, 1, 2)
    if spec:
        _shrink(base)
        base.information.seeds = (0, 1)
        base.information.steps = 500
    mini = " (mini)" if spec else ""
    config = make(f"Figure {number}{mini}: {title}", rows, columns, base=base)
    grid: dict[str, tuple[float, ...]] = {
        "learning_rate": (0.03,),
        "rho": (0.5,),
        "mlp_weight": (0.8,),
    }
    # A setting that the rows set is not searched.
    if any("rho" in value["changes"].get("teacher", {}) for value in rows.values()):
        grid["rho"] = ()
    config.grid.update(grid)
    config.search.near = ConfigDict({name: values[0] for name, values in grid.items() if values})
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
    """Returns the study of a table of the paper, or its mini version.

    Args:
        number: Number of the table in the paper.
        title: Title of the table.
        rows: Rows by name; see `row`.
        columns: Columns by name; see `column`.
        dataset: Data set of all columns, unless the columns are data sets.
        spec: "" for the paper's setting, or "mini".
        mini: Columns of the mini version; data sets that are not among the columns are added
            before them.
    """
    if spec not in ("", "mini"):
        raise ValueError(f'The option of a table must be "mini" or left out; got {spec!r}.')
    if not spec:
        base = remem.get_config(dataset)
        # The paper may have selected on test; the report shows the selection on validation, too.
        base.choose_on_test = True
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
    config.grid.update({"learning_rate": (0.01, 0.03), "rho": (0.05, 0.5), "mlp_weight": (0.8,)})
    config.search.near = ConfigDict({"learning_rate": 0.03, "rho": 0.5, "mlp_weight": 0.8})
    return config


SMALL = ("caltech101", "cifar100", "flowers102", "eurosat")  # Data sets of mini versions.
MINI = (
    "This is a mini version: a ViT-Ti/16 as the teacher, few steps, a small grid, and whatever "
    "images the data folder holds. Its numbers are not the paper's setting, and not to be compared "
    "with the paper's."
)


def _shrink(base: ConfigDict) -> None:
    """Sets sizes at which one GPU needs less than an hour for a table."""
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
