"""Encoders that are evaluated together: each has the values of its single run, computed in one pass for all."""

import dataclasses

import jax
import numpy as np
import pytest

from ssl_jax.downstream.evaluation import Evaluation
from ssl_jax.downstream.evaluators import features, linear_probe
from ssl_jax.downstream.evaluators.baselines import with_baselines
from ssl_jax.downstream.evaluators.features import Encoder, join, separately
from ssl_jax.downstream.evaluators.finetune import FineTuner
from ssl_jax.downstream.evaluators.label_efficiency import LabelEfficiency
from ssl_jax.downstream.evaluators.language_modelling import MaskedTokenLoss, NextTokenLoss
from ssl_jax.downstream.evaluators.linear_probe import LinearProbe
from ssl_jax.errors import UserError
from ssl_jax.reports.records import Record, flat
from ssl_jax.training.exceptions import Diverged
from tests.downstream.downstream_toys import ToyTask, blobs, toy_params
from tests.downstream.test_label_efficiency import SCRATCH, SHORT, given  # noqa: F401
from tests.downstream.test_language_modelling import folder, setup  # noqa: F401


def joined(encoders):
    join(encoders, jax.devices())
    return encoders


def toys(data, seeds=(0, 1, 2)):
    return [with_baselines(ToyTask(), toy_params(data, seed), seed=seed) for seed in seeds]


def test_features_are_those_of_single_encoders_in_one_pass(monkeypatch):
    data, passes = blobs(), []
    alone = toys(data)
    together = joined(toys(data))
    count = lambda *arguments: passes.append(1) or program(*arguments)
    program = features.EncoderProgram
    monkeypatch.setattr(features, "EncoderProgram", count)
    for one, own in zip(alone, together, strict=True):
        wanted, found = (e.extract(data.test, ("mean", "cls")) for e in (one, own))
        for name in wanted:
            np.testing.assert_allclose(found[name], wanted[name], atol=1e-6)
        random = (e.baselines["random_encoder"].extract(data.test, ("mean",))["mean"] for e in (one, own))
        np.testing.assert_allclose(*random, atol=1e-6)
    assert len(passes) == 2 * (len(alone) + 1)  # encoders and random encoders: each alone, and all in one


def test_features_that_are_not_finite_are_the_error_of_their_own_encoder():
    data = blobs()
    bad, good = joined(toys(data, (0, 1)))
    bad.params = jax.tree.map(lambda x: x * np.nan, bad.params)
    np.testing.assert_allclose(
        good.extract(data.test, ("mean",))["mean"], toys(data, (1,))[0].extract(data.test, ("mean",))["mean"], atol=1e-6
    )
    with pytest.raises(UserError, match="101 of 101 examples hold NaN"):
        bad.extract(data.test, ("mean",))


def test_a_result_is_computed_once_for_all_and_an_error_is_raised_for_its_own():
    data = blobs()
    encoders, calls = joined(toys(data)), []

    def measure(encoder):
        calls.append(encoder.seed)
        if encoder.seed == 1:
            raise Diverged("step 3")
        return 10 * encoder.seed

    ask = lambda encoder, **options: encoder.result(data, "times ten", separately(measure), **options)
    assert ask(encoders[0]) == 0 and ask(encoders[2]) == 20 and calls == [0, 1, 2]
    for _ in range(2):
        with pytest.raises(Diverged):
            ask(encoders[1])
    other = dataclasses.replace(data, test=data.train)
    assert encoders[2].result(other, "times ten", separately(measure)) == 20 and calls == [0, 1, 2] * 2
    assert ask(encoders[2], keep=False) == 20 and calls == [0, 1, 2] * 2
    assert ask(encoders[2]) == 20 and calls == [0, 1, 2] * 2 + [2]  # it was not kept


def test_runs_of_one_program_measure_raw_pixels_once(monkeypatch):
    """Results of the random encoder are each run's own; both are measured once, however often a run is evaluated."""
    data, calls = blobs(), []
    monkeypatch.setattr(
        linear_probe, "probe", lambda xs, *a, own=linear_probe.probe: calls.append(xs[0].shape[1]) or own(xs, *a)
    )
    probe = LinearProbe(l2=(1e-3,))
    for seed in (0, 5):
        evaluation = Evaluation({"probe": probe}, ToyTask(), data, lambda sources: data, seed=seed)
        found = [flat(evaluation.measure("probe", {"ema": evaluation.encoder(toy_params(data, seed))})) for _ in range(2)]
        assert found[0] == found[1]
    assert sorted(calls) == [12] * (4 + 2) + [64]  # two runs, each evaluated twice; their random encoders; raw pixels


@pytest.fixture(scope="module")
def tuner(given):  # noqa: F811
    return FineTuner(SHORT, given[1])


def test_fine_tuning_in_one_program_is_that_of_single_runs(given, tuner):  # noqa: F811
    """Up to the order of sums: all parameters as a whole to 1e-5. Each source has its own best learning rate."""
    encoder, part = given[0], np.arange(40)
    params = [encoder.params, jax.tree.map(lambda x: 0.5 * x, encoder.params)]
    sources = joined([Encoder(encoder.task, p) for p in params])
    rates = {id(source): lr for source, lr in zip(sources, (1e-3, 3e-3), strict=True)}
    for source, p in zip(sources, params, strict=True):
        found = tuner.fit(part, seed=3, steps=4, source=source, lr=lambda source: rates[id(source)])
        alone = tuner.fit(part, seed=3, steps=4, source=Encoder(encoder.task, p), lr=rates[id(source)])
        pairs = [(np.asarray(a), np.asarray(b)) for a, b in zip(jax.tree.leaves(found), jax.tree.leaves(alone), strict=True)]
        assert sum(np.sum((a - b) ** 2) for a, b in pairs) < 1e-10 * sum(np.sum(b**2) for _, b in pairs)
        assert not source._results  # its parameters are released
    assert list(tuner.trainer.stacks) == [2]


def test_a_source_that_diverges_leaves_its_neighbour_alone(given, tuner):  # noqa: F811
    encoder, part = given[0], np.arange(40)
    bad, good = joined([Encoder(encoder.task, encoder.params) for _ in range(2)])
    bad.params = jax.tree.map(lambda x: x * np.nan, bad.params)
    with pytest.raises(Diverged):
        tuner.fit(part, seed=3, steps=2, source=bad)
    found, alone = (tuner.fit(part, seed=3, steps=2, source=source) for source in (good, encoder))
    for a, b in zip(jax.tree.leaves(found), jax.tree.leaves(alone), strict=True):
        np.testing.assert_allclose(a, b, atol=1e-5)


LABELS = LabelEfficiency(fractions=(0.1,), seeds=1, finetune=SHORT, scratch=SCRATCH, linear_probe=None)


def test_what_needs_no_encoder_is_trained_once_for_all(given, monkeypatch):  # noqa: F811
    encoder, data = given
    data, sources = dataclasses.replace(data, shared={}), []
    runs = lambda self, tuner, source, **options: sources.append(source) or [Record("accuracy", 0.5)]
    monkeypatch.setattr(LabelEfficiency, "_runs", runs)
    encoders = [Encoder(encoder.task, encoder.params) for _ in range(2)]
    first, second = (flat(LABELS(source, data)) for source in encoders)
    assert sources == [encoders[0], None, encoders[1]] and first == second


@pytest.mark.slow
def test_label_efficiency_of_joined_encoders_is_that_of_single_ones(given):  # noqa: F811
    """Each chooses among two learning rates by itself."""
    encoder, data = given
    settings = dataclasses.replace(LABELS, finetune=dataclasses.replace(SHORT, learning_rates=(1e-3, 3e-3)))
    params = [encoder.params, jax.tree.map(lambda x: 0.5 * x, encoder.params)]
    pair = joined([Encoder(encoder.task, p) for p in params])
    found = [flat(settings(source, data)) for source in pair]
    assert found == [flat(settings(Encoder(encoder.task, p), data)) for p in params]  # accuracies of 60 examples


@pytest.mark.parametrize("task, evaluator", [("next_token", NextTokenLoss()), ("masked_token", MaskedTokenLoss())])
def test_losses_of_language_models_are_those_of_single_ones(task, evaluator, folder):  # noqa: F811
    encoder, data = setup(task, folder)
    params = [encoder.params, jax.tree.map(lambda x: 0.5 * x, encoder.params)]
    build = lambda: [Encoder(encoder.task, p, seed=seed) for seed, p in enumerate(params)]
    for alone, own in zip(build(), joined(build()), strict=True):
        wanted, found = flat(evaluator(alone, data)), flat(evaluator(own, data))
        assert list(found) == list(wanted)
        np.testing.assert_allclose(list(found.values()), list(wanted.values()), rtol=1e-6)
