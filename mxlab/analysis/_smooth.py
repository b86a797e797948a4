"""A smooth distribution of times that are known as intervals, its smoothness found from the times themselves.

The logarithm of the density of log time is a cubic spline of many knots whose third differences are
penalised: what costs nothing is a normal density, so few times give a log-normal distribution and many give
whatever shape they have, peaks and heavy tails included. Only counts of distinct intervals enter, and a row
known only as "between these" is a sum of cells. How strongly bends are penalised is where the marginal
likelihood is largest. Errors are those of the same fit to users drawn anew.

Sources: B. W. Silverman, Ann. Stat. 10 (1982) 795, doi:10.1214/aos/1176345872 (the penalty);
P. H. C. Eilers, Stat. Modelling 7 (2007) 239, doi:10.1177/1471082X0700700302 (counts of sums of cells);
S. N. Wood, M. Fasiolo, Biometrics 73 (2017) 1071, doi:10.1111/biom.12666 (the weight of the penalty);
J. M. Bardsley and others, SIAM J. Sci. Comput. 36 (2014) A1895, doi:10.1137/140964023 (fits to data and to
bends drawn anew); J. A. Hanley, B. MacGibbon, Comput. Methods Programs Biomed. 83 (2006) 57,
doi:10.1016/j.cmpb.2006.04.006 (a bootstrap by Poisson weights); R. S. Woodruff, J. Am. Stat. Assoc. 47 (1952)
635, doi:10.1080/01621459.1952.10483443 (intervals of quantiles from those of shares).
"""

from dataclasses import dataclass
from functools import cached_property
from typing import NamedTuple, Self

import numpy as np
from scipy import interpolate, sparse, special

from mxlab.analysis._censored import TINY, Intervals
from mxlab.analysis._inputs import Bools, Floats, Ints

#: Splines over the times, of few rows and of many, and the cells that time is cut into at the least.
FEW_SPLINES, SPLINES = 15, 30
MANY_ROWS = 5_000
#: The weight of the penalty to begin with.
STIFF = 1_000.0
CELLS = 100
#: Log seconds that the curve goes on beyond all but the outermost times.
MARGIN = 0.7
#: Rows that are taken to never end, so that the chance of it is above zero.
NEVER = 0.01
#: How often users are drawn anew, and in how many bundles at the most.
DRAWS = 200
BUNDLES = 1_000
#: Shares outside these are read from the slope at their ends.
OUTER = 1e-3


@dataclass(frozen=True)
class Smooth:
    """A smooth distribution function of time.

    Attributes
    ----------
    places
        Log seconds, rising.
    probits, errors
        The probit of F there, and its standard error.
    bends
        How many parameters the curve is worth: 3 for a log-normal one.
    is_whole
        Whether it goes on to 1 beyond the last place; else it stays: the rest was not seen to end.
    """

    places: Floats
    probits: Floats
    errors: Floats
    bends: float
    is_whole: bool

    def share(self, seconds: Floats, errors: float = 0.0) -> Floats:
        """F at these times, moved by so many standard errors of its probit."""
        found: Floats = special.ndtr(self._at(np.log(np.maximum(seconds, TINY)), errors))
        return found

    def probit(self, bounds: Floats) -> Floats:
        """The probit of F at bounds from 0 to infinity, never farther out than 8."""
        inner = np.clip(self._at(np.log(bounds[1:-1]), 0.0), -8, 8)
        return np.concatenate([[-np.inf], inner, [np.inf]])

    def quantile(self, share: float, errors: float = 0.0) -> float:
        """The time at which F, so moved, reaches this share; infinite where it does not."""
        curve = np.maximum.accumulate(self.probits + errors * self.errors)
        places = self.places
        wanted = float(special.ndtri(share))
        first, last = self._slopes(curve)
        if wanted < curve[0]:
            return float(np.exp(places[0] - (curve[0] - wanted) / first))
        if wanted > curve[-1]:
            return float(np.exp(places[-1] + (wanted - curve[-1]) / last)) if self.is_whole else float("inf")
        after = max(int(np.searchsorted(curve, wanted)), 1)
        part = (wanted - curve[after - 1]) / max(curve[after] - curve[after - 1], TINY)
        return float(np.exp(places[after - 1] + part * (places[after] - places[after - 1])))

    def _at(self, places: Floats, errors: float) -> Floats:
        curve = np.maximum.accumulate(self.probits + errors * self.errors)
        first, last = self._slopes(curve)
        below, above = np.minimum(places - self.places[0], 0), np.maximum(places - self.places[-1], 0)
        found: Floats = np.interp(places, self.places, curve) + first * below + last * above
        return found

    def _slopes(self, curve: Floats) -> tuple[float, float]:
        """How the curve goes on at either end: as over a quarter of a probit, and never flat unless it stays."""
        places = self.places
        inner, outer = np.searchsorted(curve, [curve[0] + 0.25, curve[-1] - 0.25])
        inner, outer = min(max(int(inner), 1), len(curve) - 1), min(int(outer), len(curve) - 2)
        first = (curve[inner] - curve[0]) / max(places[inner] - places[0], TINY)
        last = (curve[-1] - curve[outer]) / max(places[-1] - places[outer], TINY)
        return max(float(first), 0.1), max(float(last), 0.1) if self.is_whole else 0.0

    @property
    def reach(self) -> float:
        """The share that is seen to end."""
        return 1.0 if self.is_whole else float(special.ndtr(self.probits[-1]))


@dataclass(frozen=True)
class _Cells:
    """Time cut into cells, the last of them all that lies beyond, and the pairs of bounds among them."""

    edges: Floats
    widths: Floats
    low: Ints
    high: Ints

    @classmethod
    def of(cls, times: Intervals) -> Self:
        with np.errstate(divide="ignore"):
            logs = np.log(times.bounds)
        start, end = _span(times, logs)
        inner = logs[(logs > start) & (logs < end)]
        edges = np.unique(np.concatenate([np.linspace(start, end, CELLS + 1), inner]))
        place = np.searchsorted(edges, np.clip(logs, start, end))
        place[-1] = len(edges)
        low, high = place[times.low], np.maximum(place[times.high], 1)
        return cls(edges, np.append(np.diff(edges), 1.0), np.minimum(low, high - 1), high)

    def sums(self, of_cells: Floats) -> Floats:
        """For each pair, the sum over its cells, which are the first axis."""
        total = np.zeros((len(of_cells) + 1, *of_cells.shape[1:]))
        np.cumsum(of_cells, axis=0, out=total[1:])
        found: Floats = total[self.high] - total[self.low]
        return found

    def spread(self, of_pairs: Floats) -> Floats:
        """For each cell, the sum over the pairs that it is in: `sums` the other way round."""
        if of_pairs.ndim == 1:
            width = len(self.widths) + 1
            begun = np.bincount(self.low, of_pairs, width) - np.bincount(self.high, of_pairs, width)
        else:
            begun = np.asarray(self._ends @ of_pairs)
        found: Floats = np.cumsum(begun, axis=0)[:-1]
        return found

    @cached_property
    def _ends(self) -> "sparse.csr_array[np.float64]":
        """A matrix with 1 where a pair begins and −1 where it ends."""
        pairs = np.arange(len(self.low))
        signs = np.repeat([1.0, -1.0], len(pairs))
        where = (np.concatenate([self.low, self.high]), np.tile(pairs, 2))
        return sparse.csr_array((signs, where), shape=(len(self.widths) + 1, len(pairs)))


def _span(times: Intervals, logs: Floats) -> tuple[float, float]:
    """From where to where the curve has a shape: most of the finished, and some more."""
    finite = np.isfinite(logs[times.high])
    high, low = logs[times.high][finite], logs[times.low][finite]
    middle = np.where(np.isfinite(low), (np.maximum(low, high - 20) + high) / 2, high - 1)
    order = np.argsort(middle)
    share = np.cumsum(times.rows[finite][order])
    first, last = middle[order][np.searchsorted(share, np.array([0.004, 0.996]) * share[-1])]
    margin = max(MARGIN, (0.6 - last + first) / 2)
    return float(first - margin), float(last + margin)


@dataclass(frozen=True)
class _Model:
    """The penalised likelihood of counts of pairs."""

    cells: _Cells
    basis: Floats
    bends: Floats
    penalty: Floats
    ridge: Floats

    @classmethod
    def of(cls, times: Intervals) -> Self:
        cells = _Cells.of(times)
        start, end = cells.edges[[0, -1]]
        splines = SPLINES if times.rows.sum() >= MANY_ROWS else FEW_SPLINES
        steps = splines - 3
        knots = start + (end - start) * np.arange(-3, steps + 4) / steps
        middles = (cells.edges[:-1] + cells.edges[1:]) / 2
        basis = np.zeros((len(cells.widths), splines + 1))
        basis[:-1, :-1] = interpolate.BSpline.design_matrix(middles, knots, 3).toarray()
        basis[-1, -1] = 1.0
        bends = np.diff(np.eye(splines, splines + 1), 3, axis=0)
        # The ridge keeps what the rows do not say from drifting.
        return cls(cells, basis, bends, bends.T @ bends, 1e-6 * np.eye(splines + 1))

    def mass(self, at: Floats) -> Floats:
        """The probability of each cell; parameters are the first axis."""
        height = self.basis @ at
        mass = np.exp(height - height.max(axis=0)) * self.cells.widths.reshape(-1, *[1] * (at.ndim - 1))
        found: Floats = mass / mass.sum(axis=0)
        return found

    def value(
        self, rows: Floats, at: Floats, weight: float, bends: Floats | None = None
    ) -> tuple[Floats, Floats, Floats]:
        """The penalised log-likelihood, the probability of each cell and of each pair."""
        mass = self.mass(at)
        inside = np.maximum(self.cells.sums(mass), TINY)
        cost = 0.5 * (at * ((weight * self.penalty + self.ridge) @ at)).sum(axis=0)
        if bends is not None:
            cost -= (bends * at).sum(axis=0)
        return (rows * np.log(inside)).sum(axis=0) + NEVER * np.log(mass[-1]) - cost, mass, inside

    def slope(
        self,
        rows: Floats,
        mass: Floats,
        inside: Floats,
        at: Floats,
        weight: float,
        bends: Floats | float = 0.0,
    ) -> Floats:
        """Of the penalised log-likelihood, in the parameters."""
        expected = mass * self.cells.spread(rows / inside) - rows.sum(axis=0) * mass
        expected[-1] += NEVER
        expected -= NEVER * mass
        found: Floats = self.basis.T @ expected - (weight * self.penalty + self.ridge) @ at + bends
        return found

    def start(self, rows: Floats) -> Floats:
        """The parameters of a normal density with the mean and spread of the middles of the pairs."""
        edges = self.cells.edges
        last = len(edges) - 1
        middle = (edges[np.minimum(self.cells.low, last)] + edges[np.minimum(self.cells.high, last)]) / 2
        n = rows.sum()
        mean = rows @ middle / n
        spread = max(rows @ (middle - mean) ** 2 / n, 0.01)
        places = np.linspace(edges[0], edges[-1], self.basis.shape[1] - 1)
        at = np.append(-0.5 * (places - mean) ** 2 / spread, 0.0)
        beyond = rows @ (self.cells.low >= last) + NEVER
        at[-1] = np.log(beyond / n * (np.exp(self.basis @ at) * self.cells.widths)[:-1].sum())
        return at


def smooth(times: Intervals, user: Ints | None = None, *, draws: int = 0) -> Smooth:
    """The smooth maximum of the likelihood of the intervals.

    Parameters
    ----------
    times
        What is known; some of it finished.
    user
        For each row, its user, who is drawn anew for the errors; without it rows are drawn.
    draws
        How often; 0 for what the errors of many draws come to if the fit is linear in its rows.
    """
    model = _Model.of(times)
    best = _maximum(model, times.rows)
    mass = model.mass(best.at)
    share = np.cumsum(mass)[:-1]
    inner = _trusted(share)
    probits = special.ndtri(share[inner])
    if user is not None and draws:
        error = _drawn(model, times, user, best, draws)
    else:
        error = _linear(model, times, user, best)
    density = np.exp(-0.5 * probits**2) / np.sqrt(2 * np.pi)
    return Smooth(
        model.cells.edges[1:][inner], probits, error[inner] / density, best.bends, bool(share[-1] > 1 - OUTER)
    )


def _trusted(share: Floats) -> Bools:
    """Where F is neither 0 nor 1; all of it where that is nowhere."""
    inner = (share > OUTER) & (share < 1 - OUTER)
    if inner.sum() < 2:
        inner = (share > TINY) & (share < 1 - 1e-12)
    return inner


class _Best(NamedTuple):
    """Parameters, the penalty's weight, the inverse of the curvature, and how many parameters it is worth."""

    at: Floats
    weight: float
    inverse: Floats
    bends: float


def _maximum(model: _Model, rows: Floats) -> _Best:
    """The maximum of the penalised likelihood, under the weight that has the largest marginal likelihood."""
    at, weight, bends = model.start(rows), STIFF, 0.0
    now, mass, inside = model.value(rows, at, weight)
    for turn in range(60):
        information = _information(model, rows, mass, inside)
        inverse = np.linalg.inv(information + weight * model.penalty + model.ridge)
        step = inverse @ model.slope(rows, mass, inside, at, weight)
        step *= min(1.0, 5.0 / max(float(np.abs(step).max()), TINY))
        while (found := model.value(rows, at + step, weight))[0] < now and np.abs(step).max() > 1e-6:
            step /= 2
        at, gained, (now, mass, inside) = at + step, found[0] - now, found
        was, bends = bends, float(np.vdot(inverse, information))
        if turn > 1 and abs(gained) < 2e-3 and abs(bends - was) < 0.05:
            break
        left = len(model.bends) - weight * float(np.vdot(inverse, model.penalty))
        bent, before = max(float(at @ model.penalty @ at), TINY), weight
        weight = float(np.clip(np.clip(left / bent, weight / 30, weight * 30), 1e-3, 1e7))
        now -= 0.5 * (weight - before) * bent
    return _Best(at, weight, np.asarray(inverse, dtype=np.float64), bends)


def _information(model: _Model, rows: Floats, mass: Floats, inside: Floats) -> Floats:
    """The curvature of the log-likelihood, as the spread of the rows' scores."""
    each = mass[:, None] * model.basis
    mean = each.sum(axis=0)
    scores = (model.cells.sums(each) / inside[:, None] - mean) * np.sqrt(rows)[:, None]
    beyond = model.basis[-1] - mean
    found: Floats = scores.T @ scores + NEVER * np.outer(beyond, beyond)
    return found


def _drawn(model: _Model, times: Intervals, user: Ints, best: _Best, draws: int) -> Floats:
    """The standard error of F at the edges: its spread over fits to users drawn anew."""
    rng = np.random.default_rng(0)
    members = _members(times, user)
    rows = members @ rng.poisson(1.0, (members.shape[1], draws)).astype(np.float64)
    bends = np.sqrt(best.weight) * model.bends.T @ rng.standard_normal((len(model.bends), draws))
    at = np.repeat(best.at[:, None], draws, axis=1)
    now, mass, inside = model.value(rows, at, best.weight, bends)
    for _ in range(4):
        step = best.inverse @ model.slope(rows, mass, inside, at, best.weight, bends)
        step *= np.minimum(1.0, 5.0 / np.maximum(np.abs(step).max(axis=0), TINY))
        for _ in range(4):
            then, mass, inside = model.value(rows, at + step, best.weight, bends)
            if (good := then >= now).all():
                break
            step = np.where(good, step, step / 4)
        at, now = at + step, then
    found: Floats = np.cumsum(mass, axis=0)[:-1].std(axis=1)
    return found


def _linear(model: _Model, times: Intervals, user: Ints | None, best: _Best) -> Floats:
    """The same to first order: what one step of the fit from its maximum to each draw comes to."""
    mass = model.mass(best.at)
    each = mass[:, None] * model.basis
    mean = each.sum(axis=0)
    scores = model.cells.sums(each) / model.cells.sums(mass)[:, None] - mean
    alone = np.sqrt(times.rows)[:, None] * scores
    of_users = alone if user is None else _members(times, user).T @ scores
    spread = best.inverse @ (of_users.T @ of_users + best.weight * model.penalty) @ best.inverse
    along = np.cumsum(mass[:, None] * (model.basis - mean), axis=0)[:-1]
    found: Floats = np.sqrt(np.maximum(((along @ spread) * along).sum(axis=1), 0))
    return found


def _members(times: Intervals, user: Ints) -> "sparse.csr_array[np.float64]":
    """How many rows of each pair each bundle of users has."""
    shape = (len(times.rows), BUNDLES)
    return sparse.csr_array((np.ones(len(user)), (times.pair, user % BUNDLES)), shape=shape)


def normal_scores(times: Intervals, curve: Smooth) -> Floats:
    """For each pair, the expected probit of its time under the curve: above 0 where it is slow."""
    inside, below, above = _normal(*_at_ends(times, curve))[:3]
    return (below - above) / inside


def shifts(times: Intervals, curve: Smooth, group: Ints, width: int) -> tuple[Floats, Floats]:
    """By how many probits each group of rows is slower than the curve, and the standard error of that."""
    flat, count = np.unique(group * len(times.rows) + times.pair, return_counts=True)
    of, pair = flat // len(times.rows), flat % len(times.rows)
    low, high = (probit[pair] for probit in _at_ends(times, curve))
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


def _at_ends(times: Intervals, curve: Smooth) -> tuple[Floats, Floats]:
    """The probit of the curve at both ends of each pair."""
    probit = curve.probit(times.bounds)
    return probit[times.low], probit[times.high]


def _normal(low: Floats, high: Floats) -> tuple[Floats, Floats, Floats, Floats]:
    """P(low < Z ≤ high), the density at both, and by how much z · density is larger at high."""
    upper = low > 0  # differences of small upper tails keep their digits
    a, b = np.where(upper, -high, low), np.where(upper, -low, high)
    inside = np.maximum(special.ndtr(b) - special.ndtr(a), TINY)
    below, above = (np.exp(-0.5 * z**2) / np.sqrt(2 * np.pi) for z in (low, high))
    bend = np.where(np.isfinite(high), high, 0) * above - np.where(np.isfinite(low), low, 0) * below
    return inside, below, above, bend
