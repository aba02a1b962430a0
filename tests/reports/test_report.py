"""The report: one page that opens anywhere, of a whole run or of what an interrupted one left."""

import html.parser
import io
import json

import numpy as np
import pytest
from PIL import Image, ImageFont

from ssl_jax.errors import UserError
from ssl_jax.reports import figures
from ssl_jax.reports.page import duration
from ssl_jax.reports.panels import image_sheet, save_panels, wrapped
from ssl_jax.reports.records import Record, flat, to_json
from ssl_jax.reports.report import write_report
from ssl_jax.reports.run import groups, load_run, load_runs
from ssl_jax.task import Images, Text

HOSTILE = "<script>alert('&')</script>"


def make_run(directory, *, lr=1e-3, results=True, metrics=True):
    directory.mkdir(parents=True)
    config = {"seed": 0, "task": {"name": "masked_image"}, "model": {"name": "vit"}, "optimizer": {"lr": lr, "name": HOSTILE},
              "data": {"train": "bundled:fashion_mnist/train"}, "expected": {"linear_probe/accuracy": [0.8, 0.9]}}  # fmt: skip
    document = {"config": config, "versions": {"jax": "0.10.2"}, "device": {"kind": HOSTILE}, "card": f"Card {HOSTILE}"}
    (directory / "config.json").write_text(json.dumps(document))
    if metrics:
        lines = [{"step": s, "loss": 1 / s, "lr": lr, "images/s": 100 + s} for s in range(1, 400)]
        (directory / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    if results:
        found = [
            Record("accuracy", 0.88, n=10000, stderr=0.0032, headline=True, evaluator="linear_probe"),
            Record("accuracy", 0.79, "random_encoder", n=10000, stderr=0.0041, evaluator="linear_probe"),
            Record("accuracy", 0.5, class_name=HOSTILE, evaluator="linear_probe"),
        ]
        for percent, ours, scratch in ((1, 0.81, 0.75), (10, 0.85, 0.79)):
            own = Record("accuracy", ours, setting=f"{percent}%", evaluator="label_efficiency")
            found += [own.of(stderr=0.01, runs=3, path=f"{percent}%/finetune/mean"), own.of(value=scratch, baseline="scratch")]
        (directory / "records.json").write_text(json.dumps(to_json(found)))
        (directory / "results.json").write_text(json.dumps(flat(found)))
    panels = {
        "reconstruction": Images(np.zeros((2, 3, 8, 8, 1)), ("masked", "filled", "original")),
        "samples": Text((HOSTILE, "x")),
    }
    save_panels(panels, directory / "panels")
    return directory


class Page(html.parser.HTMLParser):
    """Collects tags, attributes and text, and checks that elements nest."""

    VOID = ("meta", "img", "source", "br", "input")

    def __init__(self, text):
        super().__init__()
        self.tags, self.links, self.stack, self.content = [], [], [], ""
        self.feed(text)
        assert self.stack == []

    def handle_starttag(self, tag, attributes):
        self.tags.append(tag)
        self.links += [value for name, value in attributes if name in ("src", "srcset", "href")]
        if tag not in self.VOID:
            self.stack.append(tag)

    def handle_endtag(self, tag):
        assert self.stack.pop() == tag

    def handle_data(self, data):
        self.content += data


def test_the_page_stands_alone_and_escapes_what_comes_from_data(tmp_path):
    page = Page(write_report(make_run(tmp_path / "run")).read_text())
    assert "script" not in page.tags
    assert page.content.count(HOSTILE) == 5  # config value, device, card, result name, text panel
    assert page.links and all(link.startswith("data:image/png;base64,") for link in page.links)
    for text in ("0.8800 ± 0.0032", "0.7900 ± 0.0041", "0.8 to 0.9 ✓", "399 steps", "optimizer.lr", "0.10.2"):
        assert text in page.content


def test_markdown_and_figures_lie_beside_the_page(tmp_path):
    run = make_run(tmp_path / "run")
    write_report(run)
    names = {path.name for path in run.iterdir()}
    assert {"report.html", "report.md", "report_loss.png", "report_label_efficiency.png", "report_metrics.png"} <= names
    text = (run / "report.md").read_text()
    assert "| linear_probe/accuracy | 0.8800 ± 0.0032 | 0.7900 ± 0.0041 | — | 10,000 | 0.8 to 0.9 ✓ |" in text
    for line in text.splitlines():
        if line.startswith("!["):
            assert (run / line.rpartition("(")[2].rstrip(")")).is_file()
    assert not [name for name in names if name.startswith(".")]


@pytest.mark.parametrize("left", ["config", "metrics", "half a line"])
def test_an_interrupted_run_gets_a_report(tmp_path, left):
    run = make_run(tmp_path / "run", results=False, metrics=left != "config")
    if left == "half a line":
        with open(run / "metrics.jsonl", "a") as file:
            file.write('{"step": 400, "lo')
        assert load_run(run).last_step == 399
    page = Page(write_report(run).read_text())
    assert "not measured" in page.content and "no results yet" in page.content


def test_runs_stand_side_by_side_with_what_differs(tmp_path):
    a, b = make_run(tmp_path / "x" / "run", lr=1e-3), make_run(tmp_path / "y" / "run", lr=3e-3)
    path = write_report([a, b], tmp_path / "both")
    assert path == tmp_path / "both" / "comparison.html"
    page = Page(path.read_text())
    for text in ("x/run", "y/run", "What differs", "0.003"):
        assert text in page.content
    assert not (a / "report.html").exists()


@pytest.mark.parametrize(
    ("file", "content", "message"),
    [
        ("records.json", "{", "records.json: is not JSON"),
        ("records.json", "[1]", "records.json: expected an object, found list"),
        ("metrics.jsonl", '{"step": 1}\nbad\n{"step": 2}\n', "metrics.jsonl: line 2 is not JSON"),
        ("panels/x.png", "no image", "x.png: is not a PNG image"),
    ],
)
def test_a_broken_file_is_named_and_nothing_is_written(tmp_path, file, content, message):
    run = make_run(tmp_path / "run")
    (run / file).write_text(content)
    with pytest.raises(UserError, match=message):
        write_report(run)
    assert not (run / "report.html").exists()


def test_what_is_no_work_directory_is_refused(tmp_path):
    with pytest.raises(UserError, match="there is no such work directory"):
        write_report(tmp_path / "missing")
    with pytest.raises(UserError, match="holds no run"):
        write_report(tmp_path)
    with pytest.raises(UserError, match="at least one"):
        write_report([])
    run = make_run(tmp_path / "run")
    with pytest.raises(UserError, match="is named twice"):
        write_report([run, str(run)])


def size(png):
    return Image.open(io.BytesIO(png)).size


@pytest.mark.parametrize(("shape", "expected"), [
    ((2, 3, 28, 28, 1), (2 * 8 + 3 * 112 + 2 * 4, 8 + 22 + 2 * 112 + 4 + 8)),
    ((1, 2, 200, 120, 3), (2 * 8 + 2 * 120 + 4, 8 + 22 + 200 + 8)),
])  # fmt: skip
def test_a_sheet_has_room_for_every_image(shape, expected):
    assert size(image_sheet(Images(np.zeros(shape), ("a",) * shape[1]))) == expected


def test_a_sheet_shows_the_pixels():
    """Each image lies in its row and column with its own colour; values outside [0, 1] are clipped."""
    array = np.zeros((2, 2, 96, 96, 3))
    array[0, 1] = (0, 2.0, 0)
    array[1, 0] = (-1.0, 0, 1.0)
    sheet = np.asarray(Image.open(io.BytesIO(image_sheet(Images(array, ("a", "b"))))))
    assert sheet[30 + 48, 8 + 100 + 48].tolist() == [0, 255, 0]
    assert sheet[30 + 100 + 48, 8 + 48].tolist() == [0, 0, 255]


def test_figures_draw_in_both_themes_and_skip_what_is_not_there():
    metrics = {"a": [{"step": s, "loss": float("nan") if s > 80 else 1 / s} for s in range(1, 100)], "b": []}
    light, dark = (figures.loss_figure(metrics, theme=theme, log_x=True) for theme in ("light", "dark"))
    assert size(light) == size(dark) and light != dark
    assert figures.loss_figure({"a": []}) is None
    assert figures.metrics_figure(metrics) is None
    assert figures.label_efficiency_figure({"a": [Record("accuracy", 1.0, evaluator="linear_probe")]}) is None


def test_a_step_logged_twice_counts_once_with_its_later_value():
    steps, values = figures.series([{"step": 2, "loss": 5}, {"step": 1, "loss": 9}, {"step": 2, "loss": 4}], "loss")
    assert steps.tolist() == [1, 2] and values.tolist() == [9, 4]


def test_speed_and_numbers_that_are_not_finite_are_read(tmp_path):
    run = make_run(tmp_path / "run")
    with open(run / "metrics.jsonl", "a") as file:
        file.write('{"step": 400, "loss": "nan"}\n')
    (run / "speed.jsonl").write_text('{"step": 10, "mfu": 0.5}\n')
    metrics = load_run(run).metrics
    assert np.isnan(figures.series(metrics, "loss")[1][-1])
    assert figures.series(metrics, "mfu")[1].tolist() == [0.5]


def test_the_running_mean_is_numpys_mean_of_the_values_that_there_are():
    values = np.random.default_rng(0).normal(size=31)
    means = [values[max(0, i - 3) : i + 4].mean() for i in range(31)]
    np.testing.assert_allclose(figures.running_mean(values, 7), means, rtol=0, atol=1e-14)


def test_label_efficiency_is_read_in_order_with_its_errors():
    own = Record("accuracy", 0.8, setting="10%", evaluator="label_efficiency")
    records = [own, own.of(value=0.7, setting="1%", stderr=0.1), own.of(value=0.5, setting="1%", baseline="scratch"),
               own.of(value=0.6, setting="1%/linear_probe"), own.of(metric="finetune_minus_scratch", value=0.2),
               own.of(value=0.1, setting="", baseline="majority")]  # fmt: skip
    assert figures.label_efficiency(records) == {
        "finetune": [(1.0, 0.7, 0.1), (10.0, 0.8, None)],
        "scratch": [(1.0, 0.5, None)],
        "linear_probe": [(1.0, 0.6, None)],
    }


@pytest.mark.parametrize(("seconds", "text"), [(48.21, "48.2 s"), (341.2, "5 min 41 s"), (8040, "2 h 14 min")])
def test_durations_read_well(seconds, text):
    assert duration(seconds) == text


def test_what_is_odd_about_a_run_stands_before_its_results(tmp_path):
    run = make_run(tmp_path / "run")
    (run / "warnings.json").write_text(json.dumps({"lines": ["39 of 40 updates were skipped", "<b> is odd"]}))
    write_report(run)
    html, text = (run / "report.html").read_text(), (run / "report.md").read_text()
    assert html.index("39 of 40 updates") < html.index("Results</h2>") and "&lt;b&gt; is odd" in html and "<b> is" not in html
    assert "- 39 of 40 updates were skipped" in text and text.index("## Warnings") < text.index("## Results")


# Several runs ---------------------------------------------------------------------------------------------------------


def seeded(directory, lr, seed, accuracy, task="masked_image"):
    run = make_run(directory, lr=lr)
    document = json.loads((run / "config.json").read_text())
    document["config"] |= {"seed": seed, "task": {"name": task}}
    (run / "config.json").write_text(json.dumps(document))
    found = [Record("accuracy", accuracy, evaluator="linear_probe", n=100, stderr=0.03, headline=True)]
    (run / "records.json").write_text(json.dumps(to_json(found)))
    return run


def test_seeds_of_a_config_are_one_column_with_mean_and_deviation(tmp_path):
    """(0.8 + 0.82 + 0.87) / 3 = 0.83, deviation sqrt((9 + 1 + 16) / 2) %; settings that differ come first."""
    values = {0.001: (0.80, 0.82, 0.87), 0.003: (0.7, 0.7, 0.7)}
    runs = [seeded(tmp_path / f"{lr}_{i}", lr, i, v) for lr, of in values.items() for i, v in enumerate(of)]
    single = seeded(tmp_path / "single", 0.01, 0, 0.5)
    assert [(group.name, len(group.runs)) for group in groups(load_runs([*runs, single]))] == [
        ("optimizer.lr=0.001", 3), ("optimizer.lr=0.003", 3), ("single", 1)
    ]  # fmt: skip
    path = write_report([*runs, single], tmp_path / "all")
    html, text = path.read_text(), (tmp_path / "all" / "comparison.md").read_text()
    assert "| linear_probe/accuracy | 0.830 ± 0.036 | 0.7000 | 0.500 ± 0.030 ✗ |" in text
    assert "| seed | 0, 1, 2 | 0, 1, 2 | 0 |" in text
    assert html.index("What differs") < html.index("Results</h2>")
    assert "optimizer.lr=0.001 (3 runs)" in html


def test_losses_of_different_tasks_are_different_figures(tmp_path):
    write_report([seeded(tmp_path / "a", 1e-3, 0, 0.5), seeded(tmp_path / "b", 1e-3, 0, 0.5, "ijepa")], tmp_path / "all")
    assert {"comparison_loss_masked_image.png", "comparison_loss_ijepa.png"} <= {p.name for p in (tmp_path / "all").iterdir()}


def test_a_validation_loss_is_drawn_beside_the_training_loss():
    lines = [{"step": s, "loss": 1 / s} for s in range(1, 100)]
    later = [{"step": s, "language_modelling/loss": 0.5, "language_modelling/unigram/loss": 2.0} for s in (50, 99)]
    assert figures.validation_loss(lines + later) == "language_modelling/loss" and figures.validation_loss(lines) is None
    assert figures.loss_figure({"a": lines + later}) != figures.loss_figure({"a": lines})


def test_captions_are_whole_and_notes_stand_below(tmp_path):
    """A caption that is wider than its image takes further lines."""
    caption = "reconstruction + visible incomprehensibilities"
    font = ImageFont.load_default(13)
    lines = wrapped(caption, font, 96)
    assert " ".join(lines) == caption or "".join(lines).replace(" ", "") == caption.replace(" ", "")
    assert all(font.getlength(line) <= 96 for line in lines) and len(lines) > 2
    assert "".join(wrapped("x" * 40, font, 96)) == "x" * 40 and wrapped("", font, 96) == [""]
    run = make_run(tmp_path / "run")
    save_panels({"reconstruction": Images(np.zeros((1, 1, 8, 8, 1)), (caption,), f"a note {HOSTILE}")}, run / "panels")
    page = Page(write_report(run).read_text())
    assert f"a note {HOSTILE}" in page.content and page.tags.count("input") >= 3


def test_what_a_run_started_from_stands_on_its_page(tmp_path):
    run = make_run(tmp_path / "run")
    (run / "initialised.json").write_text(json.dumps({"from": ["hf:mae"], "taken": ["encoder"]}))
    assert "hf:mae" in write_report(run).read_text()
