"""The invented banks of a world: Zipf sizes, families, durations, failure shares."""

import bisect
import math
from dataclasses import dataclass, field
from random import Random

from mxlab.simulator.guids import Guids, key
from mxlab.simulator.parameters import Parameters

_TREES = (
    "Alder", "Aspen", "Birch", "Cedar", "Cypress", "Elm", "Fir", "Hazel", "Hickory", "Juniper", "Larch", "Laurel",
    "Linden", "Maple", "Myrtle", "Oak", "Olive", "Pine", "Poplar", "Rowan", "Spruce", "Sycamore", "Walnut", "Willow",
)  # fmt: skip
_KINDS = ("Bank", "Credit Union", "Savings", "Trust", "Federal Bank", "Community Bank", "Direct", "Mutual")

#: Names that break programs which paste text into markup, formulas, math text or legends.
HOSTILE_NAMES = (
    "Bank of Ba$$in & $x^2$",
    "<script>alert('bank')</script>",
    "=SUM(1+1) Savings",
    "🏦 Bänk of Æther",
    "_nolegend_ Bank",
    "بنك الاتحاد",
)


@dataclass(eq=False, slots=True)
class Institution:
    """One institution object of MX's: a bank may have several.

    Attributes
    ----------
    guid, code, name
        As in member records.
    bank
        The family: institution objects of one bank share it.
    oauth
        Whether its members connect by OAuth.
    share
        Its share of all members, 0…1.
    median_seconds
        Median duration of its jobs, in simulated seconds.
    failure_share
        Share of its jobs that fail at the institution or at MX when nothing is planted.
    throttled
        Whether the three-hour rule holds; not at MX Bank.
    outages
        Planted outages: from, until (Unix times), share of jobs that fail.
    reset_at, migrates_at
        Unix time of a planted password reset or migration; infinite without one.
    """

    guid: str
    code: str
    name: str
    bank: str
    oauth: bool
    share: float
    median_seconds: float
    failure_share: float
    throttled: bool = True
    outages: list[tuple[float, float, float]] = field(default_factory=list)
    reset_at: float = math.inf
    migrates_at: float = math.inf

    def failing_share(self, at: float) -> float:
        """Share of the jobs begun at a time that fail, planted outages included."""
        for begins, ends, share in self.outages:
            if begins <= at < ends:
                return share
        return self.failure_share


class Market:
    """All institutions, and a way to draw one by size.

    Parameters
    ----------
    parameters
        The world's figures.
    guids
        The world's guids.
    """

    def __init__(self, parameters: Parameters, guids: Guids) -> None:
        random = Random(key(parameters.seed, 0x1257))
        self.institutions: list[Institution] = []
        rank = 0
        while len(self.institutions) < parameters.institutions - 1:
            rank += 1
            self._found_bank(parameters, guids, random, rank)
        del self.institutions[parameters.institutions - 1 :]
        tiny = min(bank.share for bank in self.institutions) / 2
        self._found(parameters, guids, random, "mxbank", "MX Bank", "MX Bank", tiny)
        self.institutions[-1].throttled = False
        if parameters.hostile_share and len(self.institutions) > 60:
            for small, hostile in zip(self.institutions[-8:-1], HOSTILE_NAMES, strict=False):
                small.name = hostile
        self._cumulated: list[float] = []
        total = 0.0
        for institution in self.institutions:
            total += institution.share
            self._cumulated.append(total)
        for institution in self.institutions:
            institution.share /= total
        self._total = total

    def draw(self, uniform: float) -> Institution:
        """The institution at a point of 0…1, each as wide as its share."""
        return self.institutions[bisect.bisect(self._cumulated, uniform * self._total)]

    def pick(self, random: Random, *, least: float, most: float = 1.0, paired: bool = False) -> Institution:
        """One institution whose share lies in a range; the nearest where none does; never MX Bank.

        ``paired`` asks for one whose bank has both a credential and an OAuth object.
        """
        banks = self.institutions[:-1]
        if paired:
            banks = [
                one for one in banks if {True, False} <= {kin.oauth for kin in self.family(one)}
            ] or banks
        fitting = [one for one in banks if least <= one.share <= most]
        return random.choice(fitting) if fitting else min(banks, key=lambda one: abs(one.share - least))

    def family(self, institution: Institution) -> list[Institution]:
        """All institution objects of the same bank."""
        return [one for one in self.institutions if one.bank == institution.bank]

    def _found_bank(self, parameters: Parameters, guids: Guids, random: Random, rank: int) -> None:
        """One bank: large ones, and every third of the others, with a credential and an OAuth object."""
        turn, place = divmod(rank, len(_TREES))
        bank = f"{_TREES[rank * 7 % len(_TREES)]} {_KINDS[(rank * 5 + turn) % len(_KINDS)]}"
        if turn:
            bank += f" of {_TREES[place]} County"
        if turn >= len(_KINDS):
            bank += f" {turn // len(_KINDS) + 1}"
        code = bank.lower().replace(" ", "_")
        size = rank**-parameters.zipf
        if rank > 10 and rank % 3:
            self._found(parameters, guids, random, code, bank, bank, size)
            return
        oauth = parameters.oauth_share
        self._found(parameters, guids, random, code, bank, bank, size * (1 - oauth))
        self._found(
            parameters, guids, random, f"{code}_oauth", f"{bank} (OAuth)", bank, size * oauth, oauth=True
        )

    def _found(
        self,
        parameters: Parameters,
        guids: Guids,
        random: Random,
        code: str,
        name: str,
        bank: str,
        size: float,
        *,
        oauth: bool = False,
    ) -> None:
        self.institutions.append(
            Institution(
                guid=guids.make("INS", len(self.institutions)),
                code=code,
                name=name,
                bank=bank,
                oauth=oauth,
                share=size,
                median_seconds=parameters.duration_median_seconds
                * random.lognormvariate(0, parameters.duration_spread),
                failure_share=min(
                    0.5, parameters.failure_share * random.lognormvariate(0, parameters.failure_spread)
                ),
            )
        )


def plant(parameters: Parameters, market: Market) -> list[dict[str, object]]:
    """Change the institutions as the scenarios say; what was planted, one record each (times are Unix times)."""
    p = parameters
    begins, ends = p.epoch + p.scenario_from_seconds, p.epoch + p.scenario_until_seconds
    planted: list[dict[str, object]] = []

    def record(hit: Institution, **known: object) -> None:
        bank = {"institution_guid": hit.guid, "institution_code": hit.code, "institution": hit.name}
        planted.append({"scenario": scenario, **bank, "bank": hit.bank, "is_oauth": hit.oauth, **known})

    for scenario in dict.fromkeys(p.scenarios):
        random = Random(key(p.seed, sum(scenario.encode())))
        if scenario == "slow_bank":
            hit = market.pick(random, least=0.04)
            usual = sum(
                one.share * math.log(one.median_seconds) for one in market.institutions if one is not hit
            )
            hit.median_seconds = p.slow_factor * math.exp(usual / (1 - hit.share))
            record(hit, median_seconds=hit.median_seconds)
        elif scenario.startswith("outage"):
            for hit in market.family(market.pick(random, least=0.02, paired=True)):
                if scenario == "outage" or hit.oauth == (scenario == "outage_oauth"):
                    hit.outages.append((begins, ends, p.outage_share))
                    record(hit, begins=begins, ends=ends, failing_share=p.outage_share)
        elif scenario == "password_reset":
            for hit in market.family(market.pick(random, least=0.02, paired=True)):
                if not hit.oauth:
                    hit.reset_at = begins
                    record(hit, begins=begins)
        elif scenario == "migration":
            hit = market.pick(random, least=0.02)
            hit.migrates_at = begins
            record(hit, begins=begins)
        elif scenario == "onboarding_wave":
            hit = market.pick(random, least=0.005, most=0.02)
            hit.failure_share = max(p.poor_failure_share, hit.failure_share)
            record(hit, begins=begins, ends=ends, failing_share=hit.failure_share, user_share=p.wave_share)
        elif scenario == "new_status":
            planted.append({"scenario": scenario, "status": p.new_status, "member_share": p.new_status_share})
        elif scenario == "defects":
            planted.append({"scenario": scenario, "member_share": p.defect_share})
    return planted
