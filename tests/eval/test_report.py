# SPDX-License-Identifier: Apache-2.0
import json
import re
import shutil
from html.parser import HTMLParser

import pytest
from synthetic_run import denoise, write_run

from vla.eval.report import ReportConfig, report
from vla.eval.report_charts import Line, line_chart, number, ticks


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    return write_run(tmp_path_factory.mktemp("runs") / "synthetic_run")


class Balance(HTMLParser):
    """Complains about tags that are not closed in order."""

    def __init__(self):
        super().__init__()
        self.stack, self.titles, self.text = [], [], []

    def handle_starttag(self, tag, attrs):
        if tag not in ("meta", "br", "img"):
            self.stack.append(tag)

    def handle_startendtag(self, tag, attrs):
        pass

    def handle_endtag(self, tag):
        assert self.stack and self.stack.pop() == tag, f"{tag} closed out of order"

    def handle_data(self, data):
        if self.stack and self.stack[-1] == "h2":
            self.titles.append(data)
        if "style" not in self.stack:
            self.text.append(data)


def read(path):
    html = path.read_text()
    parsed = Balance()
    parsed.feed(html)
    assert not parsed.stack
    return html, parsed.titles, " ".join(parsed.text)


def test_a_whole_run_makes_one_self_contained_file(whole):
    path = report(ReportConfig(whole))
    assert path == whole / "report.html" and path.stat().st_size < 6_000_000
    html, titles, text = read(path)
    assert titles == ["Success by task", "What it does", "One decision, digit by digit", "Training", "Facts"]
    sources = re.findall(r'(?:src|href)="([^"]{0,20})', html)
    assert sources and all(source.startswith("data:") for source in sources)
    assert "<script" not in html and "@import" not in html and "url(" not in html
    assert html.count("<video") == 8 and html.count("<svg") == 4 + 4 + 4
    summary = json.loads((whole / "eval" / "policy" / "summary.json").read_text())
    assert f"{100 * summary['success']:.1f}".removesuffix(".0") in text
    assert "push the blue block to the left" in text and "McNemar" in text
    assert not re.search(r"\bnan\b", re.sub(r"base64,[^\"]*", "", html).lower())


@pytest.mark.parametrize(
    ("keep", "titles"),
    [
        (["eval/policy/summary.json"], ["Success by task", "Facts"]),
        (["eval/random"], ["Success by task", "Facts"]),
        (["train"], ["Training"]),
        (["denoise.json"], ["One decision, digit by digit"]),
        (["eval/policy", "eval/swapped"], ["Success by task", "What it does", "Facts"]),
    ],
)
def test_missing_parts_leave_no_trace(whole, tmp_path, keep, titles):
    for name in keep:
        copy = shutil.copytree if (whole / name).is_dir() else shutil.copy
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        copy(whole / name, tmp_path / name)
    assert read(report(ReportConfig(tmp_path, tmp_path / "pages" / "page.html")))[1] == titles


def test_one_evaluation_or_one_training_is_a_run_too(whole, tmp_path):
    out = tmp_path / "page.html"
    assert "Random actions" in read(report(ReportConfig(whole / "eval" / "random", out)))[2]
    assert read(report(ReportConfig(whole / "train", out)))[1] == ["Training"]


def test_odd_traces_are_drawn(tmp_path):
    trace = denoise(horizon=25, denoising_steps=1)
    trace["steps"][0]["confidence"] = None
    trace["image_png_base64"] = None
    trace["instruction"] = "<b>push</b> & pull"
    (tmp_path / "denoise.json").write_text(json.dumps(trace))
    html, _, text = read(report(ReportConfig(tmp_path)))
    assert "<b>push</b> & pull" in text and "<img" not in html


def test_nothing_to_show_is_an_error(tmp_path):
    with pytest.raises(ValueError, match="vla demo"):
        report(ReportConfig(tmp_path / "nowhere"))
    with pytest.raises(ValueError, match="none of them"):
        report(ReportConfig(tmp_path))
    (tmp_path / "denoise.json").write_text("{")
    with pytest.raises(ValueError, match="JSON"):
        report(ReportConfig(tmp_path))


def test_charts_take_any_numbers():
    assert number(131_000) == "131k" and number(0.0213) == "0.0213" and number(1_250_000) == "1.25M"
    assert ticks(0, 1) == [0, 0.25, 0.5, 0.75, 1] and ticks(3, 3) == [3]
    for points in ([(10, 0.0)], [(1, 2.0), (2, 2.0)], [(i, 10.0**-i) for i in range(1, 6)]):
        assert "nan" not in line_chart([Line("a", points)], log=points[-1][1] > 0 and len(points) > 2)
