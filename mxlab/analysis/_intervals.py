"""Intervals and tests that more than one summary uses."""

import numpy as np
import numpy.typing as npt
from scipy import special, stats

from mxlab.analysis._inputs import Floats


def wilson(counts: npt.ArrayLike, totals: npt.ArrayLike, level: float = 0.95) -> tuple[Floats, Floats]:
    """Score interval of a share, also for none and for all of few; 0 to 1 where there is nothing.

    Source: E. B. Wilson, J. Am. Stat. Assoc. 22 (1927) 209, doi:10.1080/01621459.1927.10502953.
    """
    z = float(special.ndtri((1 + level) / 2))
    counts, totals = np.asarray(counts, dtype=np.float64), np.asarray(totals, dtype=np.float64)
    n = np.maximum(totals, 1)
    share = counts / n
    middle = share + z * z / (2 * n)
    reach = z * np.sqrt(share * (1 - share) / n + (z / (2 * n)) ** 2)
    scale = 1 + z * z / n
    some = totals > 0
    low = np.where(some & (counts > 0), (middle - reach) / scale, 0.0)
    high = np.where(some & (counts < totals), (middle + reach) / scale, 1.0)
    return low, high


def adjusted(p_values: Floats) -> Floats:
    """Benjamini–Hochberg adjusted p-values; missing ones stay missing and count for nothing.

    Source: Y. Benjamini, Y. Hochberg, J. R. Stat. Soc. B 57 (1995) 289,
    doi:10.1111/j.2517-6161.1995.tb02031.x.
    """
    found = np.full(len(p_values), np.nan)
    known = ~np.isnan(p_values)
    if known.any():
        found[known] = stats.false_discovery_control(np.clip(p_values[known], 0, 1), method="bh")
    return found
