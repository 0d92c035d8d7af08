"""DIST in NumPy, in float64, one correlation at a time."""

import numpy as np


def softened(logits: np.ndarray, temperature: float) -> np.ndarray:
    """Returns class probabilities, one image at a time."""
    rows = []
    for row in np.asarray(logits, np.float64) / temperature:
        shares = np.exp(row - row.max())
        rows.append(shares / shares.sum())
    return np.stack(rows)


def official(a: np.ndarray, b: np.ndarray) -> float:
    """Returns the correlation with DIST's epsilon."""
    a, b = a - a.mean(), b - b.mean()
    return float((a * b).sum() / (np.sqrt((a**2).sum()) * np.sqrt((b**2).sum()) + 1e-8))


def exact(a: np.ndarray, b: np.ndarray) -> float | None:
    """Returns the exact correlation, or None if `b` is constant."""
    return None if np.ptp(b) <= 1e-9 * b.max() else float(np.corrcoef(a, b)[0, 1])


def correlations(
    student_logits: np.ndarray, teacher_logits: np.ndarray, temperature: float, *, masked: bool
) -> tuple[list[float], list[float]]:
    """Returns the correlations of images and those of classes."""
    student = softened(student_logits, temperature)
    teacher = softened(teacher_logits, temperature)
    correlation = exact if masked else official
    rows = [correlation(a, b) for a, b in zip(student, teacher, strict=True)]
    columns = [correlation(a, b) for a, b in zip(student.T, teacher.T, strict=True)]
    return [r for r in rows if r is not None], [r for r in columns if r is not None]


def terms(
    student_logits: np.ndarray, teacher_logits: np.ndarray, temperature: float, *, masked: bool
) -> tuple[float, float]:
    """Returns the loss over images and the loss over classes."""
    rows, columns = correlations(student_logits, teacher_logits, temperature, masked=masked)
    return (
        temperature**2 * (1 - float(np.mean(rows))),
        temperature**2 * (1 - float(np.mean(columns))),
    )
