"""The methods that a run compares: one record each, which all other code reads.

To add a method, add a record to `METHODS`: `config.methods`, studies, reports and the table of
docs/configuration.md then include it.
"""

from typing import NamedTuple

AS_SET = None  # The method uses the value in config.teacher.


class Method(NamedTuple):
    """A way to make the teacher of a student, or to train the student without one.

    Attributes:
        title: Title in reports, as in the paper.
        has_teacher: Whether a teacher is fine-tuned; without one, a student learns from labels.
        starts_random: Whether the student starts from random weights even if there is a
            `config.student.init`.
        rho: Radius of SAM, or `AS_SET`; 0 is plain SGD.
        alpha: Weight of every MLP block, `config.teacher.mlp_weight`, or `AS_SET`; 1 leaves the
            blocks as pretrained.
        beta: Weight of every attention block, `config.teacher.attention_weight`, or `AS_SET`.
        in_paper: Whether it is a method of the paper; reports list the others.
    """

    title: str
    has_teacher: bool
    rho: float | None
    alpha: float | None
    beta: float | None
    in_paper: bool = True
    starts_random: bool = False

    @property
    def fixed(self) -> dict[str, float]:
        """Values of `config.teacher` that the method fixes, by name."""
        values = {"rho": self.rho, "mlp_weight": self.alpha, "attention_weight": self.beta}
        return {name: value for name, value in values.items() if value is not None}


# ReMem, its two baselines, and its two halves (Table 10).
METHODS: dict[str, Method] = {
    "scratch": Method(
        "From scratch", False, rho=AS_SET, alpha=AS_SET, beta=AS_SET, starts_random=True
    ),
    "alone": Method(
        "Pretrained, no teacher", False, rho=AS_SET, alpha=AS_SET, beta=AS_SET, in_paper=False
    ),
    "finetune": Method("Fine-tuning", True, rho=0.0, alpha=1.0, beta=1.0),
    "sam": Method("SAM only", True, rho=AS_SET, alpha=1.0, beta=1.0),
    "reweight": Method("Re-weighting MLPs only", True, rho=0.0, alpha=AS_SET, beta=AS_SET),
    "remem": Method("ReMem", True, rho=AS_SET, alpha=AS_SET, beta=AS_SET),
}
# The methods without a teacher: from random weights, and from `config.student.init`.
SCRATCH, ALONE = "scratch", "alone"
