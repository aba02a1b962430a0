"""The statistics of a table: intervals over seeds, and comparisons paired by seed, corrected for their number.

scipy computes the distributions; it is imported when it is first needed.
"""

import dataclasses
import math
from collections.abc import Mapping, Sequence

LEVEL = 0.95  # confidence level of the intervals
SIGNIFICANT = 0.05  # threshold of a corrected p


@dataclasses.dataclass(frozen=True)
class Summary:
    """The mean of n values, their sample standard deviation and the t interval of the mean. One value has only a mean."""

    n: int
    mean: float
    sd: float | None = None
    low: float | None = None
    high: float | None = None

    @property
    def half_width(self) -> float | None:
        return None if self.high is None else (self.high - self.low) / 2


@dataclasses.dataclass(frozen=True)
class Comparison:
    """The mean difference of n pairs, its t interval and the two-sided p of the paired t test.

    `adjusted` is p after Holm's correction. One pair has only a difference. Differences without any variance have no
    test: p is 1 if they are 0, else None.
    """

    n: int
    difference: float
    low: float | None = None
    high: float | None = None
    p: float | None = None
    adjusted: float | None = None

    @property
    def significant(self) -> bool:
        return self.adjusted is not None and self.adjusted < SIGNIFICANT


def summarize(values: Sequence[float]) -> Summary:
    """Summarize finite values; raise ValueError if there is none, or if one is not finite."""
    values = [float(v) for v in values]
    if not values or not all(map(math.isfinite, values)):
        raise ValueError(f"expected finite values, not {values}")
    n, mean = len(values), math.fsum(values) / len(values)
    if n == 1:
        return Summary(1, mean)
    sd = math.sqrt(math.fsum((v - mean) ** 2 for v in values) / (n - 1))
    half = critical(n - 1) * sd / math.sqrt(n)
    return Summary(n, mean, sd, mean - half, mean + half)


def critical(freedom: int) -> float:
    """Return the (1 + LEVEL) / 2 quantile of the t distribution."""
    from scipy import stats

    return float(stats.t.ppf((1 + LEVEL) / 2, freedom))


def compare(values: Mapping[int, float], reference: Mapping[int, float]) -> Comparison | None:
    """Compare two arms, seed -> value, on their common seeds; return None if there are none.

    The paired t test of Student (1908), two-sided, of values - reference.
    """
    seeds = sorted(set(values) & set(reference))
    if not seeds:
        return None
    pairs = [values[s] - reference[s] for s in seeds]
    summary = summarize(pairs)
    if summary.n == 1:
        return Comparison(1, summary.mean)
    if len(set(pairs)) == 1:
        return Comparison(summary.n, pairs[0], pairs[0], pairs[0], p=1.0 if pairs[0] == 0 else None)
    from scipy import stats

    p = float(stats.ttest_rel([values[s] for s in seeds], [reference[s] for s in seeds]).pvalue)
    return Comparison(summary.n, summary.mean, summary.low, summary.high, p)


def holm(ps: Sequence[float | None]) -> list[float | None]:
    """Adjust p values for their number (Holm 1979): in ascending order the i-th of m is multiplied by m - i, made monotone.

    None, a comparison without a test, remains None and does not count.
    """
    tested = sorted((p, i) for i, p in enumerate(ps) if p is not None)
    adjusted: list[float | None] = [None] * len(ps)
    largest = 0.0
    for rank, (p, i) in enumerate(tested):
        largest = max(largest, min(1.0, (len(tested) - rank) * p))
        adjusted[i] = largest
    return adjusted


def concordance(ours: Sequence[float], theirs: Sequence[float]) -> float | None:
    """Return Kendall's tau-b between two orders of the same arms; None for fewer than three arms or if all of one tie."""
    if len(ours) < 3:
        return None
    from scipy import stats

    tau = float(stats.kendalltau(ours, theirs).statistic)
    return tau if math.isfinite(tau) else None
