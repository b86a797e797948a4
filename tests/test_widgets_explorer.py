import gc
import threading
from datetime import datetime

import pytest
from ipywidgets import Output
from ipywidgets.widgets.widget import _instances
from matplotlib.figure import Figure
from widgets_sample import HOSTILE, snapshot

import mxlab as mx
from mxlab import charts
from mxlab.errors import ConfigError
from mxlab.frames import Snapshot
from mxlab.widgets import Explorer
from mxlab.widgets.filters import one_of

CHOICES = {
    "institution": ("Bank 1", "Bank 2"),
    "status": ("DENIED", None),
    "who": ("user", "mx"),
    "oauth": False,
    "use_case": "PFM",
    "success": "1 to 7 days ago",
    "since": datetime.fromisoformat("2026-11-22 06:00"),
    "until": datetime.fromisoformat("2026-11-23 03:30"),
}

#: The charts of one Snapshot of one run.
ONE = [name for name, chart in mx.CHARTS.items() if not chart.of_two and not chart.of_many]


@pytest.fixture(scope="module")
def snap():
    return snapshot()


@pytest.fixture
def explorer(snap):
    return Explorer(snap)


def drawn(line, snap):
    """The picture that a line of code makes."""
    axes = eval(line, {"mx": mx, "snap": snap})
    return charts.png(axes.get_figure(root=True))


def test_it_opens_with_a_picture_that_says_what_it_shows(explorer):
    assert bytes(explorer.picture.value).startswith(b"\x89PNG")
    assert "SIMULATED" in explorer.picture.tooltip
    assert "594 members" in explorer.picture.tooltip
    assert "600 of 600 members, 6 of them of users without an answer" in explorer.said.value
    assert "200 of 202 users answered (2 forbidden)" in explorer.said.value


@pytest.mark.parametrize("name", ONE)
def test_every_chart_can_be_chosen_and_its_line_draws_the_same(explorer, snap, name):
    explorer.chart.value = name
    assert explorer.line == f"mx.draw({name!r}, snap)"
    assert drawn(explorer.line, snap) == explorer.picture.value
    explorer.filters.institution.value = CHOICES["institution"]
    assert drawn(explorer.line, snap) == explorer.picture.value


@pytest.mark.parametrize("control", CHOICES)
def test_each_filter_redraws_and_its_line_draws_the_same(explorer, snap, control):
    before = explorer.picture.value
    explorer.filters.controls[control].value = CHOICES[control]
    assert explorer.picture.value != before
    assert 0 < len(explorer.snapshot.members) < 600
    assert explorer.filters.words in charts.provenance(explorer.snapshot)
    assert drawn(explorer.line, snap) == explorer.picture.value


def test_filters_hold_together_and_show_all_drops_them(explorer, snap):
    before = explorer.picture.value
    for control, value in CHOICES.items():
        explorer.filters.controls[control].value = value
    assert len(explorer.filters.conditions) == 7
    assert drawn(explorer.line, snap) == explorer.picture.value
    explorer.filters.reset.click()
    assert explorer.filters.conditions == ()
    assert explorer.picture.value == before
    assert explorer.snapshot is snap


def test_names_do_no_harm():
    snap = snapshot(240, banks=HOSTILE)
    explorer = Explorer(snap, "status_by_institution")
    explorer.filters.institution.value = HOSTILE[:9]
    for view in ("members", "figures", "take", "chart"):
        explorer.view.value = view
    assert drawn(explorer.line, snap) == explorer.picture.value
    assert "&lt;script&gt;alert(1)&lt;/script&gt;" in explorer.said.value
    for shown in (explorer.said, explorer.figures, explorer.code, explorer.table.body):
        assert "<script" not in shown.value
        assert "<img" not in shown.value


@pytest.mark.parametrize("bank", HOSTILE)
def test_the_line_of_a_hostile_name_is_still_code(bank):
    condition = one_of("bank", "institution", [bank])
    members = snapshot(60, banks=HOSTILE).members
    assert eval(condition.code, {"m": members}).to_numpy().sum() == condition.mask(members).sum() > 0


def test_the_last_of_many_changes_is_the_one_that_stays(snap):
    explorer = Explorer(snap)
    banks = [f"Bank {number}" for number in range(4)]

    def choose(bank):
        explorer.filters.institution.value = (bank,)

    threads = [threading.Thread(target=choose, args=(bank,)) for bank in banks]
    for each in threads:
        each.start()
    for each in threads:
        each.join()
    assert drawn(explorer.line, snap) == explorer.picture.value


def test_figures_members_and_code_are_one_click_away(explorer, snap):
    explorer.filters.who.value = ("mx",)
    explorer.view.value = "figures"
    assert "FAILED" in explorer.figures.value
    assert "CONNECTED" not in explorer.figures.value
    explorer.view.value = "members"
    assert set(explorer.table.rows["who_must_act"]) == {"mx"}
    explorer.view.value = "take"
    assert "mx.draw(&#x27;status_counts&#x27;" in explorer.code.value


@pytest.mark.parametrize("kind", range(8))
def test_what_is_in_view_can_be_saved(explorer, tmp_path, monkeypatch, kind):
    monkeypatch.chdir(tmp_path)
    explorer.filters.who.value = ("mx",)
    explorer.kind.index = kind
    explorer.save.click()
    saved = list(tmp_path.iterdir())
    assert len(saved) == 1
    assert f"Saved {saved[0].name}" in explorer.saved.value
    if saved[0].suffix == ".png":
        assert saved[0].read_bytes() == explorer.picture.value
    if saved[0].suffix in {".csv", ".json"}:
        assert "user-1" not in saved[0].read_text()
    if saved[0].suffix == ".svg":
        once = saved[0].read_bytes()
        explorer.save.click()
        assert saved[0].read_bytes() == once


def test_saving_where_it_cannot_says_so(explorer, tmp_path, monkeypatch):
    folder = tmp_path / "gone"
    folder.mkdir()
    monkeypatch.chdir(folder)
    folder.rmdir()
    explorer.save.click()
    assert "cannot write" in explorer.saved.value


def test_a_snapshot_without_members_is_shown(tmp_path):
    explorer = Explorer(snapshot(0))
    for name in ONE:
        explorer.chart.value = name
    assert bytes(explorer.picture.value).startswith(b"\x89PNG")


def test_an_unknown_chart_is_named(snap):
    with pytest.raises(ConfigError, match="there is no chart 'pie'"):
        Explorer(snap, "pie")


def test_charts_of_several_runs_are_offered_where_there_are_several(snap, tmp_path):
    store = mx.Store(tmp_path)
    runs = ("monday", "tuesday")
    for seed, run in enumerate(runs):
        part = snapshot(90, seed=seed)
        store.append(Snapshot({**part.manifest, "run": run}, part.coverage, part.failures, part.table))
    several = {name for name, chart in mx.CHARTS.items() if chart.of_many}
    assert several
    assert several.isdisjoint(name for _, name in Explorer(snap).chart.options)
    with pytest.raises(ConfigError, match="no chart 'status_history' of this snapshot"):
        Explorer(snap, "status_history")
    with pytest.raises(ConfigError, match="no chart 'transitions' of this snapshot"):
        Explorer(snap, "transitions")
    history = store.load(runs=runs)
    explorer = Explorer(history, "status_history")
    assert several <= {name for _, name in explorer.chart.options}
    for name in several:
        explorer.chart.value = name
        explorer.filters.who.value = ("user",)
        assert drawn(explorer.line, history) == explorer.picture.value


def test_the_old_picture_is_dimmed_while_a_curve_is_computed(explorer, monkeypatch):
    explorer.chart.value = "aggregation_latency"
    seen, draw = [], charts.draw

    def watched(*args, **options):
        seen.append(("mxlab-stale" in explorer.picture._dom_classes, explorer.picture.value == before))
        return draw(*args, **options)

    monkeypatch.setattr(charts, "draw", watched)
    before = explorer.picture.value
    explorer.filters.oauth.value = True
    assert seen == [(True, True)]
    assert explorer.picture.value != before
    assert "mxlab-stale" not in explorer.picture._dom_classes


def test_a_notebook_without_widgets_shows_the_picture(explorer):
    bundle = explorer._repr_mimebundle_()
    assert "application/vnd.jupyter.widget-view+json" in bundle
    assert bundle["image/png"].startswith("iVBOR")
    assert "SIMULATED" in bundle["text/plain"]


def test_redraws_keep_nothing(snap):
    explorer = Explorer(snap)
    widgets = len(_instances)
    for number in range(8):
        explorer.filters.who.value = [("user",), ("mx",), ()][number % 3]
        explorer.view.value = ("chart", "take")[number % 2]
    assert len(_instances) == widgets
    assert not any(isinstance(each, Output) for each in _instances.values())
    gc.collect()
    assert not [each for each in gc.get_objects() if type(each) is Figure]
