"""The smooth curve of aggregation time, in worlds of many shapes whose truth scipy knows."""

import numpy as np
import pytest
from scipy import optimize, stats
from test_analysis_latency import SCHEDULES
from test_analysis_worlds import looks

from mxlab.analysis import _censored, _smooth

SHARES = np.array([0.5, 0.9])


class Mixture:
    """Two distributions, drawn from by chance."""

    def __init__(self, share, first, second):
        self.share, self.first, self.second = share, first, second

    def rvs(self, n, rng):
        is_first = rng.random(n) < self.share
        return np.where(is_first, self.first.rvs(n, random_state=rng), self.second.rvs(n, random_state=rng))

    def ppf(self, shares):
        def cdf(time):
            return self.share * self.first.cdf(time) + (1 - self.share) * self.second.cdf(time)

        return np.array([optimize.brentq(lambda t, p=p: cdf(t) - p, 1e-3, 1e6) for p in shares])


class Plain:
    def __init__(self, distribution):
        self.ppf, self._rvs = distribution.ppf, distribution.rvs

    def rvs(self, n, rng):
        return self._rvs(n, random_state=rng)


def lognormal(median, sigma):
    return stats.lognorm(sigma, scale=median)


#: Worlds, and how near 95 % of runs of 10,000 are to the true median and p90.
WORLDS = {
    "log-normal": (Plain(lognormal(40, 0.8)), 0.04),
    "weibull": (Plain(stats.weibull_min(1.4, scale=50)), 0.04),
    "gamma": (Plain(stats.gamma(2, scale=20)), 0.04),
    "exponential": (Plain(stats.expon(scale=40)), 0.04),
    "two peaks": (Mixture(0.6, lognormal(10, 0.3), lognormal(90, 0.3)), 0.04),
    "two close peaks": (Mixture(0.65, lognormal(15, 0.35), lognormal(60, 0.35)), 0.04),
    "pareto": (Plain(stats.lomax(1.5, scale=40)), 0.06),
    "burr": (Plain(stats.burr12(2, 0.8, scale=30)), 0.05),
    "wide log-normal": (Plain(lognormal(40, 1.6)), 0.06),
}


def known(rng, times, schedule):
    low, high = looks(rng, times, **schedule)
    return _censored.intervals(low, np.where(np.isnan(high), np.inf, high))


def errors_of(world, schedule, runs, n=10_000):
    """Relative errors of p50 and p90, and whether their 95 % intervals hold the truth, run by run."""
    truth, errors, covered = world.ppf(SHARES), [], []
    for run in range(runs):
        rng = np.random.default_rng([run, 11])
        curve = _smooth.smooth(known(rng, world.rvs(n, rng), schedule))
        found, low, high = (np.array([curve.quantile(p, z) for p in SHARES]) for z in (0, 1.96, -1.96))
        errors.append(found / truth - 1)
        covered.append((low <= truth) & (truth <= high))
    return np.array(errors), np.array(covered)


@pytest.mark.parametrize("schedule", SCHEDULES)
@pytest.mark.parametrize("name", WORLDS)
def test_quantiles_are_near_the_truth_whatever_the_shape(name, schedule):
    world, within = WORLDS[name]
    errors, _ = errors_of(world, schedule, runs=10)
    assert np.abs(errors.mean(axis=0)).max() <= 0.02
    assert np.abs(errors).max() <= 1.5 * within


@pytest.mark.slow
@pytest.mark.parametrize("schedule", SCHEDULES)
@pytest.mark.parametrize("name", WORLDS)
def test_quantiles_over_100_runs_whatever_the_shape(name, schedule, figures):
    world, within = WORLDS[name]
    errors, covered = errors_of(world, schedule, runs=100)
    case = f"aggregation time, {name}, {schedule['schedule']} {schedule.get('step', '')}".strip()
    figures[f"{case}: mean error of p50, p90"] = errors.mean(axis=0).round(4).tolist()
    figures[f"{case}: error within which 95 % of runs are"] = (
        np.quantile(np.abs(errors), 0.95, axis=0).round(4).tolist()
    )
    figures[f"{case}: intervals cover the truth"] = covered.mean(axis=0).tolist()
    steep = name == "two peaks" and schedule.get("step") == 30  # its median is 0.1 of log time from the cliff
    assert (np.abs(errors.mean(axis=0)) <= (0.02 if steep else 0.01)).all()
    assert (np.quantile(np.abs(errors), 0.95, axis=0) <= within).all()
    assert (covered.mean(axis=0) >= (0.75 if steep else 0.87)).all()


@pytest.mark.parametrize("schedule", SCHEDULES)
def test_a_median_between_two_peaks_has_an_interval_as_wide_as_the_gap(schedule):
    """Half before 20 s and half after 45 s: any time between is a median, and the interval says so."""
    world = Mixture(0.5, lognormal(10, 0.3), lognormal(90, 0.3))
    rng = np.random.default_rng(5)
    curve = _smooth.smooth(known(rng, world.rvs(10_000, rng), schedule))
    assert curve.quantile(0.5, 1.96) < 26
    assert curve.quantile(0.5, -1.96) > 34
    assert curve.quantile(0.9) == pytest.approx(world.ppf([0.9])[0], rel=0.03)


def test_a_log_normal_world_costs_three_parameters_and_two_peaks_more():
    rng = np.random.default_rng(2)
    plain = _smooth.smooth(known(rng, WORLDS["log-normal"][0].rvs(2_000, rng), {}))
    peaks = _smooth.smooth(known(rng, WORLDS["two peaks"][0].rvs(2_000, rng), {}))
    assert plain.bends == pytest.approx(3, abs=0.6)
    assert peaks.bends > 6


def test_users_drawn_anew_and_the_limit_to_first_order_agree():
    rng = np.random.default_rng(3)
    users = np.repeat(np.arange(500), 4)
    alike = 40 * np.exp(0.6 * rng.standard_normal(500)[users] + 0.5 * rng.standard_normal(2_000))
    times = known(rng, alike, {})
    drawn, limit = _smooth.smooth(times, users, draws=200), _smooth.smooth(times, users)
    alone = _smooth.smooth(times)
    places = np.log([15, 40, 100])
    of_drawn, of_limit, of_alone = (
        np.interp(places, curve.places, curve.errors) for curve in (drawn, limit, alone)
    )
    assert of_drawn == pytest.approx(of_limit, rel=0.2)
    assert (of_alone < 0.75 * of_limit).all()  # rows of one user say less than rows of as many users


@pytest.mark.parametrize("draws", [0, 60])
def test_many_groups_at_once_are_each_as_alone(draws):
    """Of sizes from 12 to 6,000, so that some have more splines, and of shapes that take more turns than others."""
    rng = np.random.default_rng(6)
    sizes = [6_000, 12, 300, 40, 900, 150] * 7
    worlds = [world for world, _ in WORLDS.values()]
    groups = [known(rng, worlds[place % len(worlds)].rvs(n, rng), {}) for place, n in enumerate(sizes)]
    users = [rng.integers(0, n // 2, n) for n in sizes]
    together = _smooth.smooth_each(groups, users, draws=draws)
    for times, user, curve in list(zip(groups, users, together, strict=True))[:12]:
        alone = _smooth.smooth(times, user, draws=draws)
        assert curve.bends == pytest.approx(alone.bends, rel=1e-3)
        for errors in (-1.96, 0, 1.96):
            assert curve.quantile(0.5, errors) == pytest.approx(alone.quantile(0.5, errors), rel=1e-4)


@pytest.mark.parametrize("n", [1, 2, 12])
def test_few_times_give_a_curve_that_rises(n):
    times = np.linspace(5, 60, n)
    for high in (times, times * 1.3):
        curve = _smooth.smooth(_censored.intervals(times, high))
        seconds = np.geomspace(0.1, 1_000, 50)
        share = curve.share(seconds)
        assert (np.diff(share) >= 0).all()
        assert ((share >= 0) & (share <= 1)).all()
        assert curve.quantile(0.1) <= curve.quantile(0.5) <= curve.quantile(0.9)


def test_what_never_ends_is_no_long_time():
    """3 of 100 are stuck: the curve of the others stays theirs."""
    rng = np.random.default_rng(4)
    times = WORLDS["log-normal"][0].rvs(10_000, rng)
    times[:300] = 1e6
    curve = _smooth.smooth(known(rng, times, {}))
    assert curve.share(np.array([900.0]))[0] == pytest.approx(0.97, abs=0.004)
    assert curve.quantile(0.485) == pytest.approx(40, rel=0.03)
    assert curve.quantile(0.98) == np.inf
