"""Distribution of times that are known exactly, as an interval, or only from below.

A million members have few distinct intervals once times are put into cells of two per cent, so everything
works on counts of distinct pairs (low, high). Two curves maximise the same likelihood, Σ count · log(F(high) −
F(low)): the nonparametric one of Turnbull, and a smooth one, the probit of F a natural cubic spline of log
time with a weak penalty on its bends.

Sources: B. W. Turnbull, J. R. Stat. Soc. B 38 (1976) 290, doi:10.1111/j.2517-6161.1976.tb01597.x;
R. Gentleman, C. J. Geyer, Biometrika 81 (1994) 618, doi:10.1093/biomet/81.3.618 (when the maximum is reached);
R. Varadhan, C. Roland, Scand. J. Stat. 35 (2008) 335, doi:10.1111/j.1467-9469.2007.00585.x (its
acceleration); P. Royston, M. K. B. Parmar, Stat. Med. 21 (2002) 2175, doi:10.1002/sim.1203 (splines of a
transformed distribution function); P. J. Huber, Proc. 5th Berkeley Symp. 1 (1967) 221 (the variance).
"""

from dataclasses import dataclass
from functools import cached_property
from typing import NamedTuple

import numpy as np
from scipy import interpolate, sparse, special

from mxlab.analysis._inputs import Floats, Ints

#: Cells are two per cent of time wide where there are more distinct times than `DISTINCT`.
CELL = 0.02
DISTINCT = 400
#: No time is shorter than this; a job cannot be, and logarithms need a floor.
SHORTEST_SECONDS = 0.01
#: Knots of the smooth curve.
KNOTS = 9
#: The standard deviation that a bend of the smooth curve has before the data speak, in probits a knot.
BEND = 0.1
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
        used, pair = np.unique(self.pair[rows], return_inverse=True)
        low, high = self.low[used], self.high[used]
        kept = np.zeros(len(self.bounds), bool)
        kept[low], kept[high], kept[[0, -1]] = True, True, True
        place = np.cumsum(kept) - 1
        return Intervals(
            self.bounds[kept], place[low], place[high], np.bincount(pair).astype(np.float64), pair
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
        cell = CELL * np.floor(np.log(high) / CELL)
        low, high = np.where(exact, np.exp(cell), low), np.where(exact, np.exp(cell + CELL), high)
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


@dataclass(frozen=True)
class Smooth:
    """A smooth distribution function of time.

    Attributes
    ----------
    knots
        Places in log seconds.
    probits
        The probit of F at each knot.
    covariance
        Of `probits`, robust to the rows of one user being alike.
    """

    knots: Floats
    probits: Floats
    covariance: Floats

    def share(self, seconds: Floats, errors: float = 0.0) -> Floats:
        """F at these times, moved by so many standard errors of its probit."""
        probit, spread = self._curve(np.log(np.maximum(seconds, SHORTEST_SECONDS / 10)))
        found: Floats = special.ndtr(np.maximum.accumulate(probit + errors * spread))
        return found

    def quantile(self, share: float, errors: float = 0.0) -> float:
        """The time at which F, so moved, reaches this share; NaN where it does not within reach."""
        places, (probit, spread) = self._reach
        curve = np.maximum.accumulate(probit + errors * spread)
        wanted = float(special.ndtri(share))
        after = int(np.searchsorted(curve, wanted))
        if after in (0, len(curve)):
            return float("nan")
        rise = max(curve[after] - curve[after - 1], 1e-12)
        part = (wanted - curve[after - 1]) / rise
        return float(np.exp(places[after - 1] + part * (places[after] - places[after - 1])))

    @cached_property
    def _reach(self) -> tuple[Floats, tuple[Floats, Floats]]:
        places = np.linspace(self.knots[0] - 2.5, self.knots[-1] + 2.5, 601)
        return places, self._curve(places)

    def _curve(self, places: Floats) -> tuple[Floats, Floats]:
        """The probit of F and its standard error at places in log seconds."""
        basis = spline(self.knots, places)
        variance = ((basis @ self.covariance) * basis).sum(axis=1)
        return basis @ self.probits, np.sqrt(np.maximum(variance, 0))


def knots_for(times: Intervals, share: Floats) -> Floats:
    """Equal steps of log time over all but the outermost hundredth of the mass."""
    ends = np.interp([0.01, 0.99], share[1:-1], np.log(times.bounds[1:-1]))
    middle, reach = ends.mean(), max(float(np.diff(ends)[0]), 0.2)
    return np.linspace(middle - reach / 2, middle + reach / 2, KNOTS)


def smooth(
    times: Intervals, knots: Floats, *, user: Ints | None = None, like: Floats | None = None
) -> Smooth:
    """The smooth maximum of the likelihood of the intervals.

    Parameters
    ----------
    times
        What is known.
    knots
        In log seconds.
    user
        For each row, its user; rows of one user count as one observation of the variance.
    like
        Probits at the knots of a curve to lean on: its bends are the ones that cost nothing. A straight line,
        the log-normal distribution, where there is none.
    """
    basis = np.zeros((len(times.bounds), len(knots)))
    basis[1:-1] = spline(knots, np.log(times.bounds[1:-1]))
    bends = np.diff(np.eye(len(knots)), 2, axis=0) / BEND
    penalty = bends.T @ bends + 1e-6 * np.eye(len(knots))
    centre = np.zeros(len(knots)) if like is None else like
    probits = np.linspace(-1.5, 1.5, len(knots)) if like is None else like

    def value(at: Floats) -> float:
        inside = _inside(times, basis @ at)[0]
        if inside.min(initial=1) <= TINY:  # the curve falls somewhere: not a distribution
            return -np.inf
        return float(times.rows @ np.log(inside) - 0.5 * (at - centre) @ penalty @ (at - centre))

    now = value(probits)
    for _ in range(60):
        scores, curvature = _scores(times, basis, probits)
        slope = times.rows @ scores - penalty @ (probits - centre)
        step = np.linalg.solve(curvature + penalty, slope)
        stride = 1.0
        while (then := value(probits + stride * step)) < now and stride > 1e-4:
            stride /= 2
        if then < now:
            break
        probits, gained, now = probits + stride * step, then - now, then
        if gained < 1e-7:
            break
    scores, curvature = _scores(times, basis, probits)
    bread = np.linalg.inv(curvature + penalty)
    if user is None:
        meat = (scores * times.rows[:, None]).T @ scores
    else:
        if user.max(initial=0) >= len(user):  # more numbers than rows: close the gaps
            user = np.unique(user, return_inverse=True)[1]
        where = (user, times.pair)
        shape = (int(user.max(initial=0)) + 1, len(times.rows))
        each: Floats = np.asarray(sparse.csr_array((np.ones(len(user)), where), shape=shape) @ scores)
        meat = each.T @ each
    return Smooth(knots, probits, bread @ (meat + penalty) @ bread)


def normal_scores(times: Intervals, curve: Smooth) -> Floats:
    """For each pair, the expected probit of its time under the curve: above 0 where it is slow."""
    inside, below, above = _inside(times, _probits(times, curve))
    return (below - above) / inside


def shifts(times: Intervals, curve: Smooth, group: Ints, width: int) -> tuple[Floats, Floats]:
    """By how many probits each group of rows is slower than the curve, and the standard error of that."""
    flat, count = np.unique(group * len(times.rows) + times.pair, return_counts=True)
    of, pair = flat // len(times.rows), flat % len(times.rows)
    probit = _probits(times, curve)
    low, high = probit[times.low[pair]], probit[times.high[pair]]
    shift = np.zeros(width)
    for _ in range(25):
        inside, below, above, bend = _normal(low - shift[of], high - shift[of])
        score = (below - above) / inside
        slope = np.bincount(of, count * score, width)
        curvature = np.bincount(of, count * (bend / inside + score**2), width)
        step = np.clip(slope / np.maximum(curvature, 1e-9), -1, 1)
        shift += step
        if np.abs(step).max(initial=0) < 1e-8:
            break
    return shift, 1 / np.sqrt(np.maximum(curvature, 1e-9))


def _probits(times: Intervals, curve: Smooth) -> Floats:
    inner = np.clip(spline(curve.knots, np.log(times.bounds[1:-1])) @ curve.probits, -8, 8)
    return np.concatenate([[-np.inf], np.maximum.accumulate(inner), [np.inf]])


def _normal(low: Floats, high: Floats) -> tuple[Floats, Floats, Floats, Floats]:
    """P(low < Z ≤ high), the density at both, and by how much z · density is larger at high."""
    upper = low > 0  # differences of small upper tails keep their digits
    a, b = np.where(upper, -high, low), np.where(upper, -low, high)
    inside = np.maximum(special.ndtr(b) - special.ndtr(a), TINY)
    below, above = (np.exp(-0.5 * z**2) / np.sqrt(2 * np.pi) for z in (low, high))
    bend = np.where(np.isfinite(high), high, 0) * above - np.where(np.isfinite(low), low, 0) * below
    return inside, below, above, bend


def spline(knots: Floats, places: Floats) -> Floats:
    """Natural cubic spline through 1 at one knot and 0 at the others; straight beyond the ends."""
    curve = interpolate.CubicSpline(knots, np.eye(len(knots)), bc_type="natural")
    near = np.clip(places, knots[0], knots[-1])
    found: Floats = curve(near) + curve(near, 1) * (places - near)[:, None]
    return found


def _inside(times: Intervals, probit: Floats) -> tuple[Floats, Floats, Floats]:
    """The probability of each pair under the curve, and the density at its ends."""
    probit = np.clip(probit, -30, 30)
    probit[0], probit[-1] = -np.inf, np.inf
    return _normal(probit[times.low], probit[times.high])[:3]


def _scores(times: Intervals, basis: Floats, probits: Floats) -> tuple[Floats, Floats]:
    """Slope of log-likelihood for each pair, and its curvature over all rows, in the probits at the knots."""
    probit = np.clip(basis @ probits, -30, 30)
    inside, below, above = _inside(times, probit)
    u, v = below / inside, above / inside
    at_low, at_high = basis[times.low], basis[times.high]
    scores = v[:, None] * at_high - u[:, None] * at_low
    ends = np.bincount(times.high, times.rows * v, len(basis)) - np.bincount(
        times.low, times.rows * u, len(basis)
    )
    ends[[0, -1]] = 0
    curvature = (scores * times.rows[:, None]).T @ scores + (basis * (ends * probit)[:, None]).T @ basis
    return scores, curvature
