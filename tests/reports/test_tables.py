"""The table of results puts each baseline beside what it is the baseline of, and judges expected intervals."""

import io

import pytest
from rich.console import Console

from ssl_jax.reports import tables

RESULTS = {
    "linear_probe/accuracy": 0.8805,
    "linear_probe/random_encoder/accuracy": 0.7904,
    "linear_probe/raw_pixels/accuracy": 0.8441,
    "linear_probe/majority/accuracy": 0.1,
    "knn/accuracy": 0.846,
    "knn/raw_pixels/accuracy": 0.856,
    "label_efficiency/1%/finetune/mean": 0.812,
    "label_efficiency/1%/finetune/stderr": 0.004,
    "label_efficiency/1%/scratch/mean": 0.757,
    "label_efficiency/1%/scratch/stderr": 0.006,
    "label_efficiency/10%/finetune/mean": 0.847,
    "label_efficiency/10%/scratch/mean": 0.791,
}


def test_a_baseline_stands_in_the_row_of_its_measurement():
    found = {row.name: row for row in tables.rows(RESULTS)}
    assert list(found) == ["linear_probe/accuracy", "knn/accuracy", "label_efficiency/1%", "label_efficiency/10%"]
    probe = found["linear_probe/accuracy"]
    assert {column: cell.number for column, cell in probe.cells.items()} == {
        "": 0.8805, "random_encoder": 0.7904, "raw_pixels": 0.8441, "majority": 0.1,
    }  # fmt: skip
    assert str(found["label_efficiency/1%"].measured) == "0.8120 ± 0.004"
    assert str(found["label_efficiency/1%"].cells["scratch"]) == "0.7570 ± 0.006"


def test_every_result_is_shown():
    """No number of results.json is lost on the way to the console or the Markdown."""
    stream = io.StringIO()
    Console(file=stream, width=200).print(tables.results_table(RESULTS))
    for text in (stream.getvalue(), tables.results_markdown(RESULTS)):
        for name, number in RESULTS.items():
            shown = f"± {number:.2g}" if name.endswith("stderr") else tables.number_text(number)
            assert shown in text, name


def test_a_narrow_terminal_cuts_no_number():
    stream = io.StringIO()
    Console(file=stream, width=80).print(tables.results_table(RESULTS, {"linear_probe/accuracy": (0.865, 0.89)}))
    for text in ("0.8805", "0.7904", "0.8441", "0.8120 ± 0.004", "0.865 to 0.89 ✓"):
        assert text in stream.getvalue()


@pytest.mark.parametrize(
    ("interval", "verdict"),
    [
        ((0.87, 0.89), "0.87 to 0.89 ✓"),
        ((0.8805, 0.9), "0.8805 to 0.9 ✓"),
        ((0.881, 0.9), "0.881 to 0.9 ✗"),
        ((0.1, 0.88), "0.1 to 0.88 ✗"),
    ],
)
def test_the_expected_interval_is_judged_with_its_ends(interval, verdict):
    row = tables.rows(RESULTS, {"linear_probe/accuracy": interval})[0]
    assert row.verdict() == verdict


def test_what_was_expected_but_not_measured_is_named():
    table = tables.rows(RESULTS, {"few_shot/accuracy": (0.7, 0.8), "knn/accuracy": [0.85, 0.9]})
    assert table[-1].verdict() == "0.7 to 0.8 not measured"
    assert tables.failures(table) == [
        "knn/accuracy=0.8460: expected 0.85 to 0.9",
        "few_shot/accuracy: expected 0.7 to 0.8, not measured",
    ]


def test_a_baseline_has_its_own_verdict():
    header, body = tables.grids(RESULTS, {"linear_probe/raw_pixels/accuracy": (0.9, 1.0)})[0]
    assert body[0][header.index("raw pixels")] == "0.8441 ✗"


def test_nan_lies_in_no_interval():
    row = tables.rows({"a": float("nan")}, {"a": (0.0, 1.0)})[0]
    assert row.measured.as_expected is False and str(row.measured) == "nan"


def test_columns_of_several_runs_stand_side_by_side():
    header, body = tables.comparison({"a": ({"x/accuracy": 0.5, "x/majority/accuracy": 0.1}, {}), "b": ({"y": 1.5}, {})})
    assert header == ["", "a", "b"]
    assert body == [["x/accuracy", "0.5000", "—"], ["x/accuracy, majority", "0.1000", "—"], ["y", "—", "1.5"]]


@pytest.mark.parametrize(
    ("number", "text"),
    [(0.88054, "0.8805"), (12.3456, "12.35"), (60000.0, "60,000"), (600, "600"), (3.2e-5, "3.200e-05"), (0.0, "0.0000")],
)
def test_numbers_have_four_digits_and_counts_all(number, text):
    assert tables.number_text(number) == text


def test_markdown_escapes_bars_and_tags():
    assert tables.markdown(["", "a|b"], [["<b>", "1"]]).splitlines() == ["|  | a\\|b |", "| --- | ---: |", "| &lt;b> | 1 |"]
