"""What a part of the users says about all of them."""

import numpy as np
import pandas as pd
from scipy import special, stats

from mxlab.analysis._inputs import STRING, Bools, Coverage, answered, described, numbers, table

_ESTIMATE = {
    "condition": STRING,
    "share": "float64",
    "low": "float64",
    "high": "float64",
    "n": "int64",
    "users": "int64",
    "users_in_all": "int64",
    "effective_n": "float64",
    "users_for_reach": "float64",
    "is_sample": "bool",
    "is_reached": "bool",
}


def share_estimate(
    members: pd.DataFrame,
    coverage: Coverage,
    *,
    condition: str = "nobody",
    population: int | None = None,
    reach: float = 0.005,
) -> pd.DataFrame:
    """The share of all members for which something holds, estimated from the users seen so far.

    Parameters
    ----------
    members
        The `members` frame; uses ``who_must_act``, ``session``, ``user_state``.
    coverage
        Of the run; its ``order`` decides whether what was seen is a fair sample.
    condition
        An answer to "who must act"; ``nobody`` is connected.
    population
        Users in all; ``coverage.asked`` without it.
    reach
        The half width to reach, for ``users_for_reach``.

    Returns
    -------
    pandas.DataFrame
        One row (none without members).

        ===============  =======  ====================================================================
        condition        string   what is estimated
        share            float64  of members, among users seen
        low, high        float64  95 % interval for all users; missing where the order was not random
        n, users         int64    members; users answered
        users_in_all     int64    the population
        effective_n      float64  independent members that would say as much
        users_for_reach  float64  users to answer in all until the interval is ± `reach`
        is_sample        bool     the order was random: the rest may be inferred
        is_reached       bool     the interval is ± `reach` or narrower: a run may stop here
        ===============  =======  ====================================================================

    Notes
    -----
    Users are drawn, not members: ratio estimator over users with the finite-population correction, W. G.
    Cochran, Sampling Techniques (1977), 6.3 and 9A; Wilson interval at the effective sample size (E. L. Korn,
    B. I. Graubard, Surv. Methodol. 24 (1998) 193). Users lost for good are taken to be like the others:
    `mxlab.analysis.loss_pattern` tests that. A run is stopped by its Job, with ``seen = job.partial()``:
    ``if share_estimate(seen.members, seen.coverage)["is_reached"].all(): job.cancel()``.
    """
    rows = answered(members, "share_estimate", "who_must_act", "session")
    holds: Bools = (rows["who_must_act"] == condition).to_numpy(dtype=bool, na_value=False)
    n = len(rows)
    whole = int(population if population is not None else coverage.asked)
    fair = coverage.order == "random" or coverage.answered >= whole
    if not n:
        frame = table([], _ESTIMATE)
        frame.attrs = {"coverage": described(coverage)}
        return frame
    user = np.unique(numbers(rows["session"]), return_inverse=True)[1]
    size = np.bincount(user).astype(np.float64)
    seen = float(max(int(coverage.answered), len(size)))
    share = float(holds.mean())
    residual = np.bincount(user, holds) - share * size
    left = max(0.0, 1.0 - float(seen) / whole) if whole else 0.0
    variance = (residual @ residual) * seen / max(seen - 1, 1.0) / n**2
    plain = share * (1 - share) / n
    design = max(float(variance / plain), 1e-9) if plain > 0 else float((size**2).sum() / n)
    effective = n / design
    low, high = _wilson_finite(share, effective, left, max(len(size) - 1, 1))
    z = float(special.ndtri(0.975))
    needed = z**2 * variance * seen / reach**2
    row = {
        "condition": condition,
        "share": share,
        "low": low if fair else np.nan,
        "high": high if fair else np.nan,
        "n": n,
        "users": seen,
        "users_in_all": whole,
        "effective_n": effective,
        "users_for_reach": float(np.ceil(needed / (1 + needed / max(whole, 1)))),
        "is_sample": fair,
        "is_reached": bool(fair and high - low <= 2 * reach),
    }
    frame = table([row], _ESTIMATE)
    frame.attrs = {"reach": reach, "coverage": described(coverage)}
    return frame


def _wilson_finite(share: float, n: float, left: float, degrees: int) -> tuple[float, float]:
    """Wilson interval of n effective observations of which only the part `left` is still open."""
    if left == 0:
        return share, share
    z2 = float(stats.t.ppf(0.975, degrees)) ** 2 * left
    middle, reach = share + z2 / (2 * n), np.sqrt(z2 * (share * (1 - share) / n + z2 / (4 * n * n)))
    return float((middle - reach) / (1 + z2 / n)), float((middle + reach) / (1 + z2 / n))
