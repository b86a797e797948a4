"""Distribution of times that are known exactly, as an interval, or only from below.

A million members have few distinct intervals once times are put into cells of two per cent, so everything
works on counts of distinct pairs (low, high). The curve of Turnbull is the nonparametric maximum of their
likelihood, Σ count · log(F(high) − F(low)); `_smooth` has a smooth one of the same likelihood.

Sources: B. W. Turnbull, J. R. Stat. Soc. B 38 (1976) 290, doi:10.1111/j.2517-6161.1976.tb01597.x;
R. Gentleman, C. J. Geyer, Biometrika 81 (1994) 618, doi:10.1093/biomet/81.3.618 (when the maximum is reached);
R. Varadhan, C. Roland, Scand. J. Stat. 35 (2008) 335, doi:10.1111/j.1467-9469.2007.00585.x (its
acceleration); P. Royston, M. K. B. Parmar, Stat. Med. 21 (2002) 2175, doi:10.1002/sim.1203 (splines of a
transformed distribution function); P. J. Huber, Proc. 5th Berkeley Symp. 1 (1967) 221 (the variance).
"""

from typing import NamedTuple

import numpy as np
from scipy import interpolate

from mxlab.analysis._inputs import Floats, Ints

#: Cells are two per cent of time wide where there are more distinct times than `DISTINCT`.
CELL = 0.02
DISTINCT = 400
#: No time is shorter than this; a job cannot be, and logarithms need a floor.
SHORTEST_SECONDS = 0.01
#: The least probability of anything that happened.
TINY = 1e-15


class Intervals(NamedTuple):
    """Times as counts of distinct pairs of bounds.

    Attributes
    ----------
    bounds
        Seconds, rising, from 0 to infinity.
    low, high
        For each distinct pair, its places in `bounds`: the time is in (bounds[low], bounds[high]].
    rows
        How many rows have the pair.
    pair
        For each row, the number of its pair.
    """

    bounds: Floats
    low: Ints
    high: Ints
    rows: Floats
    pair: Ints

    def of(self, rows: Ints) -> "Intervals":
        """The same of some rows, with only the bounds that they use."""
        count = np.bincount(self.pair[rows], minlength=len(self.rows))
        used, number = np.flatnonzero(count), np.cumsum(count > 0) - 1
        low, high = self.low[used], self.high[used]
        kept = np.zeros(len(self.bounds), bool)
        kept[low], kept[high], kept[[0, -1]] = True, True, True
        place = np.cumsum(kept) - 1
        return Intervals(
            self.bounds[kept],
            place[low],
            place[high],
            count[used].astype(np.float64),
            number[self.pair[rows]],
        )


def intervals(low: Floats, high: Floats) -> Intervals:
    """Bring rows together; an exact time has low = high, a censored one high = infinity."""
    exact = low == high
    low = np.where(exact | (low > 0), np.maximum(low, SHORTEST_SECONDS), 0.0)
    high = np.maximum(high, SHORTEST_SECONDS)
    distinct = np.unique(np.concatenate([low, high])[: 10 * DISTINCT])
    if len(low) <= 5 * DISTINCT and len(distinct) <= DISTINCT:
        low = np.where(exact, high * (1 - 1e-6), low)
        bounds = np.unique(np.concatenate([[0.0], low, high, [np.inf]]))
    else:
        cell = CELL * np.floor(np.log(high[exact]) / CELL)
        low[exact], high[exact] = np.exp(cell), np.exp(cell + CELL)
        ends = np.concatenate([low, high])
        bounds = np.concatenate([[0.0], _means_of_cells(ends[(ends > 0) & np.isfinite(ends)]), [np.inf]])
    first, last = _nearest(bounds, low), _nearest(bounds, high)
    last = np.maximum(last, first + 1)
    width = len(bounds)
    flat = first * width + last
    count = np.bincount(flat, minlength=width * width)
    used = np.flatnonzero(count)
    count[used] = np.arange(len(used))
    return Intervals(
        bounds, used // width, used % width, np.bincount(count[flat]).astype(np.float64), count[flat]
    )


def _means_of_cells(ends: Floats) -> Floats:
    """The mean of the times in each cell that has any, so that looks on a fixed grid stay where they are."""
    cell = np.floor(np.log(ends) / CELL).astype(np.int64)
    cell -= cell.min(initial=0)
    used = np.bincount(cell)
    means: Floats = np.bincount(cell, weights=ends)[used > 0] / used[used > 0]
    return means


def _nearest(bounds: Floats, times: Floats) -> Ints:
    """The place of the bound nearest to each time; 0 and infinity only to themselves."""
    right = np.clip(np.searchsorted(bounds, times), 0, len(bounds) - 1)
    left = np.maximum(right - 1, 0)
    inner = (left > 0) & (right < len(bounds) - 1)
    closer = inner & (2 * np.where(inner, times, 0) < bounds[left] + bounds[right])
    beyond = (right == len(bounds) - 1) & np.isfinite(times)
    found: Ints = np.where(closer | beyond, left, right).astype(np.int64)
    return found


def turnbull(times: Intervals, *, tolerance: float = 1e-4, rounds: int = 2_000) -> Floats:
    """The nonparametric maximum of the likelihood: F at each bound.

    Mass lies only in cells that begin at some lower bound and end at some upper bound; where in the cell, the
    data do not say. Stops when no cell could raise the likelihood by more than `tolerance` a row.
    """
    lows, highs = np.zeros(len(times.bounds), bool), np.zeros(len(times.bounds), bool)
    lows[times.low], highs[times.high] = True, True
    open_cells = lows[:-1] & highs[1:]
    n = times.rows.sum()
    mass = open_cells / max(open_cells.sum(), 1)

    def climb(p: Floats) -> tuple[Floats, float]:
        """By what each cell's mass rises in one step of EM, and the log-likelihood before it."""
        f = np.concatenate([[0.0], np.cumsum(p)])
        inside = np.maximum(f[times.high] - f[times.low], TINY)
        ratio = times.rows / inside
        steps = np.bincount(times.low, ratio, len(f)) - np.bincount(times.high, ratio, len(f))
        return np.cumsum(steps)[:-1] / n, float(times.rows @ np.log(inside))

    for _ in range(rounds if n else 0):
        rise, _ = climb(mass)
        if (rise * open_cells).max() - 1 <= tolerance:
            break
        once = mass * rise
        twice = once * climb(once)[0]
        twice /= twice.sum()
        first, second = once - mass, twice - 2 * once + mass
        stride = np.sqrt((first @ first) / max(second @ second, 1e-300))
        leap = np.maximum(mass + 2 * stride * first + stride**2 * second, twice * 1e-3)
        leap /= leap.sum()
        mass = leap if stride < 1e6 and climb(leap)[1] >= climb(twice)[1] else twice
    share: Floats = np.concatenate([[0.0], np.cumsum(mass)])
    return share


def spline(knots: Floats, places: Floats) -> Floats:
    """Natural cubic spline through 1 at one knot and 0 at the others; straight beyond the ends."""
    curve = interpolate.CubicSpline(knots, np.eye(len(knots)), bc_type="natural")
    near = np.clip(places, knots[0], knots[-1])
    found: Floats = curve(near) + curve(near, 1) * (places - near)[:, None]
    return found
