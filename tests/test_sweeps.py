"""Sweeps through the command line: a folder of ordinary runs, filled in any order and by any number of processes."""

import json
import os
import pathlib
import shlex
import shutil
import subprocess
import sys
import weakref

import numpy as np
import pytest

from ssl_jax import cli, evidence, sweeps
from ssl_jax.downstream.evaluators import features
from tests.test_runs import two_kinds

DATA = ("report.json", "report_figure.png", "report_figure.svg", "report_curves.png")
EXPERIMENT = """
from ssl_jax.experiments import Arm, chained, product, zipped
def get_experiment():
    config = dict(
        data=dict(train="npz:{0}/train.npz", test="npz:{0}/test.npz", batch_size=8),
        task=dict(name="masked_image", decoder=dict(width=8, depth=1, heads=2)),
        model=dict(name="vit", patch_size=4, width=8, depth=1, heads=2),
        training=dict(duration="4 steps", log_every=1, tensorboard=False), checkpoint=dict(every=2),
        optimizer=dict(lr=1e-3, weight_decay=0.05), downstream=dict(knn=dict(k=5)),
    )
    return dict(
        config=config, arms=product({{"optimizer.lr": (1e-3, 1e-2)}}), seeds=2, columns={{"knn/accuracy": "k-NN"}},
        figure=dict(x="optimizer.lr"),
    ) | dict({1})
"""


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("sweep")
    np.savez(folder / "train.npz", **two_kinds(32, 0))
    np.savez(folder / "test.npz", **two_kinds(16, 1))
    return folder


def sweep(folder, name, *arguments, settings=""):
    """Run the command on a toy experiment with `settings`, Python text, over its own; the exit status."""
    (folder / "toy.py").write_text(EXPERIMENT.format(folder, settings))
    return cli.main(["sweep", f"--experiment={folder / 'toy.py'}", f"--workdir={folder / name}", *arguments])


@pytest.fixture(scope="module")
def finished(folder):
    assert sweep(folder, "finished") == 0
    return folder / "finished"


def test_a_sweep_is_a_folder_of_ordinary_runs(folder, finished, capsys):
    """A run of the sweep has the numbers that the same config has alone, and every command takes it."""
    config = json.loads((finished / "lr=0.01/seed1/config.json").read_text())["config"]
    assert config["seed"] == 1 and config["optimizer"]["lr"] == 0.01
    (folder / "alone.py").write_text(
        f"from ml_collections import ConfigDict\ndef get_config():\n    return ConfigDict({config!r})\n"
    )
    assert cli.main(["run", f"--config={folder / 'alone.py'}", f"--workdir={folder / 'alone'}"]) == 0
    for name in ("metrics.jsonl", "results.json"):
        assert (folder / "alone" / name).read_text() == (finished / "lr=0.01/seed1" / name).read_text()
    assert cli.main(["evaluate", f"--workdir={finished / 'lr=0.01/seed1'}"]) == 0
    assert cli.main(["report", str(finished / "lr=0.01/seed1")]) == 0


def test_the_table_holds_every_run(finished):
    table = json.loads((finished / "report.json").read_text())
    assert [row["arm"] for row in table["rows"]] == ["lr=0.001", "lr=0.01"] and table["missing"] == []
    for row in table["rows"]:
        for seed, value in row["columns"]["knn/accuracy"]["values"].items():
            results = json.loads((finished / row["arm"] / f"seed{seed}" / "results.json").read_text())
            assert results["knn/accuracy"] == value


def test_started_again_it_runs_nothing_and_makes_the_same_page(folder, finished, capsys):
    before = {p: p.stat().st_mtime_ns for p in finished.rglob("seed*/*.json")}
    data = {name: (finished / name).read_bytes() for name in DATA}
    assert sweep(folder, "finished") == 0
    assert "4 of them done" in capsys.readouterr().out
    assert before == {p: p.stat().st_mtime_ns for p in finished.rglob("seed*/*.json")}
    (finished / "report.json").unlink()
    assert cli.main(["report", str(finished)]) == 0
    assert data == {name: (finished / name).read_bytes() for name in DATA}


def test_a_group_that_is_done_leaves_nothing_behind(folder, monkeypatch):
    """Otherwise a sweep of many arms holds the data, programs and features of all of them."""
    before, alive = [], []

    def run(self, group, parts, trainer):
        alive.append([reference() is not None for reference in before])
        before.extend((weakref.ref(parts), weakref.ref(trainer)))

    monkeypatch.setattr(sweeps.Running, "run", run)
    assert sweep(folder, "released", "--experiment.seeds=1", settings='arms=product({"model.width": (8, 16, 24)})') == 0
    assert alive == [[], [False] * 2, [False] * 4]


@pytest.mark.slow
def test_shards_make_the_page_of_one_process(folder, finished):
    settings = 'arms=product({"model.width": (8, 16)})'
    assert sweep(folder, "one", settings=settings) == 0
    for i in (1, 0):
        assert sweep(folder, "two", f"--shard={i}/2", settings=settings) == 0
        if i == 1:
            table = json.loads((folder / "two/report.json").read_text())
            assert [(m["arm"], m["why"]) for m in table["missing"]] == [("width=8", "not started")] * 2
    for name in DATA:
        assert (folder / "two" / name).read_bytes() == (folder / "one" / name).read_bytes(), name


@pytest.mark.slow
def test_a_sweep_may_grow_by_seeds_and_arms(folder, finished):
    shutil.copytree(finished, folder / "grown")
    assert sweep(folder, "grown", "--experiment.seeds=3", settings='arms=product({"optimizer.lr": (1e-2, 1e-1)})') == 0
    table = json.loads((folder / "grown/report.json").read_text())
    assert [row["arm"] for row in table["rows"]] == ["lr=0.01", "lr=0.1", "lr=0.001"] and table["seeds"] == [0, 1, 2]
    assert [(m["arm"], m["seed"]) for m in table["missing"]] == [("lr=0.001", 2)]


@pytest.mark.slow
def test_an_arm_that_diverges_is_named_and_the_others_are_unharmed(folder, finished, capsys):
    settings = 'arms=product({"optimizer.lr": (1e-3, 9e5, 1e-2)}, names=("lr=0.001", "huge", "lr=0.01"))'
    assert sweep(folder, "diverging", settings=settings) == 0
    out = capsys.readouterr().out
    assert "missing: huge, seed 0: diverged: step" in out
    for arm in ("lr=0.001", "lr=0.01"):
        for seed in (0, 1):
            own, other = (root / arm / f"seed{seed}" for root in (folder / "diverging", finished))
            assert (own / "metrics.jsonl").read_text() == (other / "metrics.jsonl").read_text()
    assert sweep(folder, "diverging", settings=settings) == 0  # and not tried again
    assert "6 of them done" in capsys.readouterr().out


def test_runs_that_train_and_are_evaluated_together_are_single_runs(folder, finished, monkeypatch, capsys):
    """Also when the sweep stopped after the evaluation of one of them: the same runs are joined again."""
    settings, joined = 'arms=product({"optimizer.lr": (1e-3,)}), figure=None', []
    join = features.join
    monkeypatch.setattr(features, "join", lambda encoders, devices: joined.append(len(encoders)) or join(encoders, devices))
    record = evidence.RunEvaluation.record
    with monkeypatch.context() as patch, pytest.raises(ZeroDivisionError):
        stop = lambda self, *arguments: record(self, *arguments) if self.wd.path.name == "seed0" else 1 / 0
        patch.setattr(evidence.RunEvaluation, "record", stop)
        sweep(folder, "together", "--replicas=2", settings=settings)
    assert (folder / "together/lr=0.001/seed0/results.json").exists()
    assert not (folder / "together/lr=0.001/seed1/results.json").exists()
    assert sweep(folder, "together", "--replicas=2", settings=settings) == 0
    assert joined == [2, 2, 2, 2]  # encoders and their random baselines, at both starts
    for seed in (0, 1):
        own, alone = (root / f"lr=0.001/seed{seed}" for root in (folder / "together", finished))
        assert (own / "results.json").read_text() == (alone / "results.json").read_text()
    assert not list((folder / "together/.stacks").iterdir())


def test_the_plan_is_printed_and_nothing_is_written(folder, capsys):
    assert sweep(folder, "planned", "--plan") == 0
    assert "2 arms x 2 seeds; 4 runs, 0 of them done, in 1 program" in capsys.readouterr().out
    assert not (folder / "planned").exists()


@pytest.mark.parametrize(
    "settings, line",
    [
        ('arms=product({"task.mask.ration": (0.5,)})', "arm 'ration=0.5': unknown key task.mask.ration; did you mean"),
        ('arms=product({"model.heads": (3,)})', "arm 'heads=3': "),
        ('arms=product({"optimizer.lr": ("high",)})', "arm 'lr=high': optimizer.lr='high': expected float"),
        ('columns={"knn/acuracy": "k-NN"}', "'knn/acuracy' is not a result of knn; did you mean knn/accuracy"),
        ('columns={"knm/accuracy": "k-NN"}', "'knm' is not an evaluator of `downstream`; did you mean knn"),
    ],
)
def test_a_mistake_is_one_line_and_writes_nothing(folder, settings, line, capsys):
    assert sweep(folder, "wrong", settings=settings) == 2
    error = capsys.readouterr().err
    assert line in error and error.count("\n") == 1
    assert not (folder / "wrong").exists()


def test_a_folder_of_something_else_is_refused(folder, finished, capsys):
    refused = [
        ("finished", dict(settings='overrides={"training.duration": "5 steps"}'), "training.duration: 4 steps there, 5 steps"),
        ("finished", dict(settings='arms=product({"optimizer.lr": (0.5,)}, names=("lr=0.01",))'), "optimizer.lr: 0.01 there"),
        ("finished/lr=0.01/seed0", {}, "holds a single run"),
        ("toy.py", {}, "is a file"),
    ]
    for name, options, line in refused:
        assert sweep(folder, name, **options) == 2
        assert line in capsys.readouterr().err
    assert cli.main(["run", f"--config={folder / 'alone.py'}", f"--workdir={finished}"]) == 2
    assert "holds a sweep" in capsys.readouterr().err


@pytest.mark.parametrize("shard", ["2/2", "a/b", "1", "0/0", "-1/2"])
def test_a_wrong_shard_is_one_line(folder, shard, capsys):
    assert sweep(folder, "wrong", f"--shard={shard}") == 2
    assert "expected i/n" in capsys.readouterr().err


@pytest.mark.slow
def test_killed_at_any_time_and_by_two_processes_the_page_is_the_same(folder, finished):
    """Three SIGKILLs, then two processes at once on what is left: the same table and figures, byte for byte."""
    (folder / "toy.py").write_text(EXPERIMENT.format(folder, ""))
    command = [
        sys.executable,
        "-m",
        "ssl_jax.cli",
        "sweep",
        f"--experiment={folder / 'toy.py'}",
        f"--workdir={folder / 'killed'}",
    ]
    environment = {**os.environ, "PYTHONPATH": str(pathlib.Path(__file__).parents[1])}
    start = lambda: subprocess.Popen(command, env=environment, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE)
    files = ("lr=0.001/seed0/config.json", "lr=0.001/seed1/checkpoints/00000002", "lr=0.01/seed0/status.json")
    for file in files:  # killed once this is there
        process = start()
        while not (folder / "killed" / file).exists():
            assert process.poll() is None, process.stderr.read()
        process.kill()
        process.wait()
    both = [start(), start()]
    for process in both:
        assert process.wait(timeout=300) == 0, process.stderr.read()
    for name in DATA:
        assert (folder / "killed" / name).read_bytes() == (finished / name).read_bytes(), name


def test_a_batch_script_fills_the_sweep(folder, tmp_path, capsys, monkeypatch):
    """The script, run once for each array index as SLURM would, does all that the sweep's own command does."""
    options = ("--submit=slurm", "--sbatch=--gpus=1 --time=4:00:00", "--plan")
    two = 'arms=product({"task.mask.ratio": (0.5, 0.75)}), figure=None'
    assert sweep(folder, "array", *options, settings=two) == 0
    text = capsys.readouterr().out.partition("#!/bin/bash")[2]
    assert "#SBATCH --array=0-1\n" in text and "#SBATCH --gpus=1\n#SBATCH --time=4:00:00\n" in text
    last = text.strip().splitlines()[-1]
    words = [word.replace("$SLURM_ARRAY_TASK_ID", "1") for word in shlex.split(last)]
    assert words[-1] == "--shard=1/2" and words[0] == "exec"
    called = []
    monkeypatch.setattr("ssl_jax.sweeps.sweep", lambda experiment, workdir, **options: called.append((workdir, options)) or 0)
    assert cli.main(words[2:]) == 0
    assert called == [(str(folder / "array"), dict(plan=False, shard=(1, 2), replicas=None))]


def test_submitting_without_slurm_is_one_line(folder, capsys, monkeypatch):
    monkeypatch.setenv("PATH", "")
    assert sweep(folder, "nowhere", "--submit=slurm") == 2
    assert "sbatch is not installed here" in capsys.readouterr().err
    assert sweep(folder, "nowhere", "--jobs=2") == 2
    assert "--jobs needs --submit=slurm" in capsys.readouterr().err
