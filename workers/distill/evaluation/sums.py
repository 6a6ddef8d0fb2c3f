"""From values per conversation to sums per cluster: what intervals are computed from."""

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from app.specs.evaluation import MetricSums


class Clusters:
    """The set's clusters in sorted order, and which of them each conversation belongs to."""

    def __init__(self, groups: Sequence[str]) -> None:
        self.names = tuple(sorted(set(groups)))
        place = {name: i for i, name in enumerate(self.names)}
        self.of = np.asarray([place[g] for g in groups], dtype=np.int64)

    def sums(
        self,
        metric: str,
        values: Sequence[float | None],
        counts: Sequence[float] | None = None,
    ) -> MetricSums | None:
        """Return a metric's sums and counts per cluster; None where no conversation has a value.

        values: one per conversation (a sum, where `counts` says over how many), None: excluded.
        """
        have = np.asarray([v is not None for v in values], dtype=np.bool_)
        if not have.any():
            return None
        weight = np.ones(len(values)) if counts is None else np.asarray(counts, dtype=np.float64)
        filled = np.asarray([0.0 if v is None else v for v in values], dtype=np.float64)
        size = len(self.names)
        return MetricSums(
            metric=metric,
            sums=tuple(np.bincount(self.of, filled, minlength=size).tolist()),
            counts=tuple(np.bincount(self.of, np.where(have, weight, 0), minlength=size).tolist()),
            n=int(have.sum()),
            excluded=int((~have).sum()),
        )


def calibration_terms(
    confidence: NDArray[np.float64], correct: NDArray[np.float64], bins: int
) -> NDArray[np.float64]:
    """Return one term [n] per answer whose mean is the expected calibration error (ECE).

    Bins hold equally many answers in order of confidence (the last ones one fewer). With S_b the
    sum of confidence − correctness in bin b, ECE = Σ_b |S_b| / n (Naeini et al. 2015); so with the
    bins and the signs of S_b fixed from the whole sample, an answer's term is
    sign(S_b)(confidence − correctness). That is ECE's linearisation, which lets it be clustered
    and paired like a mean; it holds where no S_b is close to 0.
    """
    gap = confidence - correct
    terms = np.zeros_like(gap)
    order = np.argsort(confidence, kind="stable")
    for members in np.array_split(order, min(bins, len(order))):
        terms[members] = np.sign(gap[members].sum()) * gap[members]
    return terms
