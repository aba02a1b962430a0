"""Replicas in one program: each computes what its single run computes, through the same loop and the same files."""

import dataclasses
import json
import pathlib

import jax
import numpy as np
import pytest
from ml_collections import ConfigDict

from ssl_jax import config as configs
from ssl_jax import runs
from ssl_jax.data.pipeline import Stream
from ssl_jax.training import loop
from ssl_jax.training.exceptions import Diverged
from ssl_jax.training.replicas import Replica, train_replicas
from ssl_jax.training.settings import CheckpointSettings
from tests.test_runs import two_kinds

STEPS = 12
ROOT = pathlib.Path(__file__).parents[2]


@pytest.fixture(scope="module")
def mae(tmp_path_factory):
    folder = tmp_path_factory.mktemp("mae")
    np.savez(folder / "train.npz", **two_kinds(48, 0))
    return prepared(
        data=dict(train=f"npz:{folder / 'train.npz'}", batch_size=8, augment=dict(crop=dict(padding=1), flip=True)),
        task=dict(name="masked_image", decoder=dict(width=8, depth=1, heads=2)),
        model=dict(name="vit", patch_size=4, width=16, depth=2, heads=2, drop_path=0.1),
        optimizer=dict(lr=1e-3, weight_decay=0.05, warmup="2 steps"),
    )


@pytest.fixture(scope="module")
def gpt(tmp_path_factory):
    file = tmp_path_factory.mktemp("gpt") / "text.txt"
    file.write_text("the quick brown fox jumps over the lazy dog. " * 60)
    return prepared(
        data=dict(train=f"text:{file}", block=16, batch_size=6, tokenizer=dict(name="characters")),
        task=dict(name="next_token"), model=dict(name="transformer", width=16, depth=2, heads=2),
        optimizer=dict(lr=3e-3, weight_decay=0.1, warmup="2 steps", clip=1.0), ema=0.9,
    )  # fmt: skip


def prepared(ema=None, **sections):
    """(trainer, seed -> stream) of a config."""
    training = dict(duration=f"{STEPS} steps", log_every=5, tensorboard=False, ema=ema)
    parts = runs.prepare(ConfigDict(dict(sections, training=training)))
    batch_size = parts.stream.batch_size
    return runs.trainer_of(parts), lambda seed: Stream(parts.stream.dataset, batch_size=batch_size, seed=seed)


def replicas_of(stream, folder=None, count=3, **options):
    return [
        Replica(seed, stream(seed), None if folder is None else folder / f"seed{seed}", lr=1e-3 * (1 + seed),
                weight_decay=0.05 * seed, **options)
        for seed in range(count)
    ]  # fmt: skip


def single(trainer, replica, workdir=None, **options):
    return trainer.run(seed=replica.seed, stream=replica.stream, lr=replica.lr, weight_decay=replica.weight_decay,
                       workdir=workdir, quiet=True, **options)  # fmt: skip


def distance(a, b):
    """Relative L2 distance of two trees as wholes."""
    a, b = (np.concatenate([np.ravel(x) for x in jax.tree.leaves(jax.device_get(tree))]) for tree in (a, b))
    return np.linalg.norm(a - b) / np.linalg.norm(b)


def lines(folder):
    return [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]


@pytest.mark.parametrize("task", ["mae", pytest.param("gpt", marks=pytest.mark.slow)])
def test_a_replica_is_its_single_run(task, request, tmp_path):
    """Losses to 1e-5 and parameters as a whole to 1e-5, with seeds, learning rates and weight decays of their own; the files
    hold the same. A failure means that replicas see each other, or that something of a run is not in its State."""
    trainer, stream = request.getfixturevalue(task)
    replicas = replicas_of(stream, tmp_path)
    found = train_replicas(trainer, replicas, workdir=tmp_path / "stack", total_steps=STEPS)
    for replica, state in zip(replicas, found, strict=True):
        alone = single(trainer, replica, tmp_path / f"alone{replica.seed}")
        assert distance(state.evaluated, alone.evaluated) < 1e-5
        for a, b in zip(lines(replica.workdir), lines(tmp_path / f"alone{replica.seed}"), strict=True):
            assert a.keys() == b.keys() and a["step"] == b["step"]
            np.testing.assert_allclose([a["loss"], a["lr"]], [b["loss"], b["lr"]], rtol=1e-5)
        own = (replica.workdir / "checkpoints" / f"{STEPS:08d}" / "extra.json").read_text()
        theirs = (tmp_path / f"alone{replica.seed}" / "checkpoints" / f"{STEPS:08d}" / "extra.json").read_text()
        assert json.loads(own).keys() == json.loads(theirs).keys()
    assert distance(found[0].params, found[1].params) > 1e-2


def test_a_replicas_checkpoint_continues_as_a_single_run(mae, tmp_path):
    trainer, stream = mae
    replicas = replicas_of(stream, tmp_path)
    train_replicas(trainer, replicas, total_steps=STEPS)
    state = single(trainer, replicas[1], replicas[1].workdir)  # complete: it is read, not trained
    assert int(state.step) == STEPS and int(state.hyper["seed"]) == 1


class Stop(Exception):
    pass


def test_a_stack_continues_to_the_bit(mae, tmp_path, monkeypatch):
    """Stopped after a checkpoint at step 6 and started again: the files of a stack that was never stopped."""
    trainer, stream = mae
    saving = CheckpointSettings(every=6)
    whole = train_replicas(trainer, replicas_of(stream, tmp_path / "a"), workdir=tmp_path / "a", total_steps=STEPS,
                           checkpoint=saving)  # fmt: skip

    original = loop.Run.between_calls

    def stops(self, pending, ahead):
        if self.step == 8 and stops.on:
            self.checkpoints.wait()
            raise Stop
        return original(self, pending, ahead)

    stops.on = True
    monkeypatch.setattr(loop.Run, "between_calls", stops)
    start = lambda: train_replicas(trainer, replicas_of(stream, tmp_path / "b"), workdir=tmp_path / "b",
                                   total_steps=STEPS, checkpoint=saving)  # fmt: skip
    with pytest.raises(Stop):
        start()
    assert (tmp_path / "b/checkpoints/00000006").is_dir()
    stops.on = False
    again = start()
    for a, b in zip(whole, again, strict=True):
        assert distance(a.params, b.params) == 0
    for seed in (0, 1, 2):
        a, b = (tmp_path / name / f"seed{seed}" / "metrics.jsonl" for name in "ab")
        assert a.read_text() == b.read_text()


def test_a_replica_that_diverges_leaves_its_neighbours_alone(mae, tmp_path):
    trainer, stream = mae
    calm = replicas_of(stream, tmp_path / "calm")
    wild = replicas_of(stream, tmp_path / "wild")
    wild[1] = dataclasses.replace(wild[1], lr=1e30)
    expected = train_replicas(trainer, calm, total_steps=STEPS)
    found = train_replicas(trainer, wild, total_steps=STEPS)
    assert isinstance(found[1], Diverged) and "is not finite" in str(found[1])
    assert (wild[1].workdir / "diverged.json").is_file() and not (wild[1].workdir / "checkpoints").exists()
    for k in (0, 2):
        assert distance(found[k].params, expected[k].params) == 0
        assert (wild[k].workdir / "metrics.jsonl").read_text() == (calm[k].workdir / "metrics.jsonl").read_text()
    alone = [dataclasses.replace(wild[1], workdir=tmp_path / f"{k}") for k in range(3)]
    assert all(isinstance(state, Diverged) for state in train_replicas(trainer, alone, total_steps=STEPS))


def test_replicas_are_evaluated_each_by_itself(mae, tmp_path):
    trainer, stream = mae
    norm = lambda state: {"norm": float(sum(np.sum(np.square(x)) for x in jax.tree.leaves(state.params)))}
    program = trainer.program
    trainer = loop.Trainer(program.task, program.stream, optimizer=program.settings,
                           training=dataclasses.replace(program.training, evaluate_every="6 steps"))  # fmt: skip
    replicas = replicas_of(stream, tmp_path, evaluate=norm)
    train_replicas(trainer, replicas, total_steps=STEPS)
    for replica in replicas:
        single(trainer, replica, tmp_path / f"alone{replica.seed}", evaluate=norm)
        a, b = lines(replica.workdir), lines(tmp_path / f"alone{replica.seed}")
        assert [line["step"] for line in a] == [line["step"] for line in b]
        pairs = [(x["norm"], y["norm"]) for x, y in zip(a, b, strict=True) if "norm" in y]
        assert len(pairs) == 2
        np.testing.assert_allclose(*zip(*pairs, strict=True), rtol=1e-5)


def test_shared_data_are_read_once(gpt):
    """All replicas see the first one's batches; seeds still differ in their initial parameters."""
    trainer, stream = gpt
    a, b, other = (Replica(0, stream(0)), Replica(0, stream(7)), Replica(1, stream(1)))
    found = train_replicas(trainer, [a, b, other], total_steps=4, share_data=True)
    assert distance(found[0].params, found[1].params) == 0 and distance(found[0].params, found[2].params) > 0.1


@pytest.mark.slow
@pytest.mark.parametrize("file", ["configs/mae/fashion_mnist.py", "configs/gpt/shakespeare_char_cpu.py"])
def test_eight_seeds_of_a_whole_config_are_eight_runs(file):
    """50 steps as they are: what two small layers hide (a program's fusions, Adam's amplified rounding) shows here."""
    steps = {"training.duration": "50 steps", "training.tensorboard": "False", "optimizer.warmup": "10 %"}
    parts = runs.prepare(configs.load(str(ROOT / file), steps))
    trainer, batch_size = runs.trainer_of(parts), parts.stream.batch_size
    replicas = [Replica(k, Stream(parts.stream.dataset, batch_size=batch_size, seed=k)) for k in range(8)]
    found = train_replicas(trainer, replicas, total_steps=50)
    for k in (0, 3, 7):
        assert distance(found[k].params, single(trainer, replicas[k], total_steps=50).params) < 1e-5


SEVERAL_DEVICES = """
import numpy as np
from tests.training.test_replicas import distance, prepared, replicas_of, single
from ssl_jax.training.replicas import train_replicas
from tests.test_runs import two_kinds
np.savez("{0}/train.npz", **two_kinds(48, 0))
sections = dict(
    data=dict(train="npz:{0}/train.npz", batch_size=8), task=dict(name="masked_image", decoder=dict(width=8, depth=1, heads=2)),
    model=dict(name="vit", patch_size=4, width=16, depth=1, heads=2),
    optimizer=dict(name="sgd", lr=1e-3))  # Adam amplifies the rounding of gradients that are zero: a key's bias
(trainer, stream), (one, _) = prepared(**sections), prepared(mesh=dict(data=1), **sections)  # rows over cores round otherwise
for count in (2, 4):
    replicas = replicas_of(stream, count=count)
    found = train_replicas(trainer, replicas, total_steps=6)
    assert trainer.stacks[count].mesh.size == 2 and one.program.mesh.size == 1
    print(max(distance(state.params, single(one, r, total_steps=6).params) for r, state in zip(replicas, found)))
"""


@pytest.mark.slow
def test_replicas_over_devices_are_their_single_runs(child, tmp_path):
    """One on each of two devices, and two on each."""
    found = [float(line) for line in child(SEVERAL_DEVICES.format(tmp_path), devices=2).split()]
    assert len(found) == 2 and max(found) < 1e-6
