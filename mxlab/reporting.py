"""A Snapshot, or two → one self-contained HTML file: no scripts, no requests, readable on a phone and on paper."""

import base64
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import cached_property
from html import escape
from importlib.metadata import version
from pathlib import Path
from typing import Any

import pandas as pd

from mxlab import analysis
from mxlab.charts import CHARTS, LOCK, OVERVIEW, caption, draw, png, summarize
from mxlab.errors import ConfigError
from mxlab.exports import displayed, html_table, replacing
from mxlab.frames import Coverage, Snapshot
from mxlab.nexus.status import WHO_MUST_ACT
from mxlab.plots import style
from mxlab.plots.style import WHO_WORDS, between, duration, percent

_INSTITUTIONS, _FAILURES, _SUMMARY_ROWS = 25, 50, 30
_NAMED, _CHANGES = 3, 25
_HOUR, _DAY = 3_600.0, 86_400.0
#: The ages that a share fresh is given for; the tests are of a day's.
_AGES = (6 * _HOUR, _DAY, 3 * _DAY, 7 * _DAY)
_WIDE, _NARROW, _DPI = 800, 480, 170

_ACTIONS = {
    "nobody": "Nothing: the connection works.",
    "wait": "Wait: the connection moves on by itself.",
    "user": "Ask the user back: to answer a challenge, renew credentials or finish the bank's log-in.",
    "mx": "Tell MX which institution and since when: neither you nor the user can mend it.",
    "partner": "Yours to mend: aggregation is paused although the connection is there.",
    "over": "Nothing mends it: the bank is no longer offered, or the connection was closed.",
    "manual": "Nothing: kept by hand, without a connection.",
    "unknown": "Look the word up: MX has added it since this version.",
}
_ACTING = {
    "wait": "{share} ({interval}) move on by themselves; mostly {words}.",
    "user": "Users must act on {share} ({interval}), more than anyone else; mostly {words}.",
    "mx": "MX or the bank must act on {share} ({interval}), more than anyone else; mostly {words}.",
    "partner": "You must act on {share} ({interval}), more than anyone else; mostly {words}.",
    "unknown": "{share} ({interval}) have a status that this version does not know: {words}.",
}
#: What a loss may go with.
_LOSS = {"order": "the order of the run", "institution": "the institution"}
#: The two parts of a change of the share connected.
_PARTS = {"mix": "by another mix of members", "rate": "by other rates at the banks"}
#: What a share of a bank's members says, by who must act.
_SAID = {
    "nobody": "{share} of {n} members are connected",
    "wait": "{share} of {n} members move on by themselves",
    "user": "users must act on {share} of {n} members",
    "mx": "MX or the bank must act on {share} of {n} members",
    "partner": "you must act on {share} of {n} members",
    "over": "{share} of {n} members are over",
    "manual": "{share} of {n} members are kept by hand",
    "unknown": "{share} of {n} members have a status that this version does not know",
}


def report(snap: Snapshot, path: str | os.PathLike[str], *, against: Snapshot | None = None) -> Path:
    """Write what a run saw as one HTML file that needs nothing else.

    Parameters
    ----------
    snap
        What to report on.
    path
        Of the file; replaced whole or not at all.
    against
        An earlier Snapshot. The page then says what has changed since, of statuses and institutions only what
        passes a test after false-discovery control; whether it is the mix of members or the rates; and what is
        new among the records that look wrong.

    Returns
    -------
    Path
        Where it was written.

    Raises
    ------
    ConfigError
        It cannot be written there, or `against` is the same run or a later one; the message says what to do.
    """
    path = Path(path).expanduser()
    since = None if against is None else _Since(against, snap)
    with replacing(path) as file:
        file.write(_page(snap, since).encode("utf-8", "replace"))
    return path


def headline(snap: Snapshot, against: Snapshot | None = None) -> list[str]:
    """What a run found, in sentences, with 95 % intervals.

    Parameters
    ----------
    snap
        What to speak of.
    against
        An earlier Snapshot, to say what has changed since.

    Returns
    -------
    list of str
        How many are connected; what has changed; who must act most; how long aggregation takes; which bank is
        slower than the rest; which has more failures of its own than the rest.
    """
    return _headline(snap, None if against is None else _Since(against, snap))


def _headline(snap: Snapshot, since: "_Since | None") -> list[str]:
    who = analysis.who_must_act(snap.members)
    if who.empty:
        return ["No member was seen, so there is nothing to say of connections."]
    changed = [] if since is None else _changed(since)
    return [_connected(who), *changed, _acting(who, snap), *_times(snap), *_excess(snap)]


class _Since:
    """What has changed since an earlier Snapshot; each comparison is made when it is first asked for.

    Raises
    ------
    ConfigError
        The earlier one is the same run, or a later one.
    """

    def __init__(self, before: Snapshot, now: Snapshot) -> None:
        self.before, self.now = before, now
        one, other = before.manifest.get("started_at"), now.manifest.get("started_at")
        if before.manifest.get("run") == now.manifest.get("run") and one == other:
            raise ConfigError("report: against= is the run that is reported on; give an earlier one")
        if one and other and pd.Timestamp(one) > pd.Timestamp(other):
            raise ConfigError("report: against= is later than the run that is reported on; change places")

    @property
    def frames(self) -> tuple[pd.DataFrame, pd.DataFrame]:
        return self.before.members, self.now.members

    @cached_property
    def who(self) -> pd.DataFrame:
        return analysis.share_changes(*self.frames)

    @cached_property
    def statuses(self) -> pd.DataFrame:
        return analysis.share_changes(*self.frames, of="connection_status")

    @cached_property
    def banks(self) -> pd.DataFrame:
        return analysis.share_changes(*self.frames, by="institution")

    @cached_property
    def fresh(self) -> pd.DataFrame:
        """Of eligible members, whether they were fresh within a day."""
        sides = [frame.loc[frame["eligible"].eq(True).fillna(False)] for frame in self.frames]
        flagged = [side.assign(is_fresh=side["age_seconds"].le(_DAY).fillna(False)) for side in sides]
        found = analysis.share_changes(*flagged, of="is_fresh")
        return found[found["value"] == "yes"]

    @cached_property
    def split(self) -> Mapping[Any, Any]:
        """The change of the share connected, in all, by mix and by rate."""
        return analysis.mix_and_rate(*self.frames).attrs

    @cached_property
    def ago(self) -> str:
        """How long before, in words."""
        one, other = (each.manifest.get("started_at") for each in (self.before, self.now))
        if not (one and other):
            return "before"
        return f"{duration((pd.Timestamp(other) - pd.Timestamp(one)).total_seconds())} before"


def _changed(since: _Since) -> list[str]:
    """What has changed and passes a test, or that nothing has."""
    split = since.split
    then = f"{since.ago} {percent(split['before'])} were connected"
    alike = since.who[(since.who["value"] == "nobody") & since.who["is_change"]]
    moved = any(split[f"{part}_is_change"] for part in ("total", "mix", "rate"))
    banks = _banks_changed(since)
    statuses = [
        f"{displayed(row.value)} ({percent(row.share_before)} to {percent(row.share_after)})"
        for row in _rows(since.statuses[since.statuses["is_change"]])
    ]
    if not moved and alike.empty and not banks and not statuses:
        return [
            f"No change that passes a test: {then}, and neither a status nor a bank has moved beyond chance."
        ]
    whole = f"{then}, a change that passes no test"
    if moved:
        parts = (_part(split, part, words) for part, words in _PARTS.items())
        whole = f"{then}; since then {_points(split['total'])} points: {', '.join(parts)}"
    said = [f"{whole[0].upper()}{whole[1:]}."]
    if since.who.attrs["is_paired"]:
        said += [
            f"Of the members seen both times {_now_and_then(row)} are connected." for row in _rows(alike)
        ]
    if statuses:
        named = ", ".join(statuses[:_NAMED]) + f" and {len(statuses) - _NAMED:,} more" * (
            len(statuses) > _NAMED
        )
        said.append(f"Statuses that have changed beyond chance: {named}.")
    return said + (banks or ["At no bank has a share changed beyond chance."])


def _part(split: Mapping[Any, Any], part: str, words: str) -> str:
    low, high = (_points(split[f"{part}_{end}"]) for end in ("low", "high"))
    verdict = "" if split[f"{part}_is_change"] else ", passes no test"
    return f"{words} {_points(split[part])} ({low} to {high}{verdict})"


def _banks_changed(since: _Since) -> list[str]:
    """A sentence on each of the banks that have changed most, with the share that has moved furthest."""
    changed = since.banks[since.banks["is_change"]]
    banks = changed["group"].drop_duplicates()
    said = []
    for bank in banks[:_NAMED]:
        mine = changed[changed["group"] == bank]
        if (mine["value"] != "nobody").any():  # the same move from the other side
            mine = mine[mine["value"] != "nobody"]
        row = next(_rows(mine.loc[[mine["change"].abs().idxmax()]]))
        words = _SAID[row.value].format(share=percent(row.share_after), n=f"{row.n_after:,}")
        said.append(f"{displayed(bank)}: {words}, {percent(row.share_before)} {since.ago} ({_reach(row)}).")
    if len(banks) > _NAMED:
        said.append(f"{len(banks) - _NAMED:,} more banks have changed.")
    return said


def _now_and_then(row: Any) -> str:
    return f"{percent(row.share_after)} now and {percent(row.share_before)} then ({_reach(row)})"


def _reach(row: Any) -> str:
    return f"{_points(row.change)} points, {_points(row.low)} to {_points(row.high)}"


def _points(share: float) -> str:
    """A change in points, with its sign: +1.2, −4.7, 0.0."""
    text = f"{abs(share) * 100:.1f}"
    return text if float(text) == 0 else f"{'+' if share > 0 else '−'}{text}"


def _connected(who: pd.DataFrame) -> str:
    n = int(who["count"].sum())
    for row in _rows(who[who["who_must_act"] == "nobody"]):
        return f"{percent(row.share)} of {n:,} members are connected (95 % interval: {_interval(row)})."
    return f"None of {n:,} members is connected."


def _acting(who: pd.DataFrame, snap: Snapshot) -> str:
    acting = who[who["who_must_act"].isin(list(_ACTING))].nlargest(1, "count")
    counts = analysis.status_counts(snap.members)
    for row in _rows(acting):
        mine = counts[counts["who_must_act"] == row.who_must_act].nlargest(2, "count")
        words = " and ".join(f"{displayed(each.status)} ({each.count_:,})" for each in _rows(mine))
        sentence = _ACTING[str(row.who_must_act)]
        return sentence.format(share=percent(row.share), interval=_interval(row), words=words)
    return "Nobody has to act."


def _rows(frame: pd.DataFrame) -> Iterator[Any]:
    """Rows by the names of their columns; `count`, a method of tuples, is `count_`."""
    yield from frame.rename(columns={"count": "count_"}).itertuples()


def _interval(row: Any) -> str:
    return f"{percent(row.low)} to {percent(row.high)}"


def _times(snap: Snapshot) -> list[str]:
    quantiles = analysis.latency_quantiles(snap.members)
    return [_latency(quantiles)] if quantiles.empty else [_latency(quantiles), _slow(snap)]


def _latency(quantiles: pd.DataFrame) -> str:
    for row in _rows(quantiles):
        if pd.isna(row.p50):
            return f"How long aggregation takes is not known: {row.p50_why}."
        said = f"Half of the aggregations that finish do so within {_quantile(row, 'p50')}"
        if pd.notna(row.p90):
            said += f", nine in ten within {_quantile(row, 'p90')}"
        if row.n_censored:
            said += f"; {row.n_censored:,} of {row.n:,} were still running when following ended"
        return f"{said}."
    return "How long aggregation takes is not known: no aggregation has a time."


def _quantile(row: Any, name: str) -> str:
    seconds, low, high = (getattr(row, name + end) for end in ("", "_low", "_high"))
    return f"{duration(seconds)} {between(low, high, seconds)}"


def _slow(snap: Snapshot) -> str:
    compared = analysis.slow_institutions(snap.members)
    if compared.empty:
        return "No bank has enough aggregations to be compared with the rest."
    slower = compared[compared["is_slower"]]
    if slower.empty:
        return f"No bank is slower than the rest ({len(compared):,} compared)."
    row = slower.iloc[0]
    others = f"; so are {len(slower) - 1:,} more" if len(slower) > 1 else ""
    return (
        f"{displayed(row['institution'])} is slower than the rest: its median is {duration(row['p50'])}, "
        f"{row['ratio']:.1f} times the others' ({row['ratio_low']:.1f} to {row['ratio_high']:.1f}), "
        f"of {row['n']:,} aggregations{others}."
    )


def _excess(snap: Snapshot) -> Iterator[str]:
    finding = analysis.status_by_institution(snap.members).attrs["finding"]
    if finding:
        yield (
            f"{displayed(finding['institution'])}: {percent(finding['share'])} of its members wait for MX or the bank, "
            f"against {percent(finding['rest_share'])} elsewhere."
        )


def coverage_sentences(coverage: Coverage) -> list[str]:
    """How far the figures of a run can be trusted to stand for all its users."""
    if not coverage.asked:
        return ["No user was asked."]
    said = [
        f"{coverage.answered:,} of {coverage.asked:,} users answered ({percent(coverage.answered / coverage.asked)})."
    ]
    gone = [
        f"{count:,} {word}"
        for count, word in (
            (coverage.lost, "lost"),
            (coverage.unknown, "of unknown fate"),
            (coverage.pending, "not yet asked or followed"),
        )
        if count
    ]
    if gone:
        said.append(f"The others: {', '.join(gone)}; their members are in no rate of this report.")
    if coverage.pending:
        said.append(
            "Users came in random order, so that those who answered are a fair sample of all."
            if coverage.order == "random"
            else "Users came in the order of the source, so that those who answered may differ from the rest."
        )
    return said


def _page(snap: Snapshot, since: _Since | None) -> str:
    simulated = snap.simulated or (since is not None and since.before.simulated)
    against = "" if since is None else f" against {displayed(since.before.manifest.get('run'))}"
    stamp = "SIMULATED · " if simulated else ""
    title = f"{stamp}Connection health, run {displayed(snap.manifest.get('run'))}{against}"
    sections = "".join(
        (
            _found(snap, since),
            _coverage(snap, since),
            "" if since is None else _what_changed(since),
            "" if since is None else _mix(since),
            *(_chart(name, snap) for name in OVERVIEW if name != "freshness"),
            _who(snap, since),
            _freshness(snap, since),
            _quality(snap, since),
            _banks(snap),
            _lost(snap),
            _manifest(snap, since),
        )
    )
    return f"""<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta http-equiv="Content-Security-Policy" content="default-src 'none'; img-src data:; style-src 'unsafe-inline'">
<meta name="viewport" content="width=device-width, initial-scale=1">
<meta name="color-scheme" content="light dark">
<title>{escape(title)}</title>
<style>{_STYLE}</style>
</head>
<body>
<header>{'<strong class="stamp">SIMULATED</strong>' if simulated else ""}<h1>Connection health</h1>{
        _origin(snap)
    }{"" if since is None else _origin(since.before, f"against the run {since.ago}: ")}</header>
<main>{sections}</main>
<footer>{escape(title)} · mxlab {version("mxlab")}</footer>
</body>
</html>
"""


def _origin(snap: Snapshot, words: str = "") -> str:
    manifest = snap.manifest
    times = " to ".join(
        str(manifest[end])[:16].replace("T", " ") for end in ("started_at", "ended_at") if manifest.get(end)
    )
    parts = (
        f"run {displayed(manifest.get('run'))}",
        displayed(manifest.get("verb")),
        displayed(manifest.get("host")),
        f"{times} UTC" if times else "",
        f"shown: {displayed(manifest.get('condition'))}" if manifest.get("condition") else "",
    )
    return f"<p>{escape(words)}{' · '.join(escape(part) for part in parts if part)}</p>"


def _section(title: str, body: str) -> str:
    return f"<section><h2>{escape(title)}</h2>{body}</section>"


def _listed(sentences: list[str]) -> str:
    return f"<ul>{''.join(f'<li>{escape(each)}</li>' for each in sentences)}</ul>"


def _found(snap: Snapshot, since: _Since | None) -> str:
    first, *rest = _headline(snap, since)
    return (
        f'<section class="found"><p class="lead">{escape(first)}</p>{_listed(rest) if rest else ""}</section>'
    )


def _coverage(snap: Snapshot, since: _Since | None) -> str:
    coverage = snap.coverage
    both = () if since is None else _seen_both_times(since)
    body = _listed([*coverage_sentences(coverage), *_loss(snap), *both])
    if coverage.reasons:
        advice = snap.failures.drop_duplicates("reason").set_index("reason")["what_to_do"].to_dict()
        reasons = pd.DataFrame(
            {
                "reason": [reason.replace("_", " ") for reason in coverage.reasons],
                "users": list(coverage.reasons.values()),
                "what to do": [advice.get(reason) for reason in coverage.reasons],
            }
        )
        body += _table(reasons, "Users without an answer, by reason")
    return _section("Who is in these figures", body)


def _loss(snap: Snapshot) -> Iterator[str]:
    """Whether those who are missing can be told from the others, so that the rates are off."""
    if not snap.coverage.lost + snap.coverage.unknown:
        return
    found = analysis.loss_pattern(snap.members, snap.requests)
    related = [_LOSS[row.related_to] for row in _rows(found[found["is_related"]])]
    if related:
        yield f"Who is lost goes with {' and '.join(related)}, more than by chance: the rates may be off."
    elif found["p_value"].notna().any():
        yield "Who is lost goes neither with the order of the run nor with an institution, as far as a test can tell."


def _seen_both_times(since: _Since) -> Iterator[str]:
    """How far the two runs saw the same."""
    before, now = since.before, since.now
    changes = analysis.member_changes(*since.frames)
    came, went = ((changes["change"] == word).sum() for word in ("appeared", "vanished"))
    yield (
        f"The earlier run: {before.coverage}. {changes.attrs['n_both']:,} members are in both, "
        f"{came:,} have come since, {went:,} are gone."
    )
    if since.who.attrs["is_paired"]:
        yield "Changes are tested on the members that are in both, each against itself."
    else:
        yield "Less than half of the members are in both, so changes are tested as between two samples."
    for name, words in (("host", "asked another host"), ("verb", "was of another kind")):
        one, other = before.manifest.get(name), now.manifest.get(name)
        if one != other:
            yield f"The earlier run {words}: {displayed(one)}, not {displayed(other)}."


def _what_changed(since: _Since) -> str:
    """Tables of what passes a test, by status and by institution, and who moved."""
    body = "".join(
        _change_table(found, what, words)
        for found, what, words in (
            (since.who, "who must act", "By who must act"),
            (since.statuses, "status", "By connection status"),
            (since.banks, "who must act", "By institution"),
        )
    )
    return _section("What has changed", body) + _chart("flow", since.now, since.before)


def _change_table(found: pd.DataFrame, what: str, words: str) -> str:
    """The changes that pass, the clearest first; where there is none, that there is none."""
    tested = int(found["q_value"].notna().sum())
    changed = found[found["is_change"]]
    if changed.empty:
        return f"<p>{escape(words)}: no change that passes a test, of {tested:,} shares tested.</p>"
    said = f"{words}: {len(changed):,} of {tested:,} shares tested have changed (false-discovery rate 5 %)"
    said += f", here the {_CHANGES} clearest." if len(changed) > _CHANGES else "."
    top = changed.head(_CHANGES).reset_index(drop=True)
    table = pd.DataFrame({"institution": top["group"]} if found.attrs["by"] else {})
    table[what] = [WHO_WORDS.get(value, value) for value in top["value"]]
    columns = ("n_after", "share_before", "share_after", "change")
    table[["members", "before", "now", "points"]] = top[[*columns]]
    table["95 % interval"] = [_unbroken(f"{_points(row.low)} to {_points(row.high)}") for row in _rows(top)]
    table["q"] = top["q_value"]
    formats = {"before": percent, "now": percent, "points": _points, "q": _q}
    return _table(table, said, formats=formats)


def _q(value: float) -> str:
    return f"{value:.1g}" if value >= 1e-4 else "<0.0001"


def _mix(since: _Since) -> str:
    words = (
        "A share changes where members come and go, or where the same banks do better or worse. The intervals take the "
        "two runs as independent samples, which is wide for members seen twice."
    )
    return _chart("mix_and_rate", since.now, since.before) + f"<p>{words}</p>"


def _freshness(snap: Snapshot, since: _Since | None) -> str:
    """Members that MX refreshes by itself: how many are fresh within some ages."""
    sides = {"": snap} if since is None else {" before": since.before, " now": snap}
    table = pd.DataFrame({"fresh within": [duration(age) if age < _DAY else _days(age) for age in _AGES]})
    for name, side in sides.items():
        shares = pd.concat(
            [analysis.freshness_shares(side.members, within_seconds=age) for age in _AGES], ignore_index=True
        ).reindex(range(len(_AGES)))
        table[f"members{name}"] = shares["n_eligible"].astype("Int64")
        table[f"share{name}"] = shares["share"]
        table[f"95 % interval{name}"] = [
            _unbroken(_interval(row)) if row.n_eligible > 0 else "" for row in _rows(shares)
        ]
    body = "" if since is None else f"<p>{escape(_refreshed(since))}</p>"
    words = "Of members that MX refreshes by itself, those never successful included"
    body += _table(table, words, [f"share{name}" for name in sides])
    return _chart("freshness", snap) + body


def _days(seconds: float) -> str:
    days = round(seconds / _DAY)
    return "a day" if days == 1 else f"{days} days"


def _refreshed(since: _Since) -> str:
    for row in _rows(since.fresh):
        verdict = "which passes a test" if row.is_change else "no change that passes a test"
        return f"Fresh within a day were {_now_and_then(row)}: {verdict}."
    return "Nothing was fresh within a day, then or now."


def _quality(snap: Snapshot, since: _Since | None) -> str:
    """The rules that records fail, what of it is new, and what could not be read."""
    found = analysis.findings(snap.members, previous=None if since is None else since.before.members)
    table = found.groupby(["severity", "rule"], observed=True).size().rename("records").reset_index()
    said = [_failing(found)]
    if since is not None:
        earlier = analysis.findings(since.before.members)
        table["before"] = [earlier.attrs["counts"].get(rule, 0) for rule in table["rule"]]
        new = _new(found, earlier)
        table["new"] = [int(new.get(rule, 0)) for rule in table["rule"]]
        said.append(f"{int(new.sum()):,} findings are new since the earlier run.")
        vanished = [why.partition(": ")[2] for why in found.loc[found["rule"] == "field-vanished", "reason"]]
        said += [f"A field has vanished: {field}." for field in vanished] or ["No field has vanished."]
    table["what is wrong"] = _reasons(found, table["rule"])
    if len(snap.rejects):
        said.append(f"{len(snap.rejects):,} replies or records could not be read; they are in snap.rejects.")
    table = table.sort_values(["severity", "records"], ascending=[True, False])
    body = _listed(said)
    return _section(
        "Records that look wrong", body + (_table(table, "By rule, the gravest first") if len(table) else "")
    )


def _failing(found: pd.DataFrame) -> str:
    """Records by the gravest rule that they fail."""
    records = found.dropna(subset="session")  # a finding about the whole frame has no record
    grave = records["severity"] != "notice"
    counts = [part.drop_duplicates(["session", "guid"]).shape[0] for part in (records[grave], records)]
    return (
        f"{counts[0]:,} of {found.attrs['n']:,} records fail a rule as an error or a warning, "
        f"{counts[1] - counts[0]:,} more have notices only."
    )


def _reasons(found: pd.DataFrame, rules: pd.Series) -> list[str]:
    reason = found.drop_duplicates("rule").set_index("rule")["reason"]
    return [str(reason[rule]) for rule in rules]


def _new(found: pd.DataFrame, earlier: pd.DataFrame) -> pd.Series:
    """Findings by rule that were not there before: of a record, or, without guid, more of them than before."""
    now, then = (
        each.assign(guid=each["guid"].fillna("")).groupby(["rule", "guid"], observed=True).size()
        for each in (found, earlier)
    )
    return now.sub(then, fill_value=0).clip(lower=0).groupby("rule").sum()


def _chart(name: str, snap: Snapshot, against: Snapshot | None = None) -> str:
    """The chart for wide and for narrow pages, with its summary one click away; nothing where there is nothing."""
    chart, summary = CHARTS[name], summarize(name, snap, against)
    if summary.empty:
        return ""
    with LOCK:
        wide, narrow = (draw(name, snap, against, width=width) for width in (_WIDE, _NARROW))
        pictures = []
        for axes in (wide, narrow):
            style.root(axes).set_dpi(_DPI)
            pictures.append("data:image/png;base64," + base64.b64encode(png(style.root(axes))).decode())
        text = caption(wide)
    step = max(1, -(-len(summary) // _SUMMARY_ROWS))
    words = f"{chart.question} One row in {step} of {len(summary):,}." if step > 1 else chart.question
    table = _table(summary.iloc[::step], words, ["share", "low", "high", "step", "naive"])
    return _section(
        chart.question,
        f'<figure><picture><source media="(max-width: 640px)" srcset="{pictures[1]}">'
        f'<img src="{pictures[0]}" width="{_WIDE}" alt="{escape(text)}"></picture></figure>'
        f"<details><summary>The figures behind it</summary>{table}</details>",
    )


def _who(snap: Snapshot, since: _Since | None) -> str:
    who = analysis.who_must_act(snap.members)
    words = who["who_must_act"].astype("str")
    table = pd.DataFrame(
        {
            "who must act": words.map(WHO_WORDS),
            "members": who["count"],
            "share": who["share"],
            "95 % interval": [_unbroken(_interval(row)) for row in _rows(who)],
        }
    )
    if since is not None:
        then = analysis.who_must_act(since.before.members).set_index("who_must_act")["share"]
        table["before"] = [float(then.get(word, 0.0)) for word in words]
    table["what to do"] = words.map(_ACTIONS)
    return _section(
        "Who must act", _table(table, "Members of users who answered, by who must act", ["share", "before"])
    )


def _banks(snap: Snapshot) -> str:
    shares = analysis.status_by_institution(snap.members, top=_INSTITUTIONS)
    if shares.empty:
        return ""
    wide = shares.pivot_table(
        index="institution", columns="who_must_act", values="share", observed=False, sort=False
    )
    kept = {who: WHO_WORDS[who] for who in WHO_MUST_ACT if wide[who].sum()}
    sizes = shares.drop_duplicates("institution").set_index("institution")["n"]
    slow = analysis.slow_institutions(snap.members).set_index("institution").reindex(wide.index)
    table = pd.DataFrame({"institution": wide.index.astype("str"), "members": sizes[wide.index].to_numpy()})
    for who, word in kept.items():
        table[word] = wide[who].to_numpy()
    words = "The largest institutions"
    if slow["p50"].notna().any():
        table["median time"] = [_unbroken(duration(p50)) if p50 > 0 else "" for p50 in slow["p50"]]
        table["against the rest"] = [_unbroken(_against(row)) for row in _rows(slow)]
        words += "; a time needs 10 aggregations and is compared with those not called slower"
    return _section("Bank by bank", _table(table, words, list(kept.values())))


def _against(row: Any) -> str:
    if pd.isna(row.ratio):
        return ""
    times = f"× {row.ratio:.1f} ({row.ratio_low:.1f}–{row.ratio_high:.1f})"
    return f"{times}, slower" if row.is_slower else times


def _unbroken(text: str) -> str:
    return text.replace(" ", "\u00a0")


def _lost(snap: Snapshot) -> str:
    failures = snap.failures
    if failures.empty:
        return ""
    table = failures[["session", "state", "reason", "what_to_do"]].head(_FAILURES)
    words = "Users lost or unknown, by the pseudonym of their session"
    if len(failures) > _FAILURES:
        words += f"; the first {_FAILURES} of {len(failures):,}, all are in snap.failures"
    return _section("Users without an answer", _table(table, words))


def _manifest(snap: Snapshot, since: _Since | None) -> str:
    sides = {"value": snap} if since is None else {"this run": snap, "the earlier run": since.before}
    flat = {name: dict(_flat(side.manifest)) for name, side in sides.items()}
    names = list(dict.fromkeys(name for rows in flat.values() for name in rows))
    table = pd.DataFrame({"what": names})
    for side, rows in flat.items():
        table[side] = [displayed(rows.get(name)) for name in names]
    body = _table(table, "Manifest of the run" if since is None else "Manifests of both runs")
    return _section(
        "How it was collected",
        f"<details><summary>The manifest: settings, versions, seed, clock</summary>{body}</details>",
    )


def _flat(values: Mapping[str, Any], before: str = "") -> Iterator[tuple[str, Any]]:
    for name, value in values.items():
        if isinstance(value, Mapping):
            yield from _flat(value, f"{before}{name}.")
        else:
            yield before + str(name), value


def _table(
    frame: pd.DataFrame,
    words: str,
    shares: Sequence[str] = (),
    *,
    formats: Mapping[str, Callable[[Any], str]] | None = None,
) -> str:
    """A table that scrolls in a box of its own where the page is narrow."""
    table = html_table(frame, words, formats={**dict.fromkeys(shares, _percent), **(formats or {})})
    return f'<div class="scroll" tabindex="0">{table}</div>'


def _percent(share: Any) -> str:
    return "" if pd.isna(share) else percent(share)


_STYLE = """
:root { --ink: #1d2329; --muted: #5d666f; --paper: #ffffff; --wash: #f6f7f8; --line: #e6e8eb; --stamp: #c8352b; }
@media (prefers-color-scheme: dark) {
  :root { --ink: #e8eaed; --muted: #9aa3ad; --paper: #14181d; --wash: #1b2026; --line: #2b323a; --stamp: #ef6a60; }
}
* { box-sizing: border-box; }
body { margin: 0; padding: 0 1rem 2rem; background: var(--paper); color: var(--ink);
  font: 16px/1.5 system-ui, -apple-system, "Segoe UI", Roboto, "DejaVu Sans", sans-serif; }
header, main, footer { max-width: 58rem; margin: 0 auto; }
header { padding: 2.2rem 0 1rem; }
h1 { margin: 0; font-size: 1.8rem; line-height: 1.2; }
h2 { margin: 2.6rem 0 .8rem; font-size: 1.2rem; }
header p, footer { color: var(--muted); font-size: .85rem; overflow-wrap: anywhere; }
.stamp { float: right; padding: .15rem .5rem; border: 2px solid var(--stamp); border-radius: 4px;
  color: var(--stamp); letter-spacing: .06em; }
.found { padding: 1rem 1.25rem; border-left: 4px solid #1f9583; background: var(--wash); border-radius: 0 6px 6px 0; }
.lead { margin: 0; font-size: 1.25rem; font-weight: 600; }
ul { margin: .6rem 0 0; padding-left: 1.2rem; }
li { margin: .25rem 0; overflow-wrap: anywhere; }
figure { margin: 0; padding: .5rem; background: #ffffff; border: 1px solid var(--line); border-radius: 6px; }
figure img { display: block; width: 100%; height: auto; }
details { margin-top: .6rem; }
summary { cursor: pointer; color: var(--muted); font-size: .9rem; }
.scroll { overflow-x: auto; container-type: inline-size; }
table { border-collapse: collapse; min-width: 100%; margin-top: .5rem; font-size: .85rem; }
caption { text-align: left; color: var(--muted); padding: 0 max(0px, 100% - 100cqw) .4rem 0; }
th, td { padding: .3rem .7rem .3rem 0; border-bottom: 1px solid var(--line); text-align: left; vertical-align: top;
  overflow-wrap: break-word; max-width: 24rem; }
thead th { color: var(--muted); font-weight: 600; vertical-align: bottom; }
tbody th { font-weight: 500; min-width: 8rem; }
.scroll + p, .scroll + .scroll, ul + .scroll, p + .scroll { margin-top: 1.2rem; }
td:last-child:not(.number) { min-width: 12rem; padding-right: 0; }
.number { text-align: right; white-space: nowrap; font-variant-numeric: tabular-nums; }
footer { margin-top: 3rem; padding-top: 1rem; border-top: 1px solid var(--line); }
@media print {
  body { font-size: 11pt; }
  section { break-inside: avoid-page; }
  details::details-content { content-visibility: visible; display: block; height: auto; }
  .scroll { overflow: visible; }
}
"""
