"""The command line end to end: one command trains, evaluates and reports; a mistake is one line and changes nothing."""

import json
import shutil

import numpy as np
import pytest
from ml_collections import ConfigDict

import ssl_jax
from ssl_jax import cli, runs
from ssl_jax import config as configs
from ssl_jax.errors import UserError
from ssl_jax.workdir import differences

CONFIG = """
from ml_collections import ConfigDict
def get_config():
    c = ConfigDict()
    c.data = dict(train="npz:{0}/train.npz", test="npz:{0}/test.npz", batch_size=8, augment=dict(flip=True))
    c.task = dict(name="masked_image", decoder=dict(width=8, depth=1, heads=2))
    c.model = dict(name="vit", patch_size=4, width=16, depth=2, heads=2)
    c.training = dict(duration="6 steps", log_every=2)
    c.optimizer = dict(lr=1e-3, weight_decay=0.05, warmup="2 steps")
    c.downstream = dict(knn=dict(k=5), linear_probe=dict())
    c.expected = {{"knn/accuracy": (0.0, 1.0)}}
    return c
"""


def two_kinds(count, seed):
    """Images of two classes that a look at the mean of a half tells apart."""
    generator = np.random.default_rng(seed)
    label = generator.permutation(np.arange(count) % 2)
    image = generator.integers(0, 60, (count, 8, 8, 1)).astype(np.uint8)
    image[label == 1, :4] += 150
    return dict(image=image, label=label.astype(np.int32))


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("run")
    np.savez(folder / "train.npz", **two_kinds(64, 0))
    np.savez(folder / "test.npz", **two_kinds(32, 1))
    (folder / "config.py").write_text(CONFIG.format(folder))
    return folder


@pytest.fixture(scope="module")
def finished(folder):
    """A work directory in which a run has ended."""
    assert cli.main(["run", f"--config={folder / 'config.py'}", f"--workdir={folder / 'run'}"]) == 0
    return folder / "run"


def test_a_run_leaves_every_file_of_its_surface(finished):
    for name in ("config.json", "metrics.jsonl", "results.json", "report.html", "report.md", "panels/reconstruction.png"):
        assert (finished / name).is_file(), name
    assert any((finished / "checkpoints").iterdir()) and any((finished / "tensorboard").iterdir())
    stored = json.loads((finished / "config.json").read_text())
    assert stored["config"]["optimizer"]["lr"] == 1e-3 and stored["versions"]["jax"] and stored["device"]["count"] == 1
    steps = [json.loads(line)["step"] for line in (finished / "metrics.jsonl").read_text().splitlines()]
    assert steps == [2, 4, 6]


def test_the_baselines_stand_beside_the_result(finished):
    results = json.loads((finished / "results.json").read_text())
    for name in ("linear_probe", "knn"):
        for part in ("accuracy", "random_encoder/accuracy", "raw_pixels/accuracy", "majority/accuracy"):
            assert 0 <= results[f"{name}/{part}"] <= 1
    assert results["linear_probe/raw_pixels/accuracy"] == 1.0  # the classes are told apart by their pixels
    assert results["linear_probe/majority/accuracy"] == 0.5


def test_run_again_it_is_complete_and_changes_nothing(folder, finished, capsys):
    before = {p: p.stat().st_mtime_ns for p in finished.rglob("*") if p.is_file()}
    assert cli.main(["run", f"--config={folder / 'config.py'}", f"--workdir={finished}"]) == 0
    assert "the run is complete (6 steps)" in capsys.readouterr().out
    assert before == {p: p.stat().st_mtime_ns for p in finished.rglob("*") if p.is_file()}


@pytest.mark.slow
def test_a_last_checkpoint_damaged_before_the_evidence_is_trained_again(folder, finished, capsys):
    """All six steps were done and none evaluated yet; the only checkpoint has lost its end since."""
    again = folder / "damaged"
    shutil.copytree(finished, again)
    (again / "status.json").write_text('{"trained": 6}')
    (again / "results.json").unlink()
    array = max((p for p in (again / "checkpoints").rglob("*") if p.is_file()), key=lambda p: p.stat().st_size)
    array.write_bytes(array.read_bytes()[:-9])
    assert cli.main(["run", f"--config={folder / 'config.py'}", f"--workdir={again}"]) == 0
    assert "00000006 is damaged" in capsys.readouterr().err
    assert (again / "results.json").read_text() == (finished / "results.json").read_text()
    assert (again / "metrics.jsonl").read_text() == (finished / "metrics.jsonl").read_text()


def test_evaluating_the_checkpoint_again_gives_the_same_numbers(finished):
    before = json.loads((finished / "results.json").read_text())
    assert cli.main(["evaluate", f"--workdir={finished}"]) == 0
    assert json.loads((finished / "results.json").read_text()) == before


def test_a_notebook_sees_what_the_shell_embeds(folder, finished, capsys):
    out = folder / "features.npz"
    command = [
        "embed",
        f"--workdir={finished}",
        f"--data=npz:{folder / 'test.npz'}",
        "--features=mean,block00/mean",
        f"--to={out}",
    ]
    assert cli.main(command) == 0
    images = np.load(folder / "test.npz")["image"]
    features = ssl_jax.load(finished).features({"image": images}, batch_size=5)
    stored = np.load(out)
    np.testing.assert_allclose(features["mean"], stored["mean"], atol=1e-5)
    np.testing.assert_allclose(features["block00/mean"], stored["block00.mean"], atol=1e-5)
    output = ssl_jax.load(finished).forward(
        {"image": images}, noise=np.random.default_rng(0).random((32, 4)).astype(np.float32)
    )
    assert set(output) == {"loss", "pred", "mask"} and output["mask"].sum(axis=1).tolist() == [3.0] * 32


def test_skipped_examples_are_counted_in_the_metrics(folder, tmp_path):
    """Every batch of six takes all six files; one of them is broken."""
    from PIL import Image

    (tmp_path / "images").mkdir()
    for i in range(6):
        Image.fromarray(np.full((8, 8), 40 * i, np.uint8)).save(tmp_path / f"images/{i}.png")
    (tmp_path / "images/3.png").write_bytes((tmp_path / "images/3.png").read_bytes()[:40])
    data = [f"train=folder:{tmp_path / 'images'}", "test=None", "batch_size=6", "image_size=8", "on_bad_example=skip"]
    overrides = [
        *(f"--config.data.{text}" for text in data),
        "--config.data.normalize=None",
        "--config.training.duration=4 steps",
    ]
    assert cli.main(["pretrain", f"--config={folder / 'config.py'}", f"--workdir={tmp_path / 'run'}", *overrides]) == 0
    lines = [json.loads(line) for line in (tmp_path / "run/metrics.jsonl").read_text().splitlines()]
    assert [line["bad_examples"] for line in lines] == [1, 1]


def test_a_pca_target_is_that_of_the_training_images(folder, tmp_path):
    """A run from the shell finds its basis in the data before step 0 and never trains it."""
    from ssl_jax.training.checkpoint import load_variables

    arguments = [f"--config={folder / 'config.py'}", f"--workdir={tmp_path / 'run'}", "--config.training.duration=2 steps"]
    pca = ["--config.task.target=pca", "--config.task.components=3", "--config.model.width=8"]
    assert cli.main(["pretrain", *arguments, *pca]) == 0
    basis = load_variables(tmp_path / "run/checkpoints")["basis"]
    pixels = np.load(folder / "train.npz")["image"][..., 0].astype(np.float64) / 255
    patches = pixels.reshape(64, 2, 4, 2, 4).swapaxes(2, 3).reshape(-1, 16)
    patches -= patches.mean(0)
    _, sizes, axes = np.linalg.svd(patches, full_matrices=False)
    found = np.asarray(basis, np.float64)
    np.testing.assert_allclose(np.linalg.norm(patches @ found, axis=0), sizes[:3], rtol=1e-4)
    assert abs(axes[0] @ found[:, 0]) == pytest.approx(1, abs=1e-4)


def test_reconstruct_writes_a_sheet(finished):
    assert cli.main(["reconstruct", f"--workdir={finished}", "--count=3"]) == 0
    assert (finished / "reconstructions.png").read_bytes().startswith(b"\x89PNG")


@pytest.mark.parametrize(
    "overrides, message",
    [
        (["--config.task.mask_ratio=0.5"], "unknown key task.mask_ratio; did you mean task.mask.ratio?"),
        (["--config.model.patch_size=3"], "model.patch_size=3 does not divide the image, 8 x 8"),
        (["--config.task.mask.ratio=0"], "task.mask.ratio=0.0: must lie in (0, 1)"),
        (["--config.task.mask.ratio=1"], "task.mask.ratio=1.0: must lie in (0, 1)"),
        (["--config.task.name=masked_imag"], "did you mean masked_image?"),
        (["--config.data.train=npz:/nowhere.npz"], "/nowhere.npz"),
        (["--config.data.train=bundled:fashion_mnits/train"], "did you mean"),
        (["--config.training.duration=20"], "write a number and its unit"),
        (["--config.training.accumulation=3"], "training.accumulation=3: must divide data.batch_size=8"),
        (["--config.mesh.data=3"], "mesh: data 3 x fsdp 1 x tensor 1 is 3 devices, but there are 1"),
        (["--config.model.heads=3"], "heads=3 does not divide width=16"),
        (["--config.optimizer.name=adan"], "unknown optimizer; did you mean adam?"),
        (["--config.downstream.knnn.k=3"], "did you mean knn?"),
        (["--config.training.evaluators=('knnn',)"], "training.evaluators: 'knnn' is not in downstream; did you mean knn?"),
        (["--config.seed=-1"], "seed=-1"),
        (["--config.data.batch_size=abc"], "data.batch_size='abc': expected int, not str"),
        (["--config.optimizer.lr=high"], "optimizer.lr='high': expected float or None, not str"),
        (["--config.task.mask=0.5"], "task.mask=0.5: expected a section with the keys"),
        (["--config.expected=3"], "expected=3: write intervals by name"),
        (["--config.downstream=knn"], "downstream='knn': expected evaluators by name"),
        (["--config.optimizer.min_lr=1e-2"], "optimizer.min_lr=0.01: the schedule would end above its peak, 0.001"),
        (["--config.optimizer.warmup=7 steps"], "optimizer.warmup='7 steps': 7 steps are longer than the run, 6 steps"),
        (["--config.optimizer.schedule=warmup_stable_decay", "--config.optimizer.cooldown=5 steps"],
         "the warm-up of 2 steps and the cool-down of 5 are longer than the run, 6 steps"),
        (["--config.optimizer.rules.freeze=((\"nothing\",True),)"], "no rule matches the parameter"),
    ],
)  # fmt: skip
def test_a_mistake_is_one_line_and_writes_nothing(folder, capsys, overrides, message):
    target = folder / "never"
    assert cli.main(["run", f"--config={folder / 'config.py'}", f"--workdir={target}", *overrides]) == 2
    error = capsys.readouterr().err
    assert message in error and error.count("\n") == 1 and "Traceback" not in error
    assert not target.exists()


def test_a_config_without_a_batch_size_is_refused():
    config = ConfigDict(dict(task=dict(name="next_token"), data=dict(train="bundled:shakespeare/all")))
    with pytest.raises(UserError, match="data.batch_size is missing"):
        runs.prepare(config)


def test_a_directory_of_another_config_is_refused_with_the_difference(folder, finished, capsys):
    command = ["run", f"--config={folder / 'config.py'}", f"--workdir={finished}", "--config.optimizer.lr=2e-3"]
    assert cli.main(command) == 2
    assert "optimizer.lr: 0.001 there, 0.002 here" in capsys.readouterr().err


@pytest.mark.parametrize(
    "argv, message",
    [
        (["rnu"], "invalid choice"),
        (["run", "--config=x.py"], "--workdir"),
        (["run", "--config=x.py", "--workdir=w"], "x.py: there is no such file"),
        (["evaluate", "--workdir=/nowhere"], "there is no such directory"),
        (["reconstruct", "--workdir=/tmp"], "holds no run"),
        (["report", "/nowhere"], "/nowhere"),
        (["data", "inspect"], "needs a source"),
        (["data", "inspect", "nothing:x"], "nothing:"),
        (["run", "--config=x.py", "--workdir="], "--workdir: is empty; expected a path"),
        (["report", ""], "is empty; expected a path"),
        (["report", "~no_such_user/run"], "there is no such home directory"),
    ],
)
def test_a_wrong_command_line_is_one_line(argv, message, capsys):
    assert cli.main(argv) == 2
    error = capsys.readouterr().err
    assert message in error and error.count("\n") == 1


def test_differences_name_the_leaf():
    old, new = dict(a=dict(b=1, c=2), d=3), dict(a=dict(b=1, c=5), e=dict(f=1))
    assert [key for key, _ in differences(old, new)] == ["a.c", "d", "e.f"]


def test_a_home_directory_is_meant_by_a_tilde(folder, finished, monkeypatch, capsys):
    """A shell leaves it in `--workdir=~/run`."""
    monkeypatch.setenv("HOME", str(folder))
    assert cli.main(["run", "--config=~/config.py", "--workdir=~/run"]) == 0
    assert "the run is complete" in capsys.readouterr().out
    assert ssl_jax.load("~/run").task.name == "masked_image"


@pytest.mark.parametrize("text", ["None", "False"])
def test_an_evaluator_is_switched_off_from_the_command_line(folder, text):
    config = configs.load(str(folder / "config.py"), {"downstream.linear_probe": text})
    assert list(runs.read_evaluators(config)) == ["knn"]
