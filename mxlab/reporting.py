"""A Snapshot → one self-contained HTML file: no scripts, no requests, readable on a phone and on paper."""

import base64
import os
from collections.abc import Iterator, Mapping, Sequence
from html import escape
from importlib.metadata import version
from pathlib import Path
from typing import Any

import pandas as pd

from mxlab import analysis
from mxlab.charts import CHARTS, LOCK, OVERVIEW, caption, draw, png, summarize
from mxlab.exports import displayed, html_table, replacing
from mxlab.frames import Coverage, Snapshot
from mxlab.nexus.status import WHO_MUST_ACT
from mxlab.plots import style
from mxlab.plots.style import WHO_WORDS, between, duration, percent

_INSTITUTIONS, _FAILURES, _SUMMARY_ROWS = 25, 50, 30
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


def report(snap: Snapshot, path: str | os.PathLike[str]) -> Path:
    """Write what a run saw as one HTML file that needs nothing else.

    Parameters
    ----------
    snap
        What to report on.
    path
        Of the file; replaced whole or not at all.

    Returns
    -------
    Path
        Where it was written.

    Raises
    ------
    ConfigError
        It cannot be written there; the message says what to do.
    """
    path = Path(path).expanduser()
    with replacing(path) as file:
        file.write(_page(snap).encode("utf-8", "replace"))
    return path


def headline(snap: Snapshot) -> list[str]:
    """What a run found, in sentences, with 95 % intervals.

    Parameters
    ----------
    snap
        What to speak of.

    Returns
    -------
    list of str
        How many are connected; who must act most; how long aggregation takes; which bank is slower than the
        rest; which has more failures of its own than the rest.
    """
    who = analysis.who_must_act(snap.members)
    if who.empty:
        return ["No member was seen, so there is nothing to say of connections."]
    return [_connected(who), _acting(who, snap), _latency(snap), _slow(snap), *_excess(snap)]


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


def _latency(snap: Snapshot) -> str:
    for row in _rows(analysis.latency_quantiles(snap.members)):
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


def _page(snap: Snapshot) -> str:
    stamp = "SIMULATED · " if snap.simulated else ""
    title = f"{stamp}Connection health, run {displayed(snap.manifest.get('run'))}"
    sections = "".join(
        (
            _found(snap),
            _coverage(snap),
            *(_chart(name, snap) for name in OVERVIEW),
            _who(snap),
            _banks(snap),
            _lost(snap),
            _manifest(snap),
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
<header>{'<strong class="stamp">SIMULATED</strong>' if snap.simulated else ""}<h1>Connection health</h1>{_origin(snap)}</header>
<main>{sections}</main>
<footer>{escape(title)} · mxlab {version("mxlab")}</footer>
</body>
</html>
"""


def _origin(snap: Snapshot) -> str:
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
    return f"<p>{' · '.join(escape(part) for part in parts if part)}</p>"


def _section(title: str, body: str) -> str:
    return f"<section><h2>{escape(title)}</h2>{body}</section>"


def _listed(sentences: list[str]) -> str:
    return f"<ul>{''.join(f'<li>{escape(each)}</li>' for each in sentences)}</ul>"


def _found(snap: Snapshot) -> str:
    first, *rest = headline(snap)
    return (
        f'<section class="found"><p class="lead">{escape(first)}</p>{_listed(rest) if rest else ""}</section>'
    )


def _coverage(snap: Snapshot) -> str:
    coverage = snap.coverage
    body = _listed(coverage_sentences(coverage))
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


def _chart(name: str, snap: Snapshot) -> str:
    """The chart for wide and for narrow pages, with its summary one click away."""
    with LOCK:
        wide, narrow = draw(name, snap, width=_WIDE), draw(name, snap, width=_NARROW)
        pictures = []
        for axes in (wide, narrow):
            style.root(axes).set_dpi(_DPI)
            pictures.append("data:image/png;base64," + base64.b64encode(png(style.root(axes))).decode())
        text = caption(wide)
    summary = summarize(name, snap)
    step = max(1, -(-len(summary) // _SUMMARY_ROWS))
    words = (
        f"{CHARTS[name].question} One row in {step} of {len(summary):,}."
        if step > 1
        else CHARTS[name].question
    )
    table = _table(summary.iloc[::step], words, ["share", "low", "high", "step", "naive"])
    return _section(
        CHARTS[name].question,
        f'<figure><picture><source media="(max-width: 640px)" srcset="{pictures[1]}">'
        f'<img src="{pictures[0]}" width="{_WIDE}" alt="{escape(text)}"></picture></figure>'
        f"<details><summary>The figures behind it</summary>{table}</details>",
    )


def _who(snap: Snapshot) -> str:
    who = analysis.who_must_act(snap.members)
    words = who["who_must_act"].astype("str")
    table = pd.DataFrame(
        {
            "who must act": words.map(WHO_WORDS),
            "members": who["count"],
            "share": who["share"],
            "95 % interval": [_unbroken(_interval(row)) for row in _rows(who)],
            "what to do": words.map(_ACTIONS),
        }
    )
    return _section(
        "Who must act", _table(table, "Members of users who answered, by who must act", ["share"])
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
    table["median time"] = [_unbroken(duration(p50)) if p50 > 0 else "" for p50 in slow["p50"]]
    table["against the rest"] = [_unbroken(_against(row)) for row in _rows(slow)]
    words = (
        "The largest institutions; a time needs 10 aggregations and is compared with those not called slower"
    )
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


def _manifest(snap: Snapshot) -> str:
    rows = dict(_flat(snap.manifest))
    table = pd.DataFrame({"what": list(rows), "value": [displayed(value) for value in rows.values()]})
    return _section(
        "How it was collected",
        f"<details><summary>The manifest: settings, versions, seed, clock</summary>{_table(table, 'Manifest of the run')}</details>",
    )


def _flat(values: Mapping[str, Any], before: str = "") -> Iterator[tuple[str, Any]]:
    for name, value in values.items():
        if isinstance(value, Mapping):
            yield from _flat(value, f"{before}{name}.")
        else:
            yield before + str(name), value


def _table(frame: pd.DataFrame, words: str, shares: Sequence[str] = ()) -> str:
    """A table that scrolls in a box of its own where the page is narrow."""
    table = html_table(frame, words, formats=dict.fromkeys(shares, _percent))
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
.scroll { overflow-x: auto; }
table { border-collapse: collapse; min-width: 100%; margin-top: .5rem; font-size: .85rem; }
caption { text-align: left; color: var(--muted); padding-bottom: .4rem; }
th, td { padding: .3rem .7rem .3rem 0; border-bottom: 1px solid var(--line); text-align: left; vertical-align: top;
  overflow-wrap: break-word; max-width: 24rem; }
thead th { color: var(--muted); font-weight: 600; vertical-align: bottom; }
tbody th { font-weight: 500; min-width: 8rem; }
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
