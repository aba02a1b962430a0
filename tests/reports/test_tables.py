"""Tables of results put each baseline beside what it is the baseline of, and judge expected intervals."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ssl_jax.errors import UserError
from ssl_jax.reports import records, tables
from ssl_jax.reports.records import Record


def measured(evaluator, value, baselines=(), *, metric="accuracy", **fields):
    """An evaluator's headline and its baselines."""
    own = Record(metric, value, headline=True, evaluator=evaluator, **fields)
    return [own, *(own.of(value=v, baseline=name, path="", headline=False, stderr=None) for name, v in dict(baselines).items())]


RECORDS = [
    *measured("linear_probe", 0.8805, dict(random_encoder=0.7904, raw_pixels=0.8441, majority=0.1), n=10000, stderr=0.0032),
    Record("accuracy", 0.75, class_name="Shirt", n=1000, stderr=0.014, evaluator="linear_probe"),
    *measured("knn", 0.846, dict(raw_pixels=0.856), n=10000, stderr=0.0036),
    Record("accuracy", 0.83, setting="k=1", evaluator="knn"),
    *measured("label_efficiency", 0.812, dict(scratch=0.757), setting="1%", path="1%/finetune/mean", stderr=0.004, runs=3),
    *measured("label_efficiency", 0.847, dict(scratch=0.791), setting="10%", path="10%/finetune/mean", stderr=0.004, runs=3),
    Record("accuracy", 0.1, "majority", evaluator="label_efficiency"),
]
NUMBERS = {"linear_probe/accuracy": (0.87, 0.89)}


def cells(row):
    return {name: record.value for name, record in row.baselines.items()}


def test_a_baseline_stands_in_the_row_of_its_measurement():
    found = {row.name: row for row in tables.rows(RECORDS)}
    assert list(found) == [
        "linear_probe/accuracy", "linear_probe/per_class/Shirt", "knn/accuracy", "knn/k=1/accuracy",
        "label_efficiency/1%/finetune/mean", "label_efficiency/10%/finetune/mean",
    ]  # fmt: skip
    probe = found["linear_probe/accuracy"]
    assert probe.record.value == 0.8805 and cells(probe) == dict(random_encoder=0.7904, raw_pixels=0.8441, majority=0.1)
    assert cells(found["label_efficiency/1%/finetune/mean"]) == dict(scratch=0.757, majority=0.1)  # it depends on no share
    assert cells(found["label_efficiency/10%/finetune/mean"]) == dict(scratch=0.791, majority=0.1)
    assert cells(found["linear_probe/per_class/Shirt"]) == {}


@pytest.mark.parametrize("name", ["random_encoder", "accuracy", "majority/accuracy", "a/b", "", "scratch", "✓", "raw_pixels/x"])
def test_no_class_name_lands_in_another_cell(name):
    """A class is data: what it is called decides nothing, in the table or in the file that it is read back from."""
    extra = Record("accuracy", 0.123, class_name=name, n=7, stderr=0.01, evaluator="linear_probe")
    stored = records.from_json(records.to_json([*RECORDS, extra]))
    assert sorted(map(repr, stored)) == sorted(map(repr, [*RECORDS, extra]))
    found = tables.rows(stored)
    assert sum(row.record == extra for row in found) == 1
    others = [row for row in found if row.record != extra]
    assert [(row.name, cells(row)) for row in others] == [(row.name, cells(row)) for row in tables.rows(RECORDS)]
    assert "0.123" not in tables.short_table(stored)


@given(st.lists(st.text(max_size=20), unique=True, max_size=6))
def test_names_of_results_are_unique_whatever_the_classes_are_called(names):
    own = [Record("accuracy", float(i), class_name=name, evaluator="knn") for i, name in enumerate(names)]
    flat = records.flat([*RECORDS, *own])
    assert len(flat) == len(RECORDS) + len(names) + 2  # the standard errors of what is a mean over runs


def test_two_results_of_one_name_are_refused():
    with pytest.raises(ValueError, match="two results are named 'knn/accuracy'"):
        records.flat(2 * [Record("accuracy", 0.5, evaluator="knn")])


def test_a_stored_record_of_another_form_is_refused():
    with pytest.raises(UserError, match="records.json: knn has .*, which is not a valid record"):
        records.from_json({"knn": [{"metrik": "accuracy", "value": 1.0}]})


def test_the_short_table_fits_eighty_columns_and_shows_headlines_only():
    text = tables.short_table(RECORDS, NUMBERS)
    lines = text.splitlines()
    assert max(map(len, lines)) <= 80
    for part in ("0.880 ±0.003 ✓", "0.790", "0.844", "0.100", "10,000", "0.812 ±0.004", "0.757", "As expected: 1 of 1"):
        assert part in text, part
    assert "Shirt" not in text and "k=1" not in text


@pytest.mark.parametrize("width", [40, 60, 120])
def test_a_terminal_of_any_width_cuts_no_number(width):
    text = tables.short_table(RECORDS, NUMBERS, width=width)
    assert max(map(len, text.splitlines())) <= width
    for part in ("0.880 ±0.003 ✓", "0.846 ±0.004", "10,000", "0.847 ±0.004"):
        assert part in text, part


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
    assert tables.rows(RECORDS, {"linear_probe/accuracy": interval})[0].verdict() == verdict


def test_what_was_expected_but_not_measured_is_named():
    table = tables.rows(RECORDS, {"few_shot/accuracy": (0.7, 0.8), "knn/accuracy": [0.85, 0.9]})
    assert table[-1].verdict() == "0.7 to 0.8 not measured"
    lines = ["knn/accuracy=0.8460: expected 0.85 to 0.9", "few_shot/accuracy: expected 0.7 to 0.8, not measured"]
    assert tables.failures(table) == lines
    text = tables.short_table(RECORDS, {"few_shot/accuracy": (0.7, 0.8), "knn/accuracy": [0.85, 0.9]})
    assert all(f"✗ {line}" in text for line in lines)


def test_a_baseline_has_its_own_verdict():
    header, body = tables.grid(tables.rows(RECORDS, {"linear_probe/raw_pixels/accuracy": (0.9, 1.0)}))
    assert body[0][header.index("raw pixels")] == "0.8441 ✗"


def test_the_gain_is_over_the_best_baseline_with_the_error_of_a_difference():
    own, other, worse = (Record("accuracy", v, b, stderr=s, evaluator="x") for v, b, s in (
        (0.9, None, 0.003), (0.85, "raw_pixels", 0.004), (0.8, "random_encoder", 0.1)))  # fmt: skip
    assert tables.rows([own, worse, other])[0].gain() == "+0.0500 ± 0.0050"
    loss = [Record("loss", v, b, lower_is_better=True, evaluator="x") for v, b in ((1.5, None), (3.0, "unigram"), (9.0, "z"))]
    assert tables.rows(loss)[0].gain() == "-1.5"
    assert tables.rows([own.of(value=float("nan")), other.of(value=float("nan")), worse])[0].best_baseline == worse


def test_nan_lies_in_no_interval_and_wins_nothing():
    row = tables.rows([Record("a", float("nan"))], {"a": (0.0, 1.0)})[0]
    assert row.holds() is False and tables.value_text(row.record) == "nan"


def test_columns_of_several_runs_stand_side_by_side():
    one = [Record("accuracy", 0.5, evaluator="x"), Record("accuracy", 0.1, "majority", evaluator="x")]
    header, body = tables.grouped({"a": [(one, {})], "b": [([Record("y", 1.5)], {})]})
    assert header == ["", "a", "b"]
    assert body == [["x/accuracy", "0.5000", "—"], ["x/accuracy, majority", "0.1000", "—"], ["y", "—", "1.5"]]


@pytest.mark.parametrize(
    ("number", "text"),
    [(0.88054, "0.8805"), (12.3456, "12.35"), (60000.0, "60,000"), (600, "600"), (3.2e-5, "3.200e-05"), (0.0, "0.0000")],
)
def test_numbers_have_four_digits_and_counts_all(number, text):
    assert tables.number_text(number) == text


@pytest.mark.parametrize(("value", "stderr", "text"), [
    (0.86741, 0.0034, "0.8674 ± 0.0034"), (12345.6, 12.3, "12,346 ± 12"), (0.5, 0.0, "0.5000"), (1.0, float("nan"), "1"),
])  # fmt: skip
def test_a_value_has_the_digits_that_its_error_leaves(value, stderr, text):
    assert tables.value_text(Record("accuracy", value, stderr=stderr)) == text


def test_markdown_escapes_bars_and_tags():
    assert tables.markdown(["", "a|b"], [["<b>", "1"]]).splitlines() == ["|  | a\\|b |", "| --- | ---: |", "| &lt;b> | 1 |"]
