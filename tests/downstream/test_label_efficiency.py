"""Fine-tuning as an evaluator, and label efficiency, on a small data set of arrays."""

import dataclasses

import jax
import numpy as np
import pytest
from ml_collections import ConfigDict

from ssl_jax import data as kinds
from ssl_jax import randomness
from ssl_jax.config import read
from ssl_jax.downstream.evaluator import EvaluationData
from ssl_jax.downstream.evaluators.baselines import with_baselines
from ssl_jax.downstream.evaluators.finetune import FineTune, FineTuner, PartStream, Recipe, Scratch
from ssl_jax.downstream.evaluators.label_efficiency import LabelEfficiency
from ssl_jax.downstream.evaluators.linear_probe import LinearProbe
from ssl_jax.errors import UserError
from ssl_jax.pretext.masked_image import MaskedImage
from ssl_jax.reports.figures import label_efficiency
from ssl_jax.reports.records import Record, flat
from tests.downstream.downstream_toys import blobs
from tests.keys import toy_key

ADAM = dict(name="adamw", lr=3e-3, weight_decay=0.05)
SHORT = Recipe(training=dict(duration="6 steps"), optimizer=ADAM | dict(layer_decay=0.75), batch_size=16)
SCRATCH = Scratch(training=dict(duration="6 steps"), optimizer=ADAM, batch_size=16)


@pytest.fixture(scope="module")
def given(tmp_path_factory):
    """(encoder, evaluation data) of a masked autoencoder as it was initialised."""
    toys, folder = blobs(train=240, test=60, noise=90.0), tmp_path_factory.mktemp("data")
    for name, split in (("train", toys.train), ("test", toys.test)):
        np.savez(folder / f"{name}.npz", image=split.arrays["image"], label=split.label_array)
    config = ConfigDict(
        dict(
            task=dict(name="masked_image", decoder=dict(width=8, depth=1, heads=2)),
            model=dict(name="vit", patch_size=4, width=16, depth=2, heads=2),
            data=dict(train=f"npz:{folder}/train.npz", test=f"npz:{folder}/test.npz", batch_size=16),
            training=dict(duration="1 epochs"),
        )
    )
    train, test = (kinds.build("images", config.data, split=split, train=False) for split in ("train", "test"))
    task = MaskedImage.from_config(config, train.info)
    params = jax.jit(task.init)(toy_key(0), {"image": np.zeros((1, 8, 8, 1), np.float32)})
    return with_baselines(task, params), EvaluationData(train, test, config=config)


def test_a_part_stream_reads_its_part_and_nothing_else(given):
    _, data = given
    part = np.array([3, 50, 51, 52, 200])
    stream = PartStream(data.train, part, batch_size=5, seed=1)
    assert stream.steps_per_epoch == 1
    for step in range(4):
        assert sorted(stream.indices(step)) == list(part)
    assert {tuple(stream.indices(step)) for step in range(4)} != {tuple(stream.indices(0))}


@pytest.fixture(scope="module")
def tuner(given):
    return FineTuner(SHORT, given[1])


def test_runs_share_one_program_and_are_reproducible(given, tuner):
    encoder, part = given[0], np.arange(40)
    first = tuner.fit(part, seed=3, steps=4, source=encoder)
    tuner.fit(np.arange(100), seed=4, steps=3)
    again = tuner.fit(part, seed=3, steps=4, source=encoder)
    assert len(tuner.trainer.program._programs.futures) == 1
    for a, b in zip(jax.tree.leaves(first), jax.tree.leaves(again), strict=True):
        np.testing.assert_array_equal(a, b)


def test_fine_tuning_starts_from_the_encoder_and_leaves_it_as_it_was(given, tuner):
    encoder = given[0]
    before = jax.tree.map(np.array, encoder.params)
    params = tuner.fit(np.arange(40), seed=9, steps=1, source=encoder, lr=1e-9)
    for a, b in zip(jax.tree.leaves(params["encoder"]["stack"]), jax.tree.leaves(before["encoder"]["stack"]), strict=True):
        np.testing.assert_allclose(a, b, atol=1e-6)
    jax.tree.map(np.testing.assert_array_equal, before, jax.tree.map(np.array, encoder.params))


def test_partial_fine_tuning_moves_only_the_last_block(given):
    encoder, data = given
    tuner = FineTuner(Recipe(training=dict(duration="3 steps"), optimizer=ADAM, batch_size=16, blocks=1), data)
    params = tuner.fit(np.arange(40), seed=0, steps=3, source=encoder)["encoder"]["stack"]
    moved = lambda block: any(
        np.any(np.asarray(a) != np.asarray(b))
        for a, b in zip(jax.tree.leaves(params[block]), jax.tree.leaves(encoder.params["encoder"]["stack"][block]), strict=True)
    )
    assert moved("block01") and not moved("block00")


@pytest.mark.slow
def test_label_efficiency_compares_three_ways_at_every_fraction(given):
    encoder, data = given
    lines = []
    settings = LabelEfficiency(fractions=(0.1, 0.5), seeds=2, finetune=SHORT, scratch=SCRATCH)
    measured = list(settings(encoder, EvaluationData(data.train, data.test, data.config, log=lines.append)))
    found = flat(measured)
    for percent in ("10%", "50%"):
        for method in ("finetune", "scratch", "linear_probe"):
            assert 0 <= found[f"{percent}/{method}/mean"] <= 1
            assert found[f"{percent}/{method}/stderr"] >= 0
    assert found["majority/accuracy"] == pytest.approx(1 / 3)
    curves = label_efficiency([record.of(evaluator="label_efficiency") for record in measured])
    assert {name: [share for share, _, _ in points] for name, points in curves.items()} == {
        name: [10.0, 50.0] for name in ("finetune", "scratch", "linear_probe", "random_encoder", "raw_pixels")
    }  # what the report's figure draws
    assert lines[0].startswith("24 labels, finetune: ") and "(6 steps)" in lines[0]


def test_the_gain_over_from_scratch_is_told_in_standard_errors(given, monkeypatch):
    """Seed by seed: accuracies 0.8, 0.9, 0.7 against 0.7, 0.75, 0.65 gain 0.1, 0.15, 0.05; 0.1 is 3.46 times 0.05 / sqrt(3)."""
    encoder, data = given
    scores = {"finetune": (0.8, 0.9, 0.7), "scratch": (0.7, 0.75, 0.65)}
    scores = {name: [Record("accuracy", value) for value in values] for name, values in scores.items()}
    monkeypatch.setattr(LabelEfficiency, "_runs", lambda self, tuner, source, parts, steps, name, log: scores[name])
    lines = []
    settings = LabelEfficiency(fractions=(0.1,), finetune=SHORT, scratch=SCRATCH, linear_probe=None)
    measured = list(settings(encoder, EvaluationData(data.train, data.test, data.config, log=lines.append)))
    found = flat(measured)
    stem = "10%/finetune_minus_scratch"
    assert found[f"{stem}/mean"] == pytest.approx(0.1) and found[f"{stem}/stderr"] == pytest.approx(0.05 / 3**0.5)
    assert found[f"{stem}/standard_errors"] == pytest.approx(2 * 3**0.5)
    assert lines == [
        "10% of the labels, fine-tuned minus from scratch: +0.1000 ± 0.0289 (standard error, 3 seeds), more than two standard"
        " errors"
    ]


def test_from_scratch_gets_the_same_augmentation_and_mixing_unless_told_otherwise():
    finetune = Recipe(data=dict(augment=dict(flip=True)), task=dict(mix=dict(mixup=0.2)), batch_size=32, training=dict(ema=0.9))
    plain = Scratch().completed(finetune)
    assert (plain.data, plain.task, plain.training, plain.batch_size) == (
        finetune.data, finetune.task, finetune.training, 32
    )  # fmt: skip
    assert plain.learning_rates == (5e-4, 1e-3, 2e-3) and "layer_decay" not in plain.optimizer
    own = Scratch(optimizer=ADAM, training=dict(duration="9 epochs"), batch_size=8).completed(finetune)
    assert own.optimizer == ADAM and own.learning_rates == () and own.batch_size == 8
    assert own.training == dict(ema=0.9, duration="9 epochs")


def test_from_scratch_tries_its_learning_rates_on_held_out_training_examples(given, tuner, monkeypatch):
    """A rate of zero learns nothing and must lose; the test split is not asked."""
    _, data = given
    asked = []
    monkeypatch.setattr(tuner, "recipe", dataclasses.replace(SHORT, learning_rates=(1e-12, 3e-3)))
    monkeypatch.setattr(tuner, "logits", lambda params, split, own=tuner.logits: asked.append(split) or own(params, split))
    _, rate = tuner.fit_tuned(np.arange(120), seed=0, steps=60)
    assert rate == 3e-3 and len(asked) == 2
    assert all(split.source.name.startswith(data.train.source.name) and split.size == 24 for split in asked)


def test_the_mae_probe_with_augmentation_trains_the_head_alone_by_the_loop(given):
    """Without any augmentation in fact, it ends where the probe on cached features ends, up to the order of the batches."""
    encoder, data = given
    options = dict(protocol="mae", representation="cls", learning_rates=(20.0,), epochs=40, warmup_epochs=4, batch_size=60)
    looped = flat(LinearProbe(augment=dict(flip=False), baselines=False, **options)(encoder, data))
    cached = flat(LinearProbe(baselines=False, **options)(encoder, data))
    assert cached["accuracy"] > 0.45 and abs(looped["accuracy"] - cached["accuracy"]) < 0.1


@pytest.mark.slow
def test_running_moments_are_those_that_torch_keeps(given):
    """Of the images that training saw: batch by batch, momentum 0.1, unbiased variance, from 0 and 1."""
    encoder, data = given
    recipe = Recipe(task=dict(pooling="cls"), data=dict(augment=dict(crop=dict(padding=2))), batch_size=20, blocks=0)
    tuner, every = FineTuner(recipe, data), np.arange(240)
    params = tuner.fit(every, seed=3, steps=1, source=encoder)
    stream, (mean, var) = tuner._stream(every, 3), (np.zeros(16), np.ones(16))
    for step in range(2, 9):
        key = randomness.stream(3, "augment", step)
        batch = stream.on_device(stream.resident, stream.host_batch(step), key)
        x = np.asarray(tuner.task.features(params, batch)["pooled"], np.float64)
        mean, var = 0.9 * mean + 0.1 * x.mean(0), 0.9 * var + 0.1 * x.var(0, ddof=1)
    found = tuner.running_moments(params, every, seed=3, steps=9, batches=7)
    np.testing.assert_allclose(found[0], mean, atol=1e-5)
    np.testing.assert_allclose(found[1], var, atol=1e-5)


@pytest.mark.slow
def test_the_finetune_evaluator_reports_its_baselines(given):
    encoder, data = given
    settings = dict(training=dict(duration="2 epochs"), optimizer=ADAM, batch_size=16)
    found = flat(read(FineTune, settings, "downstream.finetune")(encoder, data))
    assert {"accuracy", "ece", "per_class/0", "scratch/accuracy", "majority/accuracy"} <= found.keys()
    short = settings | dict(scratch=dict(training=dict(duration="1 epochs")))
    with pytest.raises(UserError, match="15 steps on all labels, but fine-tuning takes 30"):
        flat(read(FineTune, short, "downstream.finetune")(encoder, data))


@pytest.mark.slow
def test_fine_tuning_at_another_image_size(given):
    encoder, data = given
    tuner = FineTuner(Recipe(data=dict(image_size=12), training=dict(duration="1 steps"), batch_size=16), data)
    params = tuner.fit(np.arange(40), seed=0, steps=1, source=encoder)
    assert tuner.task.encoder.grid == (3, 3) and tuner.logits(params)[0].shape == (60, 3)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        (dict(fractions=(0.0,)), r"downstream.label_efficiency.fractions=\(0.0,\): must be numbers in"),
        (dict(seeds=0), "seeds=0: must be at least 1"),
        (dict(durations=("5 epochs",)), "durations=.*give one for each of the 3 fractions"),
        (dict(finetune=dict(optimizer=dict(name="adamm", lr=1.0))), "optimizer.name='adamm': unknown optimizer; did you mean"),
        (dict(finetune=dict(training=dict(duration="5"))), "training.duration='5': write a number and its unit"),
        (dict(finetune=dict(learning_rates=(-1.0,))), "learning_rates=.*must be positive"),
    ],
)
def test_bad_settings_are_told_before_anything_runs(settings, message):
    with pytest.raises(UserError, match=message):
        read(LabelEfficiency, settings, "downstream.label_efficiency")


def test_a_baseline_with_fewer_steps_is_refused(given):
    encoder, data = given
    short = Scratch(training=dict(duration="5 steps"), optimizer=ADAM, batch_size=16)
    with pytest.raises(UserError, match="5 steps on 10% of the labels, but fine-tuning takes 6"):
        flat(LabelEfficiency(fractions=(0.1,), seeds=1, finetune=SHORT, scratch=short)(encoder, data))


def test_the_probe_of_a_fraction_reads_the_cached_features(given):
    encoder, data = given
    encoder.extract(data.train, ["mean"]), encoder.extract(data.test, ["mean"])
    encoder._compute, compute = None, encoder._compute  # a further pass would fail
    settings = LabelEfficiency(fractions=(1.0,), seeds=1, finetune=SHORT, scratch=None, linear_probe=LinearProbe(held_out=0.2))
    try:
        assert settings._probe(encoder, data, np.arange(240)).value > 0.4
    finally:
        encoder._compute = compute
