"""report/html.py: the page holds everything, links to nothing and can be made again from the run folder."""

import re
import subprocess
import sys
from html.parser import HTMLParser

import pytest

from foveate.errors import FoveateError
from foveate.report import Results, from_dict, render, render_run, save_results, to_dict, write_report

VOID = {"meta", "img", "br", "path", "use", "rect"}


class Page(HTMLParser):
    """Collects tags, attributes and text, and checks that what opens also closes."""

    def __init__(self, text):
        super().__init__()
        self.open, self.tags, self.text = [], [], ""
        self.feed(text)
        assert self.open == []

    def handle_starttag(self, tag, attributes):
        self.tags.append((tag, dict(attributes)))
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag, attributes):
        self.tags.append((tag, dict(attributes)))

    def handle_endtag(self, tag):
        if tag not in VOID:
            assert self.open.pop() == tag

    def handle_data(self, data):
        if self.open and self.open[-1] != "style":
            self.text += data

    def all(self, tag):
        return [attributes for name, attributes in self.tags if name == tag]


def test_nothing_is_loaded_from_anywhere(results):
    text = render(results)
    assert "http://" not in text and "https://" not in text and "//" not in re.sub(r"base64,[A-Za-z0-9+/=]+", "", text)
    page = Page(text)
    assert not page.all("script") and not page.all("link") and not page.all("iframe")
    assert all(attributes["src"].startswith("data:image/png;base64,") for attributes in page.all("img"))
    assert any("default-src 'none'" in (attributes.get("content") or "") for attributes in page.all("meta"))


def test_everything_asked_for_is_there(results):
    page = Page(render(results))
    for words in (
        "SPViT & friends", "Fewer tokens, 1 < 2.", "spvit <top-k>", "no gain here at batch 1", "argmax ran one image at a time.",
        "Some CPU", "other work was running", "foveate demo --out <here>", "3 min 11 s", "torch 2.14.1", "Kept & dropped", "It rises.",
    ):  # fmt: skip
        assert words in page.text, words
    assert [h.strip() for h in re.findall(r"<h2>(.*?)</h2>", render(results))] == [
        "Results", "What it costs", "Where it looks", "What each head sees", "Curves", "How this was made",
    ]  # fmt: skip
    # accuracy over operations, over time at two batches, speed-ups, histogram, curve
    assert len(page.all("svg")) == 6
    assert len(page.all("img")) == 3 * 3 + 3 * 4
    assert all(attributes["alt"].strip() for attributes in page.all("img"))
    assert all(attributes["aria-label"].strip() for attributes in page.all("svg"))
    assert page.text.count("where the lower quartile of its speed-up is above 1") == 1


def test_small_results_make_a_small_page(rows):
    page = Page(render(Results("only a title")))
    assert not page.all("svg") and not page.all("table") and "Results" not in page.text
    speed_only = [{"plan": "p", "macs": 1e6, "params": 1, "latency_ms": {1: (2, 1, 3)}}]
    page = Page(render(from_dict({"title": "t", "rows": speed_only})))
    assert page.all("table") and not page.all("svg")


def test_the_page_is_the_same_from_values_dictionary_and_run_folder(results, tmp_path):
    first = write_report(tmp_path / "a" / "report.html", results).read_text()
    assert write_report(tmp_path / "b.html", to_dict(results)).read_text() == first
    save_results(tmp_path / "run", results)
    assert render_run(tmp_path / "run").read_text() == first
    assert sorted(p.name for p in (tmp_path / "run").iterdir()) == ["report.html", "results.json", "results.npz"]


def test_a_folder_without_results_is_refused(tmp_path):
    with pytest.raises(FoveateError, match="results.json"):
        render_run(tmp_path)
    assert not (tmp_path / "report.html").exists()


def test_the_report_needs_no_torch():
    code = "import sys, foveate.report; sys.exit(any(name.split('.')[0] in ('torch', 'timm') for name in sys.modules))"
    assert subprocess.run([sys.executable, "-c", code]).returncode == 0
