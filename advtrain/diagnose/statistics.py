"""How many images make a finding: exact tests, so that a handful of images accuses nobody."""

from __future__ import annotations

import math


def tail(successes: int, trials: int, share: float) -> float:
    """Probability of at least so many successes, each with probability `share`: the binomial distribution's upper tail.

    >>> round(tail(9, 10, 0.5), 4)
    0.0107

    Args:
        successes: in 0..trials.
        trials: how many there were.
        share: probability of each, in [0, 1].
    """
    if successes <= 0:
        return 1.0
    if share <= 0 or share >= 1:
        return float(share >= 1)
    ways = math.lgamma(trials + 1)
    return min(1.0, sum(
        math.exp(
            ways - math.lgamma(k + 1) - math.lgamma(trials - k + 1) + k * math.log(share)
            + (trials - k) * math.log1p(-share)
        )
        for k in range(successes, trials + 1)
    ))  # fmt: skip


def at_least_share(successes: int, trials: int, doubt: float = 0.01) -> float:
    """The lower end of the one-sided Clopper-Pearson interval for a share: it is at least this, but for `doubt`.

    >>> at_least_share(0, 20), round(at_least_share(13, 256), 4)
    (0.0, 0.0241)

    Args:
        successes: in 0..trials.
        trials: how many there were; of none the share is unknown, and the bound 0.
        doubt: probability of being wrong.
    """
    low, high = 0.0, successes / trials if trials else 0.0
    for _ in range(40):
        middle = (low + high) / 2
        low, high = (middle, high) if tail(successes, trials, middle) < doubt else (low, middle)
    return low


def at_most_share(successes: int, trials: int, doubt: float = 0.01) -> float:
    """The upper end of the one-sided Clopper-Pearson interval for a share; 1 of no trials.

    >>> round(at_most_share(0, 20), 4)
    0.2057

    Args:
        successes: in 0..trials.
        trials: how many there were.
        doubt: probability of being wrong.
    """
    return 1 - at_least_share(trials - successes, trials, doubt)


def one_sided(wins: int, losses: int) -> float:
    """McNemar's exact test: probability of so many wins or more among the pairs that differ, if it were by chance.

    >>> one_sided(5, 0)
    0.03125

    Args:
        wins: pairs that differ in the one direction.
        losses: in the other.
    """
    return tail(wins, wins + losses, 0.5)
