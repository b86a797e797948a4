import re
import threading
from html.parser import HTMLParser

import pytest
from widgets_sample import HOSTILE, snapshot

from mxlab import reporting
from mxlab.charts import CHARTS, OVERVIEW
from mxlab.errors import ConfigError
from mxlab.frames import Coverage, Snapshot, failures_frame
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


def test_nothing_is_left_of_a_report_that_failed(tmp_path, monkeypatch):
    with pytest.raises(ConfigError, match="folder that exists"):
        report(snapshot(30), tmp_path / "nowhere" / "x.html")
    monkeypatch.setattr(reporting, "_page", lambda _: 1 / 0)
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
