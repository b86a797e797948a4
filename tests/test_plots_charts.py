"""Drawings: what is drawn equals the summary; nothing is clipped or faked by a name."""

import io
import itertools
import re
from datetime import timedelta
from pathlib import Path

import matplotlib as mpl
import numpy as np
import pytest
from matplotlib import image
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from test_analysis_history import LENGTHS, renewal
from test_analysis_worlds import Coverage, log, with_status, world

from mxlab import analysis, plots
from mxlab.charts import CHARTS, png
from mxlab.nexus.status import WHO_MUST_ACT
from mxlab.plots import style

NASTY = [
    "Ba$$in $x^2$ \\frac{1}{2}",
    "_leading",
    "x" * 300,
    "emoji 🏦 \u202eevil",
    "<b>bold</b> & co",
    "بنك",
    "\x00\x07",
]


@pytest.fixture(scope="module")
def frames():
    members = world(3_000, banks=30, slow=4, exact=0.3, limit=200.0)
    names = dict(zip(members["institution"].cat.categories, NASTY, strict=False))
    members["institution"] = members["institution"].cat.rename_categories(names)
    later = with_status(members, np.arange(3_000) % 7 == 0, "FAILED")
    return members, later, log()


@pytest.fixture(scope="module")
def summaries(frames):
    members, later, requests = frames
    runs = renewal(1, LENGTHS["exponential"][0], members=400)
    return {
        "status_counts": analysis.status_counts(later, coverage=Coverage()),
        "who_must_act": analysis.who_must_act(later, coverage=Coverage()),
        "status_by_institution": analysis.status_by_institution(later),
        "aggregation_latency": analysis.aggregation_latency(members),
        "latency_quantiles": analysis.latency_quantiles(members, by="institution"),
        "slow_institutions": analysis.slow_institutions(members),
        "freshness": analysis.freshness(members),
        "outcomes_over_time": analysis.outcomes_over_time(members),
        "institution_funnel": analysis.institution_funnel(later),
        "outage_scan": analysis.outage_scan(later),
        "attributable_share": analysis.attributable_share(later),
        "transitions": analysis.transitions(members, later),
        "flow": analysis.flow(members, later),
        "mix_and_rate": analysis.mix_and_rate(members, later),
        "findings_by_institution": analysis.findings_by_institution(analysis.findings(later)),
        "reply_times": analysis.reply_times(requests),
        "request_failures": analysis.request_failures(requests),
        "run_timeline": analysis.run_timeline(requests),
        "status_history": analysis.status_history(runs),
        "time_in_status": analysis.time_in_status(runs),
        "time_to_recover": analysis.time_to_recover(runs),
    }


def drawn(ax):
    figure = style.root(ax)
    figure.savefig(io.BytesIO(), format="png")
    return figure


def texts(ax):
    """All that is written by hand: title, subtitle, foot, and within the axes and their panels."""
    return [*style.root(ax).texts, *ax.texts, *(text for panel in ax.child_axes for text in panel.texts)]


def test_every_drawing_has_the_name_of_a_summary(summaries):
    assert set(plots.__all__) == set(summaries)
    assert set(plots.__all__) <= set(analysis.__all__)
    assert plots.__all__ == sorted(plots.__all__)
    assert analysis.__all__ == sorted(analysis.__all__)


@pytest.mark.parametrize("name", plots.__all__)
@pytest.mark.parametrize("width", [480, 800, 1600])
def test_nothing_is_clipped(summaries, name, width):
    ax = getattr(plots, name)(summaries[name], width=width)
    figure = drawn(ax)
    assert figure.get_size_inches()[0] * figure.dpi == pytest.approx(width)
    style.foot(
        figure,
        "run r1 · seed 7 · mxlab 0.1 · 1,982 of 2,000 users answered (12 expired, 6 timed out)",
        "SIMULATED",
    )
    whole = figure.bbox
    for text in texts(ax):
        if text.get_text().strip():
            box = text.get_window_extent()
            room = 0.012 * width
            assert box.x0 >= whole.x0 - room, text.get_text()
            assert box.x1 <= whole.x1 + room, text.get_text()
            assert box.y0 >= whole.y0 - room, text.get_text()
            assert box.y1 <= whole.y1 + room, text.get_text()


@pytest.mark.parametrize("name", plots.__all__)
def test_no_text_is_read_as_markup(summaries, name):
    ax = getattr(plots, name)(summaries[name])
    for text in texts(ax):
        assert not text.get_parse_math()
        assert "\u202e" not in text.get_text()


@pytest.mark.parametrize("name", plots.__all__)
def test_dark_own_title_and_axes_of_the_caller(summaries, name):
    dark = getattr(plots, name)(summaries[name], dark=True, title="My $title")
    assert style.root(dark).texts[0].get_text() == "My $title"
    assert style.theme_of(dark) is style.DARK
    drawn(dark)
    figure = Figure(figsize=(9, 4))
    left, right = figure.subplots(1, 2)
    place = left.get_position().bounds
    assert getattr(plots, name)(summaries[name], left) is left
    assert left.get_position().bounds == place
    assert not right.texts
    drawn(left)


@pytest.mark.parametrize("name", plots.__all__)
def test_an_empty_summary_gives_a_picture_that_says_so(summaries, name):
    empty = summaries[name].iloc[:0]
    if name == "mix_and_rate":
        empty = analysis.mix_and_rate(world(1).iloc[:0], world(1).iloc[:0])
    ax = getattr(plots, name)(empty)
    drawn(ax)
    assert texts(ax)


def test_bars_of_status_equal_the_summary(summaries):
    counts = summaries["status_counts"]
    ax = plots.status_counts(counts)
    known = counts[counts["unit"] == "members"]
    assert [bar.get_width() for bar in ax.patches] == pytest.approx(known["share"].tolist())
    assert style.LIGHT.who["nobody"] == "#1f9583"
    first = ax.patches[0].get_facecolor()
    assert first == pytest.approx([0x1F / 255, 0x95 / 255, 0x83 / 255, 1])
    assert "not reached" in {text.get_text() for text in ax.texts}
    assert any(text.get_text() == "18 users" for text in ax.texts)


def test_stacks_by_institution_equal_the_summary(summaries):
    shares = summaries["status_by_institution"]
    ax = plots.status_by_institution(shares)
    drawn = {}
    for bars in ax.collections:
        for box in (path.get_extents() for path in bars.get_paths()):
            drawn[round(box.y0 + box.height / 2), bars.get_label()] = box.x0, box.x1
    rows = shares.groupby("institution", sort=False).ngroup()
    there = shares[shares["share"] > 0]
    expected = there.set_index([rows[there.index], "who_must_act"])["share"].to_dict()
    assert {bar: end - start for bar, (start, end) in drawn.items()} == pytest.approx(expected)
    for row in set(rows):
        ends = [drawn[row, who] for who in WHO_MUST_ACT if (row, who) in drawn]
        assert [start for start, _ in ends] == pytest.approx([0.0, *(end for _, end in ends[:-1])])
        assert ends[-1][1] == pytest.approx(1)


def test_the_title_of_one_institution_says_how_many_are_connected(summaries):
    shares = summaries["status_by_institution"].iloc[: len(WHO_MUST_ACT)]
    shares.attrs["finding"] = None
    shares = shares.assign(institution="Chase " * 60, share=[0.68, 0.32, *[0.0] * 6])
    first, second = style.root(plots.status_by_institution(shares, width=480)).texts[:2]
    assert f"{first.get_text()} {second.get_text()}".endswith("…: 68 % of members are connected")


def test_curve_of_latency_equals_the_summary(summaries):
    summary = summaries["aggregation_latency"]
    ax = plots.aggregation_latency(summary)
    lines = {line.get_label(): line for line in ax.lines}
    for column in ("share", "naive"):
        assert lines[column].get_ydata() == pytest.approx(summary[column].to_numpy())
    marks = [line.get_xdata()[0] for line in ax.lines if line.get_marker() == "o"]
    row = summary.attrs["quantiles"][0]
    assert marks == pytest.approx([row["p50"], row["p90"]])
    assert style.duration(row["p50"]) in style.root(ax).texts[0].get_text()


def test_a_history_speaks_of_change_only_where_intervals_are_apart(summaries):
    history = summaries["status_history"].copy()
    history.loc[:, ["share", "low", "high"]] = 0.5, 0.4, 0.6
    assert style.root(plots.status_history(history)).texts[0].get_text() == (
        "50 % of members are connected in the last run"
    )
    history.loc[history["run_id"] == history["run_id"].iloc[0], ["share", "low", "high"]] = 0.8, 0.7, 0.9
    assert "80 % were in the first run" in style.root(plots.status_history(history)).texts[0].get_text()


def test_a_history_names_the_trouble_that_changed_where_the_connected_did_not(summaries):
    history = summaries["status_history"].copy()
    history.loc[:, ["share", "low", "high"]] = 0.5, 0.4, 0.6
    last = (history["run_id"] == history["run_id"].iloc[-1]) & (history["who_must_act"] == "user")
    history.loc[last, ["share", "low", "high"]] = 0.7, 0.65, 0.75
    assert said(plots.status_history(history)) == "“user must act”: 70 % of members, 50 % in the first run"


def test_areas_of_outcomes_are_stacked(summaries):
    summary = summaries["outcomes_over_time"]
    ax = plots.outcomes_over_time(summary)
    tops = [line.get_ydata()[-1] for line in ax.lines]
    finals = summary.groupby(["outcome", "who_must_act"], sort=False, observed=True)["share"].last()
    assert tops == pytest.approx(np.cumsum(finals).tolist())


@pytest.mark.parametrize("days", [1e-5, 61 / 86_400, 90 / 86_400, 100 / 86_400, 0.04, 3, 40, 721, 9_999])
def test_two_runs_however_far_apart_have_days_or_times_below(summaries, days):
    """A warning of matplotlib's fails it: ranges for which a narrow picture had no step gave one."""
    history = summaries["status_history"]
    first, last = history["run_id"].iloc[0], history["run_id"].iloc[-1]
    history = history[history["run_id"].isin([first, last])].copy()
    begun = history["seen_at"].min()
    history["seen_at"] = begun
    history.loc[history["run_id"] == last, "seen_at"] = begun + timedelta(days)
    ax = plots.status_history(history, width=480)
    png(style.root(ax))
    boxes = [each.get_window_extent() for each in ax.get_xticklabels() if each.get_text()]
    assert 1 <= len(boxes) <= 6
    assert all(left.x1 < right.x0 for left, right in itertools.pairwise(boxes))


def test_lines_of_the_history_equal_the_summary(summaries):
    summary = summaries["status_history"]
    ax = plots.status_history(summary)
    lines = {line.get_label(): line for line in ax.lines}
    assert set(lines) == {"nobody", "user"}
    for who, line in lines.items():
        part = summary[summary["who_must_act"] == who]
        assert line.get_ydata() == pytest.approx(part["share"].to_numpy())
    assert (
        f"{style.percent(lines['nobody'].get_ydata()[-1])} of members" in style.root(ax).texts[0].get_text()
    )


def test_dots_of_the_time_in_a_status_are_its_medians(summaries):
    summary = summaries["time_in_status"]
    ax = plots.time_in_status(summary)
    dots = [line.get_xdata()[0] for line in ax.lines if line.get_marker() == "o"]
    assert dots == pytest.approx(summary["p50"].dropna().tolist())
    ends = [bar.get_x() + bar.get_width() for bar in ax.patches]
    assert ends == pytest.approx(summary["p90"].dropna().tolist())


def test_curves_of_recovery_equal_the_summary(summaries):
    summary = summaries["time_to_recover"]
    ax = plots.time_to_recover(summary)
    lines = {line.get_label(): line for line in ax.lines}
    for group in summary["group"].unique():
        part = summary[summary["group"] == group]
        assert lines[group].get_ydata() == pytest.approx(part["share"].to_numpy())
    whole = summary[summary["group"] == "all"]
    assert lines["naive"].get_ydata() == pytest.approx(whole["naive"].to_numpy(), nan_ok=True)


def test_the_timeline_has_a_panel_for_each_measure_over_one_time(summaries):
    summary = summaries["run_timeline"]
    ax = plots.run_timeline(summary)
    assert style.root(ax).texts[0].get_text().startswith(f"{summary.attrs['n']:,} requests in ")
    for panel, name in zip(ax.child_axes, ("sent_per_second", "in_flight", "failed_per_second"), strict=True):
        area, outline = panel.patches
        assert outline.get_label() == name
        for each in (area, outline):
            assert each.get_data().values == pytest.approx(summary[name].to_numpy())
            assert each.get_data().edges[:-1] == pytest.approx(summary["seconds"].to_numpy())
        assert panel.get_xlim() == ax.child_axes[0].get_xlim()
        assert f"at most {summary[name].max():,.0f}" in panel.texts[0].get_text()
    sent = summary["sent_per_second"].sum() * summary.attrs["span_seconds"]
    assert sent == pytest.approx(summary.attrs["n"])


def test_a_finding_is_only_said_where_its_test_passed(frames):
    members = frames[0]
    calm = analysis.slow_institutions(members)
    calm["is_slower"] = False
    assert (
        style.root(plots.slow_institutions(calm)).texts[0].get_text()
        == "No institution is slower than the rest"
    )
    same = analysis.mix_and_rate(members, members)
    assert "not changed" in style.root(plots.mix_and_rate(same)).texts[0].get_text()
    still = analysis.transitions(members, members)
    assert "Nothing moved" in style.root(plots.transitions(still)).texts[0].get_text()


def said(ax):
    """The title."""
    return style.root(ax).texts[0].get_text()


@pytest.mark.parametrize(
    ("status", "found"),
    [
        ("FAILED", "MX or the bank must act on 50 %"),
        ("DENIED", "users must act on 50 %"),
        ("CLOSED", "50 % are over"),
        ("DELAYED", "50 % wait"),
        ("ZOMBIE", "50 % have an unknown status"),
        ("CONNECTED", None),
    ],
)
def test_the_title_names_the_largest_trouble(status, found):
    members = world(400, seed=1)
    members["connection_status"] = members["connection_status"].cat.add_categories("ZOMBIE")
    half = with_status(members, np.ones(400, bool), "CONNECTED")
    half = with_status(half, np.arange(400) % 2 == 0, status)
    expected = f"50 % of members are connected; {found}" if found else "100 % of members are connected"
    for name in ("status_counts", "who_must_act"):
        assert said(getattr(plots, name)(getattr(analysis, name)(half))) == expected


def test_the_title_names_two_that_are_about_as_large():
    members = with_status(world(1_000, seed=1), np.ones(1_000, bool), "CONNECTED")
    members = with_status(members, np.arange(1_000) < 80, "DENIED")
    both = with_status(members, np.arange(1_000) >= 910, "FAILED")
    assert said(plots.who_must_act(analysis.who_must_act(both))) == (
        "83 % are connected; MX or the bank must act on 9.0 %, users on 8.0 %"
    )
    one = with_status(members, np.arange(1_000) >= 990, "FAILED")
    assert said(plots.who_must_act(analysis.who_must_act(one))) == (
        "91 % of members are connected; users must act on 8.0 %"
    )


def test_bars_of_what_an_institution_adds_are_its_excess_without_the_rows_of_one_member(summaries):
    summary = summaries["attributable_share"]
    summary = summary.assign(excess=np.linspace(30, -3, len(summary)))
    bars = [bar.get_width() for bar in plots.attributable_share(summary, top=99).patches]
    assert bars == pytest.approx(summary.loc[summary["excess"] >= 1.5, "excess"].tolist())
    left_out = ((summary["excess"] > 0) & (summary["excess"] < 1.5)).sum()
    subtitle = " ".join(
        text.get_text() for text in style.root(plots.attributable_share(summary, top=99)).texts
    )
    assert f"{left_out} more add less than two" in subtitle
    small = summary.assign(excess=0.7)
    assert len(plots.attributable_share(small).patches) > 0


def test_cells_and_totals_of_findings_equal_the_summary(summaries):
    summary = summaries["findings_by_institution"]
    ax = plots.findings_by_institution(summary)
    centres = {(round(cell.get_x() + 0.47), round(cell.get_y() + 0.45)) for cell in ax.patches}
    numbers = {text.get_position(): text.get_text().replace(",", "") for text in ax.texts}
    assert sum(int(numbers[centre]) for centre in centres) == summary["count"].sum()
    for place, (rule, part) in enumerate(summary.groupby("rule", sort=False, observed=True)):
        beside = {text for (_, y), text in numbers.items() if y == place}
        assert {rule, str(part["count"].sum())} <= beside


def test_axes_of_few_counts_and_of_shares_end_with_their_unit():
    ax = style.figure().add_subplot()
    ax.set_xscale("log")
    ax.set_xlim(0.9, 6.4)
    style.count_axis(ax, "x", unit="members")
    ticks = [ax.xaxis.get_major_formatter()(at, 0) for at in ax.get_xticks() if 0.9 <= at <= 6.4]
    assert ticks == ["1", "2", "5 members"]
    ax.set_ylim(0, 0.86)
    style.share_axis(ax, "y", 0.86)
    assert [ax.yaxis.get_major_formatter()(at, 0) for at in ax.get_yticks()] == ["0", "25", "50", "75 %"]


def test_a_curve_that_is_not_known_is_not_drawn(summaries):
    unknown = summaries["time_to_recover"].assign(share=np.nan, low=np.nan, high=np.nan)
    ax = plots.time_to_recover(unknown)
    assert not ax.lines
    assert "no curve" in ax.texts[0].get_text()


def test_one_member_is_no_finding(summaries):
    lone = summaries["attributable_share"].assign(excess=0.9, excess_low=0.2)
    assert said(plots.attributable_share(lone)) == (
        "What each institution adds to members waiting for MX or the bank"
    )


def test_further_attempts_stand_below_their_endpoint():
    summary = analysis.reply_times(log())
    ax = plots.reply_times(summary, width=480)
    names = [text.get_text() for text in ax.texts if text.get_ha() == "right"]
    for endpoint in summary["endpoint"].unique():
        assert names.count(endpoint) == 1


def test_a_kind_in_brackets_outlives_a_cut():
    name = "Sycamore Bank of Cedar County (OAuth)"
    assert style.cut(name, 9.0, 9) == name
    short = style.cut(name, 1.5, 9)
    assert short.startswith("Syc")
    assert short.endswith("… (OAuth)")
    assert style.text_width(short, 9) <= 1.5
    assert style.cut("Bank (" + "x" * 100 + ")", 1.5, 9).endswith("x…")


def test_a_name_of_nothing_to_see_has_a_mark():
    assert style.clean("\x00\x07") == style.clean(" ") == "▯"
    assert style.clean("") == ""


def test_lines_are_balanced_and_whole():
    text = "Members waiting for MX or the bank beyond what the share of the others explains, less"
    lines = style.balanced(text, 4.0, 9)
    assert " ".join(lines) == text
    assert len(lines) == len(style.wrapped(text, 4.0, 9))
    assert max(style.text_width(line, 9) for line in lines) <= 4.0
    assert min(map(len, lines)) > 0.6 * max(map(len, lines))


def test_a_long_name_leaves_the_title_its_verb(summaries):
    summary = summaries["outage_scan"].assign(is_alarm=False)
    summary["institution"] = [f"{'very long ' * 30}{number}" for number in range(len(summary))]
    summary.loc[0, "is_alarm"] = True
    text = " ".join(each.get_text() for each in style.root(plots.outage_scan(summary, width=480)).texts)
    assert "… fails far more than its past explains" in text


def test_dates_have_no_leading_nought(summaries):
    ax = plots.status_history(summaries["status_history"])
    drawn(ax)
    ticks = [text.get_text() for text in ax.get_xticklabels()]
    assert any(tick[0].isdigit() for tick in ticks if tick)
    assert not any(tick.startswith("0") for tick in ticks)


def test_ticks_do_not_touch(summaries):
    for name in ("slow_institutions", "aggregation_latency", "freshness", "reply_times", "time_in_status"):
        ax = getattr(plots, name)(summaries[name], width=480)
        drawn(ax)
        boxes = [text.get_window_extent() for text in ax.get_xticklabels() if text.get_text()]
        for left, right in itertools.pairwise(boxes):
            assert left.x1 < right.x0, name


@pytest.mark.parametrize(
    ("seconds", "said"),
    [
        (0.04, "40 ms"),
        (1, "1 s"),
        (21.4, "21 s"),
        (90, "1.5 min"),
        (59.9, "1 min"),
        (7_200, "2 h"),
        (86_400, "24 h"),
        (172_800, "2 days"),
    ],
)
def test_times_as_people_say_them(seconds, said):
    assert style.duration(seconds) == said


@pytest.mark.parametrize(
    ("share", "said"),
    [
        (0, "0 %"),
        (0.0001, "<0.1 %"),
        (0.0123, "1.2 %"),
        (0.07, "7.0 %"),
        (0.666, "67 %"),
        (0.999, ">99 %"),
        (1, "100 %"),
    ],
)
def test_shares_as_people_say_them(share, said):
    assert style.percent(share) == said


@pytest.mark.parametrize("name", NASTY)
def test_names_are_plain_and_short(name):
    text = style.cut(name, 1.5, 9)
    assert style.text_width(text, 9) <= 1.5
    assert all(letter.isprintable() for letter in text)
    assert len(style.wrapped(name, 2.0, 9)) >= 1


def test_labels_keep_their_distance():
    places = style.apart([0.5, 0.5, 0.5, 0.9], 0.1, 0.0, 1.0)
    assert np.diff(sorted(places)).min() >= 0.1 - 1e-9
    low = style.apart([0.0, 0.0, 0.01], 0.1, 0.03, 1.0)
    assert low == pytest.approx([0.03, 0.13, 0.23])
    assert min(places) >= 0
    assert max(places) <= 1


def test_flow_of_who_must_act_has_a_ribbon_for_each_move(frames):
    members, later, _ = frames
    summary = analysis.flow(members, later)
    ax = plots.flow(summary)
    outlines = [ribbon.get_paths()[0].vertices for ribbon in ax.collections]
    wide = [np.ptp(outline[outline[:, 0] == 0, 1]) for outline in outlines]
    assert sorted(wide) == pytest.approx(sorted(summary["count"] / summary["count"].sum()))


BASELINES = Path(__file__).parent / "baselines"
#: Other versions set letters half a pixel apart, which is more than a missing word makes.
BASELINES_ARE_OF = "3.11"
#: Root mean square of the difference of two pictures at half their size, 0 to 255. A bar in another colour makes
#: 1.6, a word that is missing from the foot 3.4.
MOST_APART = 1.5


def apart(left, right):
    """How different two pictures are; infinitely where their sizes are."""
    pictures = [image.imread(each)[..., :3] * 255.0 for each in (left, right)]
    if pictures[0].shape != pictures[1].shape:
        return np.inf
    height, width = (length // 2 * 2 for length in pictures[0].shape[:2])
    halves = [
        picture[:height, :width].reshape(height // 2, 2, width // 2, 2, 3).mean(axis=(1, 3))
        for picture in pictures
    ]
    return float(np.sqrt(np.mean((halves[0] - halves[1]) ** 2)))


@pytest.mark.parametrize("dark", [False, True])
def test_letters_from_memory_are_those_of_matplotlib(summaries, dark, tmp_path):
    ours, theirs = tmp_path / "ours.png", tmp_path / "theirs.png"
    figure = style.root(plots.status_by_institution(summaries["status_by_institution"], dark=dark))
    style.words(figure, 0.5, 0.5, "faint, over bars", alpha=0.4, color="#c8352b")
    style.words(figure, 0.98, 0.5, "along the edge", rotation=90, ha="right")
    ours.write_bytes(png(figure))
    assert ours.read_bytes() == png(figure)
    FigureCanvasAgg(figure).print_png(theirs)
    if mpl.__version__.startswith(
        f"{BASELINES_ARE_OF}."
    ):  # others set lines on whole pixels, a half up or down
        assert apart(ours, theirs) < MOST_APART
    difference = image.imread(ours)[..., :3] - image.imread(theirs)[..., :3]
    assert np.abs(difference.mean(axis=(0, 1))).max() < 2e-4
    figure.texts[0].remove()
    ours.write_bytes(png(figure))
    assert apart(ours, theirs) > MOST_APART


def dots(ax):
    """Places of the dots of rows."""
    return [
        line.get_xdata()[0] for line in ax.lines if line.get_marker() == "o" and len(line.get_xdata()) == 1
    ]


def spans_of(ax):
    """Ends of the lines along the rows."""
    along = [line for line in ax.lines if len(line.get_xdata()) == 2 and np.ptp(line.get_ydata()) == 0]
    return [end for line in along for end in line.get_xdata()]


def both(frame, low, high):
    return frame[[low, high]].to_numpy().ravel().tolist()


def test_bars_of_who_must_act_equal_the_summary(summaries):
    summary = summaries["who_must_act"]
    known = summary[summary["unit"] == "members"]
    ax = plots.who_must_act(summary)
    assert [bar.get_width() for bar in ax.patches] == pytest.approx(known["share"].tolist())
    assert spans_of(ax) == pytest.approx(both(known, "low", "high"))


def test_rows_of_latency_equal_the_summary(summaries):
    summary = summaries["latency_quantiles"]
    ax = plots.latency_quantiles(summary)
    shown = summary[summary["p50"].notna()].head(15).sort_values("p50", ascending=False)
    assert len(shown) > 3
    assert dots(ax) == pytest.approx(shown["p50"].tolist())
    assert spans_of(ax) == pytest.approx(both(shown, "p50_low", "p50_high"), nan_ok=True)
    ends = [bar.get_x() + bar.get_width() for bar in ax.patches]
    assert ends == pytest.approx(shown["p90"].dropna().tolist())


def test_rows_of_slow_institutions_equal_the_summary(summaries):
    summary = summaries["slow_institutions"]
    shown = summary.head(12)
    ax = plots.slow_institutions(summary)
    assert len(shown) > 3
    assert dots(ax) == pytest.approx(shown["ratio"].tolist())
    known = shown.assign(**{end: shown[end].fillna(shown["ratio"]) for end in ("ratio_low", "ratio_high")})
    assert spans_of(ax) == pytest.approx(both(known, "ratio_low", "ratio_high"))
    bold = {text.get_text() for text in ax.texts if text.get_weight() == "bold"}
    assert len(bold) == shown["is_slower"].sum()


def test_curve_of_freshness_equals_the_summary(summaries):
    summary = summaries["freshness"]
    ax = plots.freshness(summary)
    curve = next(line for line in ax.lines if line.get_label() == "share")
    assert curve.get_ydata() == pytest.approx(summary["share"].to_numpy())
    assert curve.get_xdata() == pytest.approx(summary["seconds"].to_numpy())
    within = summary.attrs["within"]
    mark = next(line for line in ax.lines if line.get_marker() == "o")
    assert mark.get_xydata()[0] == pytest.approx([summary.attrs["within_seconds"], within["share"]])


def test_rows_of_the_scan_equal_the_summary(summaries):
    summary = summaries["outage_scan"]
    shown = summary.drop_duplicates("institution").head(10)
    ax = plots.outage_scan(summary)
    assert len(shown) > 3
    assert dots(ax) == pytest.approx(shown["share"].tolist())
    assert spans_of(ax) == pytest.approx(both(shown, "low", "high"))
    bars = [line.get_xdata()[0] for line in ax.lines if np.ptp(line.get_ydata()) > 0]
    assert bars == pytest.approx(shown["baseline_share"].tolist())


def test_dots_and_limits_of_the_funnel_equal_the_summary(summaries):
    summary = summaries["institution_funnel"]
    lines = {line.get_label(): line for line in plots.institution_funnel(summary).lines}
    for label, part in (("inside", ~summary["is_outside"]), ("outside", summary["is_outside"])):
        assert lines[label].get_xdata() == pytest.approx(summary.loc[part, "n"].to_numpy())
        assert lines[label].get_ydata() == pytest.approx(summary.loc[part, "share"].to_numpy())
    drawn_limits = [
        tuple(line.get_ydata()) for line in lines.values() if len(line.get_ydata()) == len(summary)
    ]
    by_size = summary.sort_values("n")
    for name in ("low_95", "high_95", "low_998", "high_998"):
        assert tuple(by_size[name]) in drawn_limits


def test_rows_of_reply_times_equal_the_summary(summaries):
    summary = summaries["reply_times"]
    shown = summary[summary["p50"].notna()]
    ax = plots.reply_times(summary)
    assert dots(ax) == pytest.approx(shown["p50"].tolist())
    assert [bar.get_x() + bar.get_width() for bar in ax.patches] == pytest.approx(shown["p90"].tolist())
    ticks = [line.get_xdata()[0] for line in ax.lines if np.ptp(line.get_ydata()) > 0]
    assert ticks == pytest.approx(shown["p99"].tolist())


def test_bars_of_failures_equal_the_summary(summaries):
    summary = summaries["request_failures"]
    ax = plots.request_failures(summary)
    assert len(summary)
    assert [bar.get_width() for bar in ax.patches] == summary["count"].head(12).tolist()


def test_cells_of_transitions_equal_the_summary(summaries):
    summary = summaries["transitions"]
    ax = plots.transitions(summary)
    rows = [text.get_text() for text in ax.texts if text.get_ha() == "right"]
    columns = [text.get_text() for text in ax.texts if text.get_rotation() == 45]
    assert rows == columns
    written = {text.get_position(): text.get_text() for text in ax.texts if text.get_ha() == "center"}
    assert len(written) == len(ax.patches) == len(summary)
    for row in summary.to_dict("records"):
        text = written[columns.index(row["to_status"]), rows.index(row["from_status"])]
        assert text in {f"{row['count']:,}", f"{row['count'] / 1000:.0f}k"}
    framed = sum(cell.get_linewidth() > 1.5 for cell in ax.patches)
    assert framed == summary["is_change"].sum() > 0


def test_moves_where_a_matrix_has_no_room_equal_the_summary(summaries):
    summary = summaries["transitions"]
    moved = summary[summary["from_status"] != summary["to_status"]].sort_values("count", ascending=False)
    bars = [bar.get_width() for bar in plots.transitions(summary, width=480).patches]
    assert bars == moved["count"].head(15).tolist()


def test_bars_of_mix_and_rate_equal_the_summary(summaries):
    summary = summaries["mix_and_rate"]
    ax = plots.mix_and_rate(summary)
    attrs = summary.attrs
    expected = [attrs["total"], attrs["mix"], attrs["rate"], *summary["total"].head(6)]
    expected.append(summary["total"].iloc[6:].sum())
    assert [bar.get_width() for bar in ax.patches] == pytest.approx(expected)
    assert attrs["mix"] + attrs["rate"] == pytest.approx(attrs["total"])
    assert summary["total"].sum() == pytest.approx(attrs["total"])


def test_another_colour_or_a_missing_word_is_another_picture(summaries, tmp_path):
    first, second = tmp_path / "first.png", tmp_path / "second.png"
    for path, change in (
        (first, style.root),
        (second, lambda ax: ax.patches[16].set_facecolor("#1f9583")),
        (second, lambda ax: style.root(ax).texts[1].remove()),
    ):
        ax = plots.status_counts(summaries["status_counts"], width=480)
        change(ax)
        path.write_bytes(png(style.root(ax)))
        assert (apart(first, path) > MOST_APART) == (path == second)


@pytest.mark.parametrize("name", ["status_counts", "aggregation_latency", "run_timeline", "flow"])
def test_a_picture_is_as_it_was_looked_at(summaries, name, tmp_path):
    if not mpl.__version__.startswith(f"{BASELINES_ARE_OF}."):
        pytest.skip(
            f"NO PICTURE IS COMPARED: letters differ between matplotlib {BASELINES_ARE_OF} and {mpl.__version__}"
        )
    path, drawn_now = BASELINES / f"{name}.png", tmp_path / f"{name}.png"
    ax = getattr(plots, name)(summaries[name], width=480)
    style.foot(style.root(ax), "run r1 · seed 7 · mxlab 0.1 · 1,982 of 2,000 users answered", "SIMULATED")
    drawn_now.write_bytes(png(style.root(ax)))
    if not path.exists():
        path.parent.mkdir(exist_ok=True)
        path.write_bytes(drawn_now.read_bytes())
        pytest.fail(f"{path} was not there and is now: look at it, then commit it")
    assert apart(path, drawn_now) <= MOST_APART, (
        f"{drawn_now} differs: look at it, and remove {path} if it is right"
    )


def test_the_gallery_of_the_readme_has_every_chart():
    root = Path(__file__).parent.parent
    pictures = {path.stem for path in (root / "notebooks" / "gallery").glob("*.png")}
    assert pictures == set(CHARTS)
    shown = re.findall(r'src="(notebooks/gallery/[^"]+)"', (root / "README.md").read_text())
    assert len(shown) >= 4
    assert all((root / name).is_file() for name in shown)
