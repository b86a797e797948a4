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

import itertools
from collections.abc import Sequence
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
#: Groups that are fitted at once, and how often the penalty is weighed anew at the most.
TOGETHER = 32
TURNS = 60
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
        if wanted < curve[0]:
            return float(np.exp(places[0] - (curve[0] - wanted) / self._slopes(curve)[0]))
        if wanted > curve[-1]:
            beyond = (wanted - curve[-1]) / self._slopes(curve)[1] if self.is_whole else float("inf")
            return float(np.exp(places[-1] + beyond))
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
    """The time of each group cut into cells, the last of them all that lies beyond, and its pairs among them.

    Groups have as many cells as the one that has most: the others have some of no width before the last.

    Attributes
    ----------
    edges, widths
        Log seconds where each cell begins, and how wide it is; a row a group.
    inner
        How many cells of each group have an end.
    low, high
        For each pair, all groups' in a row, the cell that it begins with and the one that it ends before.
    of
        The group of each pair.
    """

    edges: Floats
    widths: Floats
    inner: Ints
    low: Ints
    high: Ints
    of: Ints

    @classmethod
    def of_groups(cls, groups: Sequence[Intervals]) -> Self:
        found = [_cut(times) for times in groups]
        inner = np.array([len(edges) - 1 for edges, _, _ in found])
        width = int(inner.max()) + 1
        edges = np.stack([np.pad(each, (0, width - len(each)), mode="edge") for each, _, _ in found])
        widths = np.diff(edges, axis=1, append=edges[:, -1:] + 1)
        low, high = (np.concatenate([each[end] for each in found]) for end in (1, 2))
        of = np.repeat(np.arange(len(groups)), [len(times.rows) for times in groups])
        return cls(edges, widths, inner, low, np.where(high > inner[of], width, high), of)

    def take(self, kept: Bools) -> Self:
        """These groups of it."""
        pairs, place = kept[self.of], np.cumsum(kept) - 1
        return type(self)(
            self.edges[kept],
            self.widths[kept],
            self.inner[kept],
            self.low[pairs],
            self.high[pairs],
            place[self.of[pairs]],
        )

    @cached_property
    def first(self) -> Ints:
        """The number of each group's first pair."""
        return np.flatnonzero(np.diff(self.of, prepend=-1))

    def totals(self, of_pairs: Floats) -> Floats:
        """For each group, the sum over its pairs."""
        return np.add.reduceat(of_pairs, self.first, axis=0)

    def parts(self, of_pairs: Floats) -> list[Floats]:
        """Each group's pairs of it."""
        return np.split(of_pairs, self.first[1:])

    def sums(self, of_cells: Floats) -> Floats:
        """For each pair, the sum over its cells, which are the second axis."""
        groups, cells, width = of_cells.shape
        total = np.zeros((groups, cells + 1, width))
        np.cumsum(of_cells, axis=1, out=total[:, 1:])
        return np.asarray(self._ends @ total.reshape(-1, width))

    def spread(self, of_pairs: Floats) -> Floats:
        """For each cell, the sum over the pairs that it is in: `sums` the other way round."""
        groups, cells = self.widths.shape
        begun = np.asarray(self._ends.T @ of_pairs).reshape(groups, cells + 1, -1)
        return -np.cumsum(begun, axis=1)[:, :-1]

    @cached_property
    def _ends(self) -> "sparse.csr_array[np.float64]":
        """A matrix with −1 where a pair begins and 1 where it ends."""
        pairs, (groups, cells) = len(self.of), self.widths.shape
        where = (self.of * (cells + 1) + np.stack([self.low, self.high])).T.ravel()
        signs = np.tile([-1.0, 1.0], pairs)
        return sparse.csr_array(
            (signs, where, np.arange(0, 2 * pairs + 1, 2)), shape=(pairs, groups * (cells + 1))
        )


def _cut(times: Intervals) -> tuple[Floats, Ints, Ints]:
    """The edges of a group's cells, and for each pair the cell that it begins with and the one that it ends before."""
    with np.errstate(divide="ignore"):
        logs = np.log(times.bounds)
    start, end = _span(times, logs)
    inner = logs[(logs > start) & (logs < end)]
    around = np.concatenate([[start], inner, [end]])
    even = np.linspace(start, end, CELLS + 1)[1:-1]
    wide = np.diff(around)[np.searchsorted(inner, even)] > (end - start) / CELLS
    edges = np.unique(np.concatenate([around, even[wide]]))
    place = np.searchsorted(edges, np.clip(logs, start, end))
    place[-1] = len(edges)
    low, high = place[times.low], np.maximum(place[times.high], 1)
    return edges, np.minimum(low, high - 1), high


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
    """The penalised likelihood of the counts of each group's pairs; groups are the first axis, draws the last."""

    cells: _Cells
    basis: Floats

    @classmethod
    def of_groups(cls, groups: Sequence[Intervals], splines: int) -> Self:
        cells = _Cells.of_groups(groups)
        steps = splines - 3
        start, end = cells.edges[:, :1], cells.edges[:, -1:]
        middles = (cells.edges[:, :-1] + cells.edges[:, 1:]) / 2
        places = np.clip((middles - start) / (end - start), 0, 1) * steps
        knots = np.arange(-3.0, steps + 4)
        basis = np.zeros((*cells.widths.shape, splines + 1))
        design = interpolate.BSpline.design_matrix(places.ravel(), knots, 3)
        basis[:, :-1, :-1] = design.toarray().reshape(*places.shape, splines)
        basis[:, -1, -1] = 1.0
        return cls(cells, basis)

    def take(self, kept: Bools) -> Self:
        """These groups of it."""
        return type(self)(self.cells.take(kept), self.basis[kept])

    @cached_property
    def bends(self) -> Floats:
        """Third differences of the parameters."""
        width = self.basis.shape[2]
        return np.diff(np.eye(width - 1, width), 3, axis=0)

    def stiffness(self, weight: Floats) -> Floats:
        """The curvature of the penalty; a ridge keeps what the rows do not say from drifting."""
        ridge = 1e-6 * np.eye(self.basis.shape[2])
        return weight[:, None, None] * (self.bends.T @ self.bends) + ridge

    def mass(self, at: Floats) -> Floats:
        """The probability of each cell; parameters are the second axis."""
        height = self.basis @ at
        mass = np.exp(height - height.max(axis=1, keepdims=True)) * self.cells.widths[:, :, None]
        found: Floats = mass / mass.sum(axis=1, keepdims=True)
        return found

    def value(
        self, rows: Floats, at: Floats, stiffness: Floats, bends: Floats | float = 0.0
    ) -> tuple[Floats, Floats, Floats]:
        """The penalised log-likelihood, the probability of each cell and of each pair."""
        mass = self.mass(at)
        inside = np.maximum(self.cells.sums(mass), TINY)
        cost = (at * (stiffness @ at / 2 - bends)).sum(axis=1)
        return (
            self.cells.totals(rows * np.log(inside)) + NEVER * np.log(mass[:, -1]) - cost,
            mass,
            inside,
        )

    def slope(
        self,
        rows: Floats,
        mass: Floats,
        inside: Floats,
        at: Floats,
        stiffness: Floats,
        bends: Floats | float = 0.0,
    ) -> Floats:
        """Of the penalised log-likelihood, in the parameters."""
        n = self.cells.totals(rows)[:, None] + NEVER
        expected = mass * (self.cells.spread(rows / inside) - n)
        expected[:, -1] += NEVER
        found: Floats = self.basis.transpose(0, 2, 1) @ expected - stiffness @ at + bends
        return found

    def rises(self, mass: Floats) -> Floats:
        """By how much the probability of each cell rises with each parameter."""
        found: Floats = mass * (self.basis - mass.transpose(0, 2, 1) @ self.basis)
        return found

    def information(self, rows: Floats, mass: Floats, inside: Floats) -> Floats:
        """The curvature of the log-likelihood, as the spread of the rows' scores."""
        rises = self.rises(mass)
        scores = self.cells.sums(rises) * (np.sqrt(rows) / inside)
        beyond = rises[:, -1] / mass[:, -1]
        return _squares(self.cells.parts(scores)) + NEVER * beyond[:, :, None] * beyond[:, None]

    def start(self, rows: Floats) -> Floats:
        """The parameters of a normal density with the mean and spread of the middles of the pairs."""
        cells = self.cells
        last = cells.edges.shape[1] - 1
        low, high = (cells.edges[cells.of, np.minimum(end, last)] for end in (cells.low, cells.high))
        middle, beyond = (low + high) / 2, low >= cells.edges[cells.of, -1]
        n = cells.totals(rows)
        mean = cells.totals(rows * middle) / n
        spread = np.maximum(cells.totals(rows * (middle - mean[cells.of]) ** 2) / n, 0.01)
        places = np.linspace(cells.edges[:, 0], cells.edges[:, -1], self.basis.shape[2] - 1, axis=1)
        at = np.zeros((len(n), self.basis.shape[2], 1))
        at[:, :-1, 0] = -0.5 * (places - mean[:, None]) ** 2 / spread[:, None]
        inner = (np.exp(self.basis @ at)[..., 0] * cells.widths)[:, :-1].sum(axis=1)
        at[:, -1, 0] = np.log((cells.totals(rows * beyond) + NEVER) / n * inner)
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
    return smooth_each([times], None if user is None else [user], draws=draws)[0]


def smooth_each(
    groups: Sequence[Intervals], users: Sequence[Ints] | None = None, *, draws: int = 0
) -> list[Smooth]:
    """`smooth` of each group; many at once take a third of the time that they take one by one."""
    splines = [SPLINES if times.rows.sum() >= MANY_ROWS else FEW_SPLINES for times in groups]
    order = sorted(range(len(groups)), key=lambda place: (splines[place], len(groups[place].rows)))
    found: dict[int, Smooth] = {}
    for width, alike in itertools.groupby(order, key=splines.__getitem__):
        while part := list(itertools.islice(alike, TOGETHER)):
            own = None if users is None else [users[place] for place in part]
            fits = _fitted([groups[place] for place in part], own, width, draws)
            found.update(zip(part, fits, strict=True))
    return [found[place] for place in range(len(groups))]


def _fitted(
    groups: Sequence[Intervals], users: Sequence[Ints] | None, splines: int, draws: int
) -> list[Smooth]:
    model = _Model.of_groups(groups, splines)
    rows = np.concatenate([times.rows for times in groups])
    best = _maximum(model, rows)
    members = None if users is None else [_members(*each) for each in zip(groups, users, strict=True)]
    errors = _drawn(model, members, best, draws) if members and draws else _linear(model, rows, members, best)
    shares = np.cumsum(model.mass(best.at)[..., 0], axis=1)
    return [
        _curve(edges[1 : inner + 1], share[:inner], error[:inner], bends)
        for edges, inner, share, error, bends in zip(
            model.cells.edges, model.cells.inner, shares, errors, best.bends, strict=True
        )
    ]


def _curve(places: Floats, share: Floats, error: Floats, bends: float) -> Smooth:
    """The curve through these shares at these places, on the scale of probits."""
    inner = _trusted(share)
    probits = special.ndtri(share[inner])
    density = np.exp(-0.5 * probits**2) / np.sqrt(2 * np.pi)
    return Smooth(places[inner], probits, error[inner] / density, float(bends), bool(share[-1] > 1 - OUTER))


def _trusted(share: Floats) -> Bools:
    """Where F is neither 0 nor 1; all of it where that is nowhere."""
    inner = (share > OUTER) & (share < 1 - OUTER)
    if inner.sum() < 2:
        inner = (share > TINY) & (share < 1 - 1e-12)
    return inner


class _Best(NamedTuple):
    """Of each group: parameters, the penalty's weight, the inverse of the curvature, how many parameters it is worth."""

    at: Floats
    weight: Floats
    inverse: Floats
    bends: Floats


def _maximum(model: _Model, rows: Floats) -> _Best:
    """The maximum of the penalised likelihood, under the weight that has the largest marginal likelihood."""
    groups, _, width = model.basis.shape
    best = _Best(*(np.zeros(shape) for shape in ((groups, width, 1), groups, (groups, width, width), groups)))
    left = np.arange(groups)
    at, weight, bends, rows = model.start(rows), np.full(groups, STIFF), np.zeros(groups), rows[:, None]
    penalty = model.bends.T @ model.bends
    stiffness = model.stiffness(weight)
    now, mass, inside = model.value(rows, at, stiffness)
    for turn in range(TURNS):
        information = model.information(rows, mass, inside)
        inverse = np.linalg.inv(information + stiffness)
        step = _limited(inverse @ model.slope(rows, mass, inside, at, stiffness))
        while True:
            then, mass, inside = model.value(rows, at + step, stiffness)
            if not (short := (then < now) & (np.abs(step).max(axis=1) > 1e-6)).any():
                break
            step = np.where(short[:, None], step / 2, step)
        at, gained, now = at + step, (then - now)[:, 0], then
        was, bends = bends, (inverse * information).sum(axis=(1, 2))
        done = (np.abs(gained) < 1e-2) & (np.abs(bends - was) < 0.05) & (turn > 1) | (turn == TURNS - 1)
        for all_of_it, of_these in zip(best, (at, weight, inverse, bends), strict=True):
            all_of_it[left[done]] = of_these[done]
        if done.all():
            break
        free = len(model.bends) - weight * (inverse * penalty).sum(axis=(1, 2))
        bent, before = np.maximum((at * (penalty @ at)).sum(axis=(1, 2)), TINY), weight
        weight = np.clip(np.clip(free / bent, weight / 30, weight * 30), 1e-3, 1e7)
        now = now - 0.5 * ((weight - before) * bent)[:, None]
        if done.any():
            kept, pairs = ~done, ~done[model.cells.of]
            model, rows, mass, inside = model.take(kept), rows[pairs], mass[kept], inside[pairs]
            left, at, now, weight, bends = (each[kept] for each in (left, at, now, weight, bends))
        stiffness = model.stiffness(weight)
    return best


def _squares(of_groups: Sequence[Floats]) -> Floats:
    """For each group, the sums of products over its rows."""
    return np.stack([own.T @ own for own in of_groups])


def _limited(step: Floats) -> Floats:
    """No parameter by more than 5."""
    found: Floats = step * np.minimum(1.0, 5.0 / np.maximum(np.abs(step).max(axis=1, keepdims=True), TINY))
    return found


def _drawn(
    model: _Model, members: "Sequence[sparse.csr_array[np.float64]]", best: _Best, draws: int
) -> Floats:
    """The standard error of F at the edges: its spread over fits to users drawn anew."""
    rng = np.random.default_rng(0)
    often = rng.poisson(1.0, (BUNDLES, draws)).astype(np.float64)
    rows = np.concatenate([own.T @ often for own in members])
    strength = np.sqrt(best.weight)[:, None, None]
    bends = strength * (model.bends.T @ rng.standard_normal((len(model.bends), draws)))
    stiffness = model.stiffness(best.weight)
    at = np.repeat(best.at, draws, axis=2)
    now, mass, inside = model.value(rows, at, stiffness, bends)
    for _ in range(4):
        step = _limited(best.inverse @ model.slope(rows, mass, inside, at, stiffness, bends))
        for _ in range(4):
            then, mass, inside = model.value(rows, at + step, stiffness, bends)
            if (good := then >= now).all():
                break
            step = np.where(good[:, None], step, step / 4)
        at, now = at + step, then
    found: Floats = np.cumsum(mass, axis=1)[:, :-1].std(axis=2)
    return found


def _linear(
    model: _Model, rows: Floats, members: "Sequence[sparse.csr_array[np.float64]] | None", best: _Best
) -> Floats:
    """The same to first order: what one step of the fit from its maximum to each draw comes to."""
    mass = model.mass(best.at)
    rises = model.rises(mass)
    scores = model.cells.sums(rises) / np.maximum(model.cells.sums(mass), TINY)
    if members is None:
        of_users = model.cells.parts(np.sqrt(rows)[:, None] * scores)
    else:
        parts = model.cells.parts(scores)
        of_users = [np.asarray(own @ part) for own, part in zip(members, parts, strict=True)]
    penalty = best.weight[:, None, None] * (model.bends.T @ model.bends)
    spread = best.inverse @ (_squares(of_users) + penalty) @ best.inverse
    along = np.cumsum(rises, axis=1)[:, :-1]
    found: Floats = np.sqrt(np.maximum(((along @ spread) * along).sum(axis=2), 0))
    return found


def _members(times: Intervals, user: Ints) -> "sparse.csr_array[np.float64]":
    """How many rows of each pair each bundle of users has."""
    bundle = (user % BUNDLES).astype(np.int16)  # short numbers are sorted in one pass
    pairs = times.pair[np.argsort(bundle, kind="stable")]
    ends = np.cumsum(np.bincount(bundle, minlength=BUNDLES))
    shape = (BUNDLES, len(times.rows))
    return sparse.csr_array((np.ones(len(user)), pairs, np.append(0, ends)), shape=shape)


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
