import re
import threading
from html.parser import HTMLParser

import numpy as np
import pandas as pd
import pyarrow as pa
import pytest
from widgets_sample import HOSTILE, snapshot

import mxlab as mx
from mxlab import cli, reporting
from mxlab.charts import CHARTS, OVERVIEW
from mxlab.errors import ConfigError
from mxlab.frames import SCHEMAS, Coverage, Snapshot, failures_frame
from mxlab.nexus.status import who_must_act
from mxlab.reporting import coverage_sentences, headline, report

ALLOWED = {
    "html",
    "head",
    "meta",
    "title",
    "style",
    "body",
    "header",
    "main",
    "footer",
    "section",
    "strong",
    "h1",
    "h2",
    "p",
    "ul",
    "li",
    "figure",
    "picture",
    "source",
    "img",
    "details",
    "summary",
    "div",
    "table",
    "caption",
    "thead",
    "tbody",
    "tr",
    "th",
    "td",
}


class Page(HTMLParser):
    def __init__(self, text):
        super().__init__()
        self.tags, self.attributes, self.texts, self.pictures = set(), [], [], []
        self.feed(text)

    def handle_starttag(self, tag, attrs):
        self.tags.add(tag)
        self.attributes += attrs
        if tag == "img":
            self.pictures.append(dict(attrs))

    def handle_data(self, data):
        self.texts.append(data)

    @property
    def text(self):
        return " ".join(self.texts)


@pytest.fixture
def undrawn(monkeypatch):
    """Only the names of the charts, for tests of what is written."""
    monkeypatch.setattr(reporting, "_chart", lambda name, *_: f"<section>chart {name}</section>")


@pytest.fixture(scope="module")
def page(tmp_path_factory):
    return Page(report(snapshot(), tmp_path_factory.mktemp("report") / "health.html").read_text("utf-8"))


def test_the_page_needs_nothing_else(page):
    assert page.tags <= ALLOWED
    policy = dict(page.attributes)["content"]
    assert "default-src 'none'; img-src data:; style-src 'unsafe-inline'" in [
        value for _, value in page.attributes
    ]
    assert policy
    for name, value in page.attributes:
        assert not name.startswith("on")
        if name in {"src", "href", "srcset"}:
            assert value.startswith("data:image/png;base64,")
    assert "url(" not in page.text
    assert "@import" not in page.text


def test_every_chart_has_its_text_its_figures_and_the_stamp(page):
    assert len(page.pictures) == len(OVERVIEW)
    for picture in page.pictures:
        assert "SIMULATED" in picture["alt"]
        assert "run sample" in picture["alt"]
    for chart in (CHARTS[name] for name in OVERVIEW):
        assert chart.question in page.text
    assert page.texts[0].strip() == "" or "SIMULATED" in page.texts[0]
    assert re.search(r"SIMULATED · Connection health, run sample", page.text)


def test_a_real_run_is_not_stamped(tmp_path):
    assert "SIMULATED" not in report(snapshot(simulated=False), tmp_path / "x.html").read_text("utf-8")


def test_failures_are_pseudonymous_and_say_what_to_do(page):
    assert "Ask." in page.text
    assert "user-1" not in page.text
    assert f"{1:032x}" in page.text


def test_names_do_no_harm(tmp_path):
    text = report(snapshot(600, banks=HOSTILE), tmp_path / "x.html").read_text("utf-8")
    assert Page(text).tags <= ALLOWED
    assert "<script" not in text
    assert "\u202e" not in text
    assert "N" * 300 in text


def test_the_headline_finds_the_slow_bank_and_says_so_when_there_is_none():
    said = headline(snapshot(slow=3))
    assert said[0].startswith("4")
    assert "95 % interval" in said[0]
    assert any(each.startswith("Users must act on") for each in said)
    assert any(each.startswith("Half of the aggregations that finish do so within") for each in said)
    assert any(each.startswith("Bank 3 is slower than the rest") for each in said)
    assert any(
        each.startswith("No bank is slower than the rest (8 compared)")
        for each in headline(snapshot(slow=-1))
    )


def test_a_run_without_times_or_members_says_so(tmp_path):
    few = headline(snapshot(6, verb="observe"))
    assert any("not known" in each for each in few)
    assert any("compared with the rest" in each for each in few)
    empty = snapshot(0)
    assert "No member was seen" in headline(empty)[0]
    assert report(empty, tmp_path / "x.html").exists()


@pytest.mark.usefixtures("undrawn")
def test_a_snapshot_without_a_full_manifest_is_reported(tmp_path):
    whole = snapshot(90)
    bare = Snapshot({"run": "saved"}, Coverage(30, 30), failures_frame([]), whole.table)
    assert "run saved" in report(bare, tmp_path / "x.html").read_text("utf-8")


def test_coverage_in_words():
    assert coverage_sentences(Coverage(10, 10)) == ["10 of 10 users answered (100 %)."]
    stopped = coverage_sentences(Coverage(10, 6, 1, 1, 2, order="random"))
    assert "1 lost, 1 of unknown fate, 2 not yet asked or followed" in stopped[1]
    assert "fair sample" in stopped[2]
    assert "may differ" in coverage_sentences(Coverage(10, 6, pending=4))[2]
    assert coverage_sentences(Coverage(0, 0)) == ["No user was asked."]


@pytest.mark.usefixtures("undrawn")
def test_a_loss_that_goes_with_a_bank_is_said_beside_the_coverage(tmp_path):
    snap, rng = snapshot(1_200), np.random.default_rng(1)
    at_one = of_bank(snap, "Bank 2")
    for lost, words in (
        (at_one, "Who is lost goes with the institution, more than by chance: the rates may be off."),
        (rng.random(1_200) < at_one.mean(), "Who is lost goes neither with the order of the run nor with an"),
    ):
        states = np.where(lost, "lost", "answered").tolist()
        page = Page(report(aged(snap, 0, user_state=states), tmp_path / "x.html").read_text("utf-8"))
        assert words in page.text
    whole = Snapshot(snap.manifest, Coverage(400, 400), failures_frame([]), snap.table)
    assert "Who is lost" not in report(whole, tmp_path / "x.html").read_text("utf-8")


def test_nothing_is_left_of_a_report_that_failed(tmp_path, monkeypatch):
    with pytest.raises(ConfigError, match="folder that exists"):
        report(snapshot(30), tmp_path / "nowhere" / "x.html")
    monkeypatch.setattr(reporting, "_page", lambda *_: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        report(snapshot(30), tmp_path / "x.html")
    assert list(tmp_path.iterdir()) == []


def test_reports_can_be_written_from_two_threads(tmp_path):
    snap = snapshot(90)
    threads = [threading.Thread(target=report, args=(snap, tmp_path / f"{n}.html")) for n in range(2)]
    for each in threads:
        each.start()
    for each in threads:
        each.join()
    assert (tmp_path / "0.html").read_bytes() == (tmp_path / "1.html").read_bytes()


def aged(snap, days, **columns):
    """The same run so many days later under the name of that day, with other values in some columns."""
    table = snap.table("members")
    for name, values in columns.items():
        place = table.schema.get_field_index(name)
        field = SCHEMAS["members"].field(name)
        table = table.set_column(place, field, pa.array(values, field.type, from_pandas=True))
    at = pd.Timestamp("2026-11-23T12:00:00Z") + pd.Timedelta(days=days)
    manifest = snap.manifest | {"run": f"day-{days}", "started_at": at.isoformat()}
    tables = {name: schema.empty_table() for name, schema in SCHEMAS.items()} | {"members": table}
    return Snapshot(manifest, snap.coverage, snap.failures, tables.__getitem__)


def moved(snap, rows, status, days=7):
    """The run a week later, some of its members with another status."""
    words = snap.table("members")["connection_status"].to_pylist()
    words = [status if row else word for row, word in zip(rows, words, strict=True)]
    return aged(snap, days, connection_status=words, who_must_act=[who_must_act(word) for word in words])


def of_bank(snap, name, status="CONNECTED"):
    table = snap.table("members")
    return (np.array(table["name"].to_pylist()) == name) & (
        np.array(table["connection_status"].to_pylist()) == status
    )


def text_of(snap, against, folder):
    return Page(report(snap, folder / "x.html", against=against).read_text("utf-8"))


@pytest.mark.usefixtures("undrawn")
def test_two_runs_between_which_nothing_happened_show_no_change(tmp_path):
    """Some moved each way, as many to a status as from it."""
    before = snapshot(900)
    table, order = before.table("members"), np.arange(900)
    some = np.random.default_rng(4).choice(900, 60, replace=False)
    order[some] = np.roll(some, 1)
    swapped = table.take(pa.array(order))
    columns = ("connection_status", "who_must_act")
    now = aged(before, 7, **{name: swapped[name].to_pylist() for name in columns})
    said = headline(now, before)
    assert said[1].startswith("No change that passes a test: 7 days before ")
    assert not any(re.search("since then|beyond chance:|points", each) for each in said)
    page = text_of(now, before, tmp_path)
    assert page.tags <= ALLOWED
    for words in ("By who must act", "By connection status", "By institution"):
        assert re.search(rf"{words}: no change that passes a test, of \d+ shares tested", page.text)
    assert "No field has vanished." in page.text
    assert "0 findings are new since the earlier run." in page.text


@pytest.mark.usefixtures("undrawn")
def test_the_bank_that_has_failed_since_is_named_and_no_other(tmp_path):
    before = snapshot(1_200)
    now = moved(before, of_bank(before, "Bank 3"), "FAILED")
    n = int(of_bank(before, "Bank 3").sum())
    said = headline(now, before)
    named = next(each for each in said if each.startswith("Bank"))
    assert named.startswith("Bank 3: MX or the bank must act on")
    assert sum("points, " in each and each.startswith("Bank") for each in said) == 1
    assert "7 days before" in said[1]
    assert "by another mix of members 0.0 (" in said[1]
    assert "passes no test), by other rates" in said[1]
    page = text_of(now, before, tmp_path)
    assert "By institution: 2 of" in page.text, "more fail and fewer are connected"
    for name in ("flow", "mix_and_rate", *OVERVIEW):
        assert f"chart {name}" in page.text
    changes = mx.analysis.member_changes(before.members, now.members)
    assert (changes["to_status"] == "FAILED").sum() == pytest.approx(n, abs=n // 20), (
        "the lost are not counted"
    )


@pytest.mark.usefixtures("undrawn")
def test_other_members_at_the_same_rates_are_told_from_other_rates(tmp_path):
    """More members at a bank where most fail; no bank does worse than before."""
    few, many = snapshot(1_500, seed=3), snapshot(2_400, seed=3)
    poor = [np.arange(size) % 8 == 7 for size in (1_500, 2_400)]
    runs = []
    for place, (snap, mine) in enumerate(zip((few, many), poor, strict=True)):
        keep = mine | (np.arange(len(mine)) < 1_500)
        failing = mine & (np.arange(len(mine)) // 8 % 10 < 8)
        words = np.where(failing, "FAILED", "CONNECTED").tolist()
        names = np.where(mine, "Poor Bank", "Good Bank").tolist()
        guids = [f"INS-{int(each)}" for each in mine]
        whole = aged(
            snap,
            7 * place,
            connection_status=words,
            who_must_act=[who_must_act(word) for word in words],
            name=names,
            institution_guid=guids,
            guid=[f"MBR-{number}" for number in range(len(mine))],
            user_state=["answered"] * len(mine),
        )
        table = whole.table("members").filter(pa.array(keep))
        tables = {name: schema.empty_table() for name, schema in SCHEMAS.items()} | {"members": table}
        runs.append(Snapshot(whole.manifest, whole.coverage, whole.failures, tables.__getitem__))
    before, now = runs
    said = headline(now, before)
    part = re.search(
        r"by another mix of members (\S+) \(\S+ to \S+\), by other rates at the banks \S+ \((.*)\)", said[1]
    )
    assert part, said[1]
    assert part[1].startswith("−")
    assert part[2].endswith("passes no test")
    assert "At no bank has a share changed beyond chance." in said
    page = text_of(now, before, tmp_path)
    assert "113 have come since, 0 are gone" in page.text


@pytest.mark.usefixtures("undrawn")
def test_two_samples_of_other_users_are_compared_as_such(tmp_path):
    before = snapshot(1_200)
    now = aged(before, 7, guid=[f"MBR-other-{number}" for number in range(1_200)])
    page = text_of(now, before, tmp_path)
    assert "changes are tested as between two samples" in page.text
    assert "No change that passes a test" in page.text


@pytest.mark.usefixtures("undrawn")
def test_what_is_new_among_the_records_that_look_wrong(tmp_path):
    before = snapshot(300)
    late = [None] * 5 + [pd.Timestamp("2027-01-01", tz="UTC")] + [None] * 294
    nameless = [None] * 3 + before.table("members")["guid"].to_pylist()[3:]
    now = aged(before, 7, aggregated_at=late, use_cases=[None] * 300, guid=nameless)
    rows = re.findall(r"<tr>.*?</tr>", report(now, tmp_path / "x.html", against=before).read_text("utf-8"))
    texts = [re.sub(r"(<[^>]+>)+", "|", row) for row in rows]
    assert any(re.search(r"time-in-future\|1\|0\|1\|a job began", each) for each in texts)
    assert any(re.search(r"guid-missing\|3\|0\|3\|a member without", each) for each in texts)
    assert any("field-vanished" in each for each in texts)
    assert re.search(
        r"A field has vanished: use_cases, before in \d+%", (tmp_path / "x.html").read_text("utf-8")
    )


@pytest.mark.usefixtures("undrawn")
def test_names_do_no_harm_where_they_are_named_for_a_change(tmp_path):
    before = snapshot(1_200, banks=HOSTILE)
    now = moved(before, of_bank(before, HOSTILE[0]) | of_bank(before, HOSTILE[5]), "FAILED")
    text = report(now, tmp_path / "x.html", against=before).read_text("utf-8")
    assert Page(text).tags <= ALLOWED
    assert "&lt;script&gt;alert(1)&lt;/script&gt;: MX or the bank must act on" in text
    assert "<script" not in text
    assert "\u202e" not in text


@pytest.mark.usefixtures("undrawn")
def test_both_runs_are_described(tmp_path):
    before = snapshot(300, simulated=False)
    now = aged(snapshot(300), 7)
    page = text_of(now, before, tmp_path)
    assert "against the run 7 days before: run sample" in page.text
    assert "Manifests of both runs" in page.text
    assert re.search(r"SIMULATED · Connection health, run day-7 against sample", page.text)
    now.manifest |= {"host": "https://other.example", "verb": "observe"}
    page = text_of(now, before, tmp_path)
    assert "asked another host: http://127.0.0.1:1, not https://other.example" in page.text
    assert "was of another kind: aggregate, not observe" in page.text
    real = snapshot(300, simulated=False)
    assert "SIMULATED" not in text_of(aged(real, 7), real, tmp_path).text


@pytest.mark.usefixtures("undrawn")
def test_runs_that_cannot_be_compared_are_refused(tmp_path):
    first, second = aged(snapshot(30), 0), aged(snapshot(30), 7)
    with pytest.raises(ConfigError, match="the run that is reported on"):
        report(first, tmp_path / "x.html", against=first)
    with pytest.raises(ConfigError, match="later than the run"):
        report(first, tmp_path / "x.html", against=second)
    assert list(tmp_path.iterdir()) == []
    empty = aged(snapshot(0), 7)
    assert report(empty, tmp_path / "x.html", against=first).exists()
    assert report(second, tmp_path / "x.html", against=snapshot(0)).exists()


@pytest.mark.usefixtures("undrawn")
def test_the_command_compares_with_a_run_or_with_one_of_some_days_before(tmp_path, capsys):
    store = mx.Store(tmp_path / "store")
    for days in (0, 1, 5, 8):
        store.append(aged(snapshot(60), days))
    words = ["report", "--store", str(store.path), "--out", str(tmp_path / "x.html")]

    def against(*more):
        status = cli.main([*words, *more])
        found = re.search(r"run day-8 against (\S+)<", (tmp_path / "x.html").read_text("utf-8"))
        return status, found and found[1]

    assert against() == (0, None)
    assert against("--against", "day-5") == (0, "day-5")
    assert against("--against", "3d") == (0, "day-5")
    assert against("--against", "4d") == (0, "day-1")
    assert against("--against", "8d") == (0, "day-0")
    assert cli.main([*words, "--against", "9d"]) == 2
    assert "no run is from 2026-11-22 or earlier" in capsys.readouterr().err


WEEK = 7 * 86_400.0
#: What is planted in the week between two looks, from the first look on: scenario, its parameters in seconds.
PLANTED = {
    "calm": {},
    "outage": {"scenario_from_seconds": WEEK - 26 * 3_600, "scenario_until_seconds": WEEK + 86_400},
    "password_reset": {"scenario_from_seconds": 5 * 86_400.0, "scenario_until_seconds": 5 * 86_400.0},
    "onboarding_wave": {"scenario_from_seconds": 86_400.0, "scenario_until_seconds": 5 * 86_400.0},
}


@pytest.mark.slow
@pytest.mark.usefixtures("undrawn")
@pytest.mark.parametrize("scenario", PLANTED)
def test_what_was_planted_in_a_simulated_week_is_what_has_changed(scenario, tmp_path):
    """The first look is after three weeks, when what a new world starts with has settled."""
    begun = 3 * WEEK
    parameters = {name: begun + seconds for name, seconds in PLANTED[scenario].items()}
    settings = mx.Settings(read_jobs=False)
    world = {"seed": 3, "speed": 60, "scenarios": (scenario,), "parameters": parameters, "settings": settings}
    with mx.simulate(1_500, **world) as sim:
        sim.skip(begun)
        before = mx.observe(sim.tokens, sim.settings)
        sim.skip(WEEK)
        now = mx.observe(sim.tokens, sim.settings)
        planted = set(sim.truth()["planted"].get("institution", []))
    said = headline(now, before)
    named = {each.partition(":")[0] for each in said if "points, " in each and "both times" not in each}
    if scenario == "calm":
        assert said[1].startswith("No change that passes a test")
    elif scenario == "onboarding_wave":
        part = re.search(
            r"mix of members (\S+) \((.*?)\), by other rates at the banks \S+ \((.*?)\)", said[1]
        )
        assert part[1].startswith("−")
        assert "passes no test" not in part[2]
        assert part[3].endswith("passes no test")
        assert not named
    else:
        assert named == planted
    assert report(now, tmp_path / "x.html", against=before).exists()
