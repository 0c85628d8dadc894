import json
import re
import subprocess
import sys
from datetime import UTC, datetime
from html.parser import HTMLParser
from xml.etree import ElementTree

import pytest
import typer
from synthetic_run import finished_run, running_run, samples, table, write, write_lines, write_plan
from typer.testing import CliRunner

from xwin.cli.report import register
from xwin.errors import UserError
from xwin.run.facts import Answer, Sample, read_run
from xwin.run.plots import POINTS, Series, Whisker, curve, thinned, whiskers
from xwin.run.report import clipped, number_text, pick, render, seconds_text, side_by_side, write_report

VOID = {"meta", "br", "hr", "img", "input", "link"}


class Page(HTMLParser):
    """Checks that tags nest, and keeps what is looked for."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.tags: list[str] = []
        self.ids: list[str | None] = []
        self.text = ""
        self.feed(text)

    def handle_starttag(self, tag, attrs):
        self.tags.append(tag)
        self.ids += [value for key, value in attrs if key == "id"]
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag, attrs):
        self.tags.append(tag)
        self.ids += [value for key, value in attrs if key == "id"]

    def handle_endtag(self, tag):
        assert self.open.pop() == tag, f"</{tag}> closes something else"

    def handle_data(self, data):
        self.text += data


@pytest.fixture(scope="module")
def page(tmp_path_factory):
    path = write_report(finished_run(tmp_path_factory.mktemp("runs") / "tiny-s1"))
    assert path.name == "report.html"
    return path.read_text(encoding="utf-8")


def test_the_page_is_well_formed_and_has_every_section(page):
    found = Page(page)
    assert found.open == []
    assert {"results", "samples", "stages", "curves", "alarms", "data", "costs", "again"} <= set(found.ids)
    assert len(found.ids) == len(set(found.ids))


def test_the_page_needs_nothing_from_outside(page):
    assert not {"script", "link", "img", "iframe"} & set(Page(page).tags)
    assert "http:" not in page
    assert "https:" not in page
    assert "@import" not in page
    assert not re.findall(r'(?:src|href)="(?!#)', page)


def test_what_a_model_wrote_is_text_and_never_markup(page):
    assert "<script>" not in page
    assert "&lt;script&gt;alert(" in page
    assert "&lt;b&gt;not markup&lt;/b&gt;" in page


def test_names_from_the_recipe_are_escaped_inside_plots_too(tmp_path):
    run = tmp_path / "tiny-s1"
    write_plan(run)
    rows = [{"model": "<script>x</script> $a_b$", "metric": "accuracy/<script>", "value": 0.5, "low": 0.4, "high": 0.6, "n": 9, "note": "<script>"}]
    write(run / "stages/report/table.json", rows)
    text = write_report(run).read_text()
    assert "<script" not in text
    assert "$a_b$" in Page(text).text


def test_the_page_says_how_to_run_it_again(page):
    text = Page(page).text
    assert "git checkout 5f2c9e1ab8\nxwin run recipes/tiny.yaml --set seed=1" in text
    for part in ("data: warm, lr: 2e-4", "2.13.0", "b179c9523d0e", "2 cores, x86_64"):
        assert part in text


def test_the_final_table_shows_intervals_and_paired_tests(page):
    assert "<td>66.8<small>[61.8, 71.8]</small></td>" in page
    assert "+5.7 vs sft2, p = 0.021" in page
    assert "base, accuracy: in its own chat template" in page


def test_each_metric_has_a_plot_with_unit_and_meaning(page):
    text = Page(page).text
    assert "KL to the reference per answer" in text
    assert "2 of 120 values were not finite" in text
    assert "held-out" in text
    assert page.count("<svg") == 7 + 3 + 2 * 5 + 7 + 14  # accuracy, families; boards; each sft; rm; ppo (validation on its training curve)


def test_alarms_are_listed_and_none_is_said(page, tmp_path):
    assert "27.31" in Page(page).text
    running = write_report(running_run(tmp_path / "tiny-s1")).read_text()
    assert re.search(r"Guard alarms</h2>\s*<p>None\.</p>", running)


def test_samples_that_broke_are_shown_and_counted(page):
    text = " ".join(Page(page).text.split())
    assert "32 failed and now pass, 4 passed and now fail, 8 fail in both, 16 pass in both" in text
    assert text.index("Failed at first, passes now") < text.index("Passed at first, fails now 4 of 4") < text.index("Fails before and after 4 of 8")


def test_the_case_study_shows_every_model_on_prompts_of_every_family(page):
    cases = page[page.index('<details class="cases">') : page.index("</details>", page.index('<details class="cases">'))]
    models = list(dict.fromkeys(model for sample in samples() for model in sample["answers"]))
    assert cases.count('<article class="sample">') == 6
    assert [cases.count(f"<h4>{model}<") for model in models] == [6] * len(models)
    families = dict.fromkeys(sample["family"] for sample in samples())
    assert len(set(re.findall(r'<span class="family">(.*?)</span>', cases))) == min(6, len(families))


def test_a_run_at_work_shows_what_is_there(tmp_path):
    run = running_run(tmp_path / "tiny-s1")
    text = " ".join(Page(write_report(run).read_text()).text.split())
    assert "not finished" in text
    assert "pairs has begun and is not published; its last sign of life is step 1 at 2025-11-23 03:53 UTC" in text
    assert "Results" not in text


def test_an_empty_run_makes_a_page(tmp_path):
    run = tmp_path / "tiny-s1"
    (run / "stages").mkdir(parents=True)
    found = Page(write_report(run).read_text())
    assert found.open == []
    assert "nothing has run yet" in found.text
    write_plan(run)
    assert "The next stage has not begun" in Page(write_report(run).read_text()).text


def test_a_manifest_of_the_wrong_shape_does_not_stop_the_page(tmp_path):
    run = running_run(tmp_path / "tiny-s1")
    (run / "stages/ppo").mkdir()
    write(run / "manifest.json", {"command": ["xwin", "run"], "git": None, "hardware": "?", "versions": None, "stages": 3})
    write(run / "stages/sft/manifest.json", {"status": "published", "seconds": "soon", "metrics": {"loss": "low"}})
    (run / "stages/ppo/events.jsonl").write_bytes(b'\xff\xfe\n{"time": 1, "stage": "ppo", "step": Infinity, "name": "kl", "value": 1}\n')
    text = Page(write_report(run).read_text()).text
    assert "xwin run" in text
    assert "Not everything could be read" in text


def test_the_same_facts_and_time_give_the_same_page(tmp_path):
    run = read_run(running_run(tmp_path / "tiny-s1"))
    now = datetime(2025, 11, 23, tzinfo=UTC)
    assert render(run, now) == render(run, now)


def test_the_page_can_be_written_elsewhere_and_bad_places_are_named(tmp_path):
    run = tmp_path / "tiny-s1"
    write_plan(run)
    assert write_report(run, tmp_path / "page.html") == tmp_path / "page.html"
    assert not (run / "report.html").exists()
    with pytest.raises(UserError, match="no such folder"):
        write_report(run, tmp_path / "gone/page.html")
    with pytest.raises(UserError, match="is a folder"):
        write_report(run, run)


def test_families_take_turns_among_the_samples():
    def sample(family: str, *, last: bool) -> Sample:
        return Sample("q", family, {"base": Answer("", passed=False, score=None), "ppo": Answer("", passed=last, score=None)})

    groups = pick([sample("a", last=True), sample("a", last=True), sample("b", last=True), sample("a", last=False)], ["base", "ppo"])
    assert [s.family for s in groups["fixed"]] == ["a", "b", "a"]
    assert len(groups["failed"]) == 1
    assert groups["broken"] == []


def test_base_sft_and_the_last_model_stand_side_by_side():
    assert side_by_side(["base", "base, vicuna", "sft", "best", "sft2", "ppo"]) == ("base", "sft", "ppo")
    assert side_by_side(["a", "b", "c"]) == ("a", "b", "c")
    assert side_by_side(["a", "b"]) == ("a", "b")
    assert side_by_side(["a"]) == ("a",)


def test_numbers_read_well():
    assert [seconds_text(s) for s in (4.21, 185.4, 7620.0, float("nan"))] == ["4.2 s", "3 min 05 s", "2 h 07 min", "–"]
    assert [number_text(v) for v in (0.69314, 12480.0, 2e-5, -1234.5, float("inf"))] == ["0.6931", "12,480", "2e-05", "-1,234", "–"]
    assert clipped("x" * 1600).endswith("x… (100 more characters)")


def test_a_long_curve_is_thinned_to_means():
    series = thinned(Series(tuple(range(1000)), tuple(float(i % 2) for i in range(1000))))
    assert len(series.steps) <= POINTS
    assert series.steps[-1] == 999
    assert series.values[0] == pytest.approx(1 / 3)  # 0, 1, 0


@pytest.mark.parametrize("values", [(), (float("nan"),), (float("inf"), float("-inf")), (1.0,), (1.0, 1.0)])
def test_a_curve_of_little_or_nothing_is_still_a_plot(values):
    svg = curve("kl", Series(tuple(range(len(values))), values), Series((), ()))
    ElementTree.fromstring(svg.replace("xlink:href", "href"))  # a fragment: the page declares the namespace


def test_a_whisker_without_an_interval_is_a_dot():
    nan = float("nan")
    svg = whiskers("accuracy", [Whisker("a", 50.0, nan, nan), Whisker("b", nan, nan, nan)], low=0, high=100)
    assert ">50.0</text>" in svg


def test_the_command_prints_the_path_or_the_facts(tmp_path):
    app = typer.Typer()
    register(app)
    run = running_run(tmp_path / "tiny-s1")
    write(run / "stages/report/table.json", table())
    write_lines(run / "stages/report/samples.jsonl", samples()[:3])
    assert CliRunner().invoke(app, [str(run)]).stdout.split() == [str(run / "report.html")]
    found = CliRunner().invoke(app, [str(run), "--json"])
    assert json.loads(found.stdout)["recipe"] == "tiny"
    both = CliRunner().invoke(app, [str(run), "--json", "--out", str(tmp_path / "p.html")])
    assert json.loads(both.stdout)["seed"] == 1
    assert (tmp_path / "p.html").exists()


def test_the_command_starts_without_heavy_imports():
    code = "import sys, xwin.cli.report, xwin.run.facts; print([m for m in ('torch', 'matplotlib', 'scipy', 'jinja2', 'numpy') if m in sys.modules])"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout.strip() == "[]"
