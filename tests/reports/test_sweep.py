"""The page of a sweep: statistics in every cell, missing runs named, and the same bytes from the same numbers."""

import json
import xml.etree.ElementTree

import pytest

from ssl_jax.errors import UserError
from ssl_jax.reports.sweep import comparison_table, load_sweep, results_table, summary_text, write_sweep
from ssl_jax.reports.sweep_figures import numbers
from tests.reports.test_report import HOSTILE, Page

ARMS = ("25 %", "50 %", HOSTILE)
DATA = ("report.json", "report_figure.png", "report_figure.svg", "report_curves.png", "report_curves.svg")


def make_run(folder, lr, accuracy, seed, *, clock=1.0, **status):
    folder.mkdir(parents=True)
    config = {"seed": seed, "optimizer": {"lr": lr}}
    (folder / "config.json").write_text(json.dumps({"config": config, "device": {"kind": "cpu", "count": 1}}))
    lines = [{"step": s, "loss": lr / s + seed / 100} for s in range(1, 40)]
    (folder / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    (folder / "speed.jsonl").write_text(json.dumps({"step": 39, "steps/s": 10 * clock}) + "\n")
    (folder / "status.json").write_text(json.dumps({"trained": 39, "evaluated": {}, **status}))
    (folder / "timings.json").write_text(json.dumps({"training": 12.5 * clock, "knn": 2.0}))
    if accuracy is not None:
        (folder / "results.json").write_text(json.dumps({"knn/accuracy": accuracy, "knn/other": 0.5}))


def make_sweep(folder, seeds=3, skip=(), clock=1.0):
    """Three arms; the second is better by 0.1 for each seed, about."""
    arms = [{"name": name, "folder": f"arm{i}", "values": {"optimizer.lr": i + 1}, "x": i + 1} for i, name in enumerate(ARMS)]
    document = {
        "name": "toy", "command": "ssl-jax sweep --experiment=toy.py", "config": {"optimizer": {"lr": 1}}, "arms": arms,
        "seeds": list(range(seeds)), "default": "25 %", "columns": {"knn/accuracy": "k-NN"}, "card": HOSTILE,
        "figure": {"x": "optimizer.lr", "y": [], "series": None, "log_x": False},
        "published": {"source": HOSTILE, "columns": {"knn/accuracy": "paper"},
                      "rows": {"25 %": [1], "50 %": [3], HOSTILE: [2]}},
    }  # fmt: skip
    folder.mkdir(parents=True)
    (folder / "sweep.json").write_text(json.dumps(document))
    for i in range(3):
        for seed in range(seeds):
            if (i, seed) not in skip:
                accuracy = 0.5 + (i == 1) * 0.1 + seed / 100 + i * seed / 1000
                make_run(folder / f"arm{i}" / f"seed{seed}", i + 1, accuracy, seed, clock=clock)
    return folder


def test_the_table_has_statistics_in_every_cell_and_the_published_beside(tmp_path):
    sweep = load_sweep(make_sweep(tmp_path / "d"))
    header, body = results_table(sweep)
    assert header == ["", "k-NN", "paper, published"]
    assert body[0] == ["25 % (default)", "0.510 ± 0.025 (sd 0.010, n 3)", "1"]
    assert body[1] == ["50 %", "0.611 ± 0.027 (sd 0.011, n 3) *", "3"]
    _, lines = comparison_table(sweep)
    assert [line[0] for line in lines] == ["50 %", HOSTILE] and lines[0][2] == "+0.1010" and lines[0][-1].endswith("*")


def test_nothing_is_marked_by_rank_alone(tmp_path):
    sweep = load_sweep(make_sweep(tmp_path / "d", seeds=1))
    assert [line[1] for line in results_table(sweep)[1]] == [f"{v} (n 1, no interval)" for v in ("0.5000", "0.6000", "0.5000")]
    page = write_sweep(tmp_path / "d").read_text()
    assert "One seed: no interval and no test" in page and " *" not in page.split("<main>")[1].split("Pictures")[0]


def test_the_page_is_self_contained_and_escapes_what_it_shows(tmp_path):
    folder = make_sweep(tmp_path / "d")
    page = Page(write_sweep(folder).read_text())
    assert "script" not in page.tags and all(link.startswith("data:") for link in page.links)
    assert HOSTILE in page.content and "Kendall's tau +1.00" in page.content
    text = (folder / "report.md").read_text()
    assert "0.611 ± 0.027 (sd 0.011, n 3) *" in text and "100.0 ms" in text and "<script>" not in text.split("```")[0]
    xml.etree.ElementTree.fromstring((folder / "report_figure.svg").read_text())


def test_table_and_figures_depend_on_the_numbers_alone(tmp_path):
    """Other times and another folder: the same bytes."""
    a, b = make_sweep(tmp_path / "a"), make_sweep(tmp_path / "b", clock=3.0)
    write_sweep(a), write_sweep(b)
    for name in DATA:
        assert (a / name).read_bytes() == (b / name).read_bytes(), name


def test_missing_runs_are_named_with_why(tmp_path):
    folder = make_sweep(tmp_path / "d", skip=((1, 0), (1, 1), (1, 2), (2, 1), (2, 2)))
    make_run(folder / "arm1/seed0", 1, None, 0, diverged="step 3: loss is not finite")
    make_run(folder / "arm1/seed1", 1, None, 0)
    make_run(folder / "arm2/seed1", 1, float("nan"), 1)
    page = Page(write_sweep(folder).read_text()).content
    for line in ("50 %, seed 0: diverged: step 3", "50 %, seed 1: trained, not evaluated", "50 %, seed 2: not started",
                 f"{HOSTILE}, seed 1: has no finite knn/accuracy", "5 of 9 runs finished"):  # fmt: skip
        assert line in page, line
    sweep = load_sweep(folder)
    assert results_table(sweep)[1][1][1] == "missing" and sweep.rows[2].summaries["knn/accuracy"].n == 1
    assert sweep.rows[0].summaries == load_sweep(make_sweep(tmp_path / "whole")).rows[0].summaries


def test_an_empty_sweep_has_a_page(tmp_path):
    folder = make_sweep(tmp_path / "d", skip=[(i, s) for i in range(3) for s in range(3)])
    assert "0 of 9 runs finished" in write_sweep(folder).read_text()
    assert not (folder / "report_figure.png").exists()


def test_what_is_no_sweep_is_one_line(tmp_path):
    with pytest.raises(UserError, match="holds no sweep"):
        load_sweep(tmp_path)
    (tmp_path / "sweep.json").write_text("{}")
    with pytest.raises(UserError, match="is not what a sweep writes there"):
        load_sweep(tmp_path)


def test_the_values_of_a_key_are_an_axis_where_they_are_numbers():
    assert numbers([1, 2.5]) == ([1.0, 2.5], "") and numbers(["2 epochs", "8 epochs"]) == ([2.0, 8.0], "epochs")
    assert numbers(["5 %", "10 %"]) == ([5.0, 10.0], "%") and numbers(["2 epochs", "8 steps"]) is None
    assert numbers(["pixels", "pca"]) is None and numbers([True, False]) is None and numbers([None, 1]) is None


def test_a_cell_without_variation_is_exact(tmp_path):
    from ssl_jax.reports.statistics import summarize

    assert summary_text(summarize([0.5, 0.5])) == "0.5000 ± 0.0000 (sd 0.0000, n 2)"
