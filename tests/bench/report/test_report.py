"""What a bench writes: the report and its schema, the page, the recipe fragment, the claims. No measurement."""

import json
import re
from html.parser import HTMLParser
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from muomni.accel.measurements import verdicts
from muomni.accel.technique import TECHNIQUES, measured_by
from muomni.bench.report import recommendations
from muomni.bench.report import svg as svg_module
from muomni.bench.report.claims import claims
from muomni.bench.report.html import cells, page
from muomni.bench.report.report import (
    DecodePoint,
    Equivalence,
    Machine,
    Memory,
    MemoryBar,
    ModelInfo,
    Report,
    ReportRow,
    ScalePoint,
    Scaling,
    Speed,
    load_report,
)
from muomni.bench.report.sections import Target
from muomni.bench.report.svg import WIDTH, Bar, Point, amount_plot, line_plot, ratio_plot, stack_plot
from muomni.config import load_recipe, preset
from muomni.errors import ConfigError, UserError

CLAIMED = [technique for technique in TECHNIQUES if technique.claim_rows]
RATIOS = st.floats(0.01, 100)
PAIR = r"([-\d.]+) ([-\d.]+)"


def row(key: str, verdict: str = "on", ratio: float = 1.5, **more: object) -> ReportRow:
    speed = Speed(off=100.0, on=100.0 * ratio, ratio=ratio, low=ratio * 0.9, high=ratio * 1.1, rounds=(ratio,) * 5)
    fields = {"key": key, "part": "train", "technique": f"<b>{key}</b>", "off": "a", "on": "b", "claim": "2×"}
    return ReportRow.model_validate({**fields, "speed": speed, "verdict": verdict, "reason": "faster", **more})


def report(*rows: ReportRow, **more: object) -> Report:
    machine = Machine(
        device="cpu", processor="A <fast> one", cores=2, threads=2, memory_mib=4096.0, system="Linux x86_64"
    )
    model = ModelInfo(name="tiny & co", parameters=12_000_000, random_weights=True)
    fields = {"date": "2026-01-02T03:04:05+00:00", "command": "muomni bench all tiny --quick", "mode": "quick"}
    rest = {"seconds": 12.3, "machine": machine, "model": model, "versions": {"torch": "2"}, "margin": 0.05}
    return Report.model_validate({**fields, **rest, "rows": rows, **more})


@pytest.fixture
def full() -> Report:
    equal = Equivalence(claimed="exact", measure="gradients", value=0.0, equal=True, holds=True)
    sizes = (Memory(what="weights", off_mib=48.0, on_mib=12.0), Memory(off_mib=400.0, on_mib=300.0))
    return report(
        row("precision-bf16", equivalence=equal, memory=sizes[1:]),
        row("compile", "not measured", speed=None, reason="no C++ compiler is on the path"),
        row("kv-cache", part="infer", ratio=10.0),
        row("int8", part="infer", memory=sizes, compile_s=3.0),
        noise=("rounds are 30% apart",),
        bandwidth_gb_per_s=30.0,
        decode=(DecodePoint(name="fp32", batch=1, tokens_per_s=100.0, gb_per_s=20.0),),
        scaling=Scaling(
            batch=tuple(ScalePoint(at=n, tokens_per_s=100.0 * n, low=90.0 * n, high=110.0 * n) for n in (1, 4)),
            context=tuple(ScalePoint(at=n, tokens_per_s=100.0, low=90.0, high=110.0) for n in (64, 512)),
            batch_context=64,
        ),
        memory=(
            MemoryBar(name="train", weights_mib=10.0, optimizer_mib=20.0, activations_mib=70.0),
            MemoryBar(name="decode", weights_mib=10.0, cache_mib=2.0),
        ),
        recipe={"precision": "bf16"},
        advice=("try int8",),
    )


# Report


def test_a_report_is_what_was_written(full, tmp_path):
    full.save(tmp_path / "report.json")
    loaded = load_report(tmp_path)
    assert loaded == load_report(tmp_path / "report.json")
    loaded.save(tmp_path / "again.json")  # floats keep five digits, so only what was read is equal bit by bit
    assert (tmp_path / "again.json").read_text() == (tmp_path / "report.json").read_text()
    assert loaded.rows[0].speed.high == pytest.approx(full.rows[0].speed.high, rel=1e-4)
    values = json.loads((tmp_path / "report.json").read_text())
    assert values["format"] == 1 and values["rows"][0]["speed"]["ratio"] == 1.5
    assert full.verdicts == {"precision-bf16": "on", "compile": "not measured", "kv-cache": "on", "int8": "on"}
    assert full.row("int8") is full.rows[3] and full.row("nothing") is None


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (None, "cannot be read"),
        ("{", "not a report"),
        ("[1]", '"format" must be 1'),
        ('{"format": 2}', '"format" must be 1'),
        ('{"format": 1, "mode": "slow"}', "mode"),
    ],
)
def test_what_is_no_report_is_said_to_be_none(text, message, tmp_path):
    if text is not None:
        (tmp_path / "report.json").write_text(text)
    with pytest.raises(UserError, match=re.escape(message)) as caught:
        load_report(tmp_path)
    assert str(tmp_path) in str(caught.value) and caught.value.exit_code == 2


# Page


class Checker(HTMLParser):
    """Tags that close in order, and what would be fetched or run."""

    VOID = ("meta", "br", "col")

    def __init__(self) -> None:
        super().__init__()
        self.open: list[str] = []
        self.seen: list[str] = []
        self.fetched: list[str] = []
        self.text = ""

    def handle_starttag(self, tag, attrs):
        self.seen.append(tag)
        self.fetched += [value for name, value in attrs if name in ("src", "href", "srcset", "data", "action")]
        if tag not in self.VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag, attrs):
        self.seen.append(tag)

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        self.text += data


def test_the_page_is_whole_and_fetches_and_runs_nothing(full):
    text = page(full)
    checker = Checker()
    checker.feed(text)
    assert checker.open == [] and checker.fetched == []
    assert not {"script", "link", "img", "iframe"} & set(checker.seen)
    assert "url(" not in text and "@import" not in text and "http" not in text.replace("http://www.w3.org/2000/svg", "")
    assert 'name="viewport"' in text and "prefers-color-scheme:dark" in text
    # Plots: speed of two parts, memory of two, the roof, two of scaling.
    assert checker.seen.count("svg") == 7 and checker.seen.count("table") == 2
    assert text.count('class="scroll"') == 2
    for said in (
        "<b>int8</b>",
        "A <fast> one",
        "tiny & co",
        "no C++ compiler",
        "rounds are 30% apart",
        "+3 s",
        "0.25×",
    ):
        assert said in checker.text, said  # as text: nothing of it is markup
    assert "30 GB/s" in checker.text and "precision = bf16" in checker.text and "try int8" in checker.text


def test_a_page_without_figures_has_no_plots_and_says_nothing_of_noise():
    text = page(report(row("compile", "not measured", speed=None)))
    assert "<svg" not in text and "noisy" not in text and "not measured" in text


def test_a_result_too_far_off_is_said(full):
    equal = Equivalence(claimed="rounding", measure="gradients", value=0.5, equal=False, holds=False)
    assert cells(row("it", equivalence=equal)).results == "rounding: 0.5, too far"
    assert cells(full.rows[1]).ratio == cells(full.rows[1]).memory == "–"


# Plots


def places_of(svg: str) -> tuple[list[float], list[float]]:
    """Every x and y that is drawn: of lines, of bars, of text and of markers."""
    pairs = [pair for path in re.findall(r'<path d="([^"]*)" style', svg) for pair in re.findall(PAIR, path)]
    pairs += re.findall(r'<(?:text|use) [^>]*x="([-\d.]+)" y="([-\d.]+)"', svg)
    assert pairs
    return [float(x) for x, _ in pairs], [float(y) for _, y in pairs]


def inside(svg: str) -> bool:
    """Whether all of a plot is in its box."""
    across, down = (float(size) for size in re.findall(r'viewBox="0 0 ([\d.]+) ([\d.]+)"', svg)[0])
    x, y = places_of(svg)
    return across == WIDTH and all(-1e-3 <= one <= across + 1e-3 for one in x) and all(0 <= one <= down for one in y)


@given(st.lists(st.tuples(RATIOS, st.floats(1, 20)), min_size=1, max_size=8))
@settings(max_examples=25)  # each draws a figure
def test_ratio_plots_stay_inside_their_box(values):
    bars = [Bar("a", ratio, ratio / wide, ratio * wide, "x") for ratio, wide in values]
    svg = ratio_plot(bars, "title")
    assert inside(svg)
    assert "1×" in svg


@given(st.lists(st.floats(0, 1e6), min_size=1, max_size=8), st.floats(0.1, 1e6))
@settings(max_examples=25)  # each draws a figure
def test_amount_and_stack_plots_stay_inside_their_box(values, roof):
    bars = [Bar("a", value, value, value, "x") for value in values]
    svg = amount_plot(bars, "GB/s", "title", roof)
    assert inside(svg) and "stroke-dasharray" in svg
    assert inside(stack_plot([("a", values)], "MiB", "title"))


@given(st.text("abc mW", min_size=1, max_size=80), st.text("0.×ab", max_size=25))
def test_labels_leave_room_for_their_notes(label, note):
    cut = svg_module._beside(label, note)
    assert cut == label or (cut.endswith("…") and label.startswith(cut[:-1]))
    assert (len(cut) + len(note)) * svg_module._LETTER <= WIDTH


@given(st.lists(st.floats(0.1, 1e7), min_size=2, max_size=8))
@settings(max_examples=25)  # each draws a figure
def test_line_plots_stay_inside_their_box(values):
    points = [Point(2.0**number, value, value / 2, value * 2) for number, value in enumerate(values)]
    svg = line_plot(points, "rows", "tokens/s", "title")
    assert inside(svg)
    heights = [float(y) for y in re.findall(r'<use [^>]*y="([-\d.]+)"', svg)]
    assert len(heights) == len(points) and all(0 <= y <= 190 for y in heights)


def test_a_plot_is_the_same_each_time_and_its_colours_are_the_page_s():
    bars = [Bar("$it$ & <b>", 1.5, 1.2, 1.8, "1.5×, on", 1)]
    svg = ratio_plot(bars, "a <title>")
    assert svg == ratio_plot(bars, "a <title>")
    assert "$it$ &amp; &lt;b&gt;</text>" in svg and "<title>a &lt;title&gt;</title>" in svg
    assert "#" not in re.sub(r'xlink:href="#\w+"|id="\w+"', "", svg)  # no colour of its own
    assert "var(--ink)" in svg and "var(--c1)" in svg and "font-family" not in svg


# Recipe fragment


def test_the_fragment_holds_what_won_and_what_lost_and_no_more(tmp_path):
    rows = [
        row("precision-bf16", "on"),
        row("compile", "on", ratio=1.2),
        row("compile-full", "on", ratio=1.4),
        row("allocator-retain", "off", ratio=0.8),
        row("attention-varlen", "no difference"),
        row("checkpointing-full", "off", ratio=0.7),
        row("accumulation", "on"),
        row("int8", "on", part="infer"),
    ]
    found = recommendations.fragment(rows)
    assert found == {"precision": "bf16", "compile": "full", "allocator": "system"}
    (tmp_path / "tuned.json").write_text(json.dumps(found))
    (tmp_path / "recipe.json").write_text('{"data": {"train": "x"}, "max_steps": 99, "compile": "off"}')
    taken = load_recipe(str(tmp_path / "recipe.json"), [f"@{tmp_path / 'tuned.json'}", "precision=fp32"])
    assert (taken.compile, taken.allocator, taken.precision) == ("full", "system", "fp32")
    (tmp_path / "recipe.json").write_text('{"extends": "tuned.json", "data": {"train": "x"}, "max_steps": 99}')
    assert load_recipe(str(tmp_path / "recipe.json")).compile == "full"


def test_verdicts_are_kept_for_this_model(tmp_path, monkeypatch):
    monkeypatch.setenv("MUOMNI_CACHE", str(tmp_path))
    monkeypatch.delenv(verdicts.IGNORE)
    target = Target("nano", preset("nano").thinker, None)
    rows = (row("allocator-retain", "off"), row("decode-step", "off", part="infer"), row("int8", "off", part="infer"))
    assert recommendations.remember(report(*rows), target) == ["allocator-retain", "decode-step"]
    known = verdicts.load_verdicts(torch.device("cpu"), target.thinker).known
    assert {key: one.verdict for key, one in known.items()} == {"allocator-retain": "off", "decode-step": "off"}


def test_a_file_that_is_not_there_is_named(tmp_path):
    (tmp_path / "recipe.json").write_text('{"data": {"train": "x"}, "max_steps": 99}')
    with pytest.raises(ConfigError, match="none.json"):
        load_recipe(str(tmp_path / "recipe.json"), [f"@{tmp_path / 'none.json'}"])


@pytest.mark.parametrize("key", [t.key for t in measured_by("training step") if t.setting is not None])
def test_every_value_of_the_fragment_is_one_that_recipes_take(key, tmp_path):
    for verdict in ("on", "off"):
        for name, value in recommendations.fragment([row(key, verdict)]).items():
            path = tmp_path / "recipe.json"
            path.write_text('{"data": {"train": "x"}, "max_steps": 99}')
            assert getattr(load_recipe(str(path), [f"{name}={value}"]), name) == value


def test_advice_names_the_run():
    rows = [row("int8", part="infer"), row("speculation", part="infer"), row("batching", "no difference", part="infer")]
    quantize, guess = recommendations.advice(rows, "runs/it")
    assert "muomni quantize runs/it" in quantize and "muomni chat runs/it --speculate" in guess
    assert "quantize RUN" in recommendations.advice(rows, None)[0]


# Claims


def test_every_claim_has_a_row_of_each_report(full):
    other = report(row("precision-bf16", "not measured", speed=None, reason="no bf16 | here"), command="another")
    lines = claims([full, other]).splitlines()
    table = [line for line in lines if line.startswith("| ")][1:]
    assert len(table) == 2 * len(CLAIMED) and len(CLAIMED) >= 5
    assert all(len(re.findall(r"(?<!\\)\|", line)) == 9 for line in table)
    text = "\n".join(table)
    assert (
        "1.50× (1.35–1.65); peak memory 0.75×" in text
        and "10.00×" in text
        and "4.00× smaller (48.0 → 12.0 MiB)" in text
    )
    assert "not measured: no bf16 \\| here" in text and "not measured: the report has no such row" in text
    assert "`muomni bench all tiny --quick`" in text and "2026-01-02" in text and "A <fast> one, 2 threads" in text


def test_the_claims_in_the_documentation_are_those_of_this_version():
    path = Path(__file__).parents[3] / "docs" / "claims.md"
    if not path.is_file():
        pytest.skip("docs/claims.md has not been made yet: muomni bench claims REPORT --out docs/claims.md")
    text = path.read_text(encoding="utf-8")
    assert all(f"| {technique.title} | {technique.claim} |" in text for technique in CLAIMED)
