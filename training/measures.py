"""The F-measure, apart from everything that needs torch."""

from __future__ import annotations


def f_measure(precision: float, recall: float) -> float:
    """Harmonic mean of precision and recall in [0, 1]; 0 where both are 0."""
    total = precision + recall
    return 2 * precision * recall / total if total else 0.0
