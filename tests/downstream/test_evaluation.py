"""Which weights and which data an evaluator reads."""

import dataclasses
import types

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from ml_collections import ConfigDict

from ssl_jax import runs
from ssl_jax.data.text.tokenizers import CharacterTokenizer
from ssl_jax.downstream.evaluation import Evaluation
from ssl_jax.downstream.evaluator import EvaluationData
from ssl_jax.downstream.evaluators.features import Encoder
from ssl_jax.downstream.evaluators.few_shot import FewShot
from ssl_jax.downstream.evaluators.knn import KNN
from ssl_jax.errors import UserError
from ssl_jax.reports.records import flat
from ssl_jax.task import DataInfo, Task
from tests.data.test_defects import good, write
from tests.downstream.downstream_toys import ToyTask, blobs, toy_params


def test_the_weights_an_evaluator_names_are_those_it_reads():
    data = blobs(noise=160.0)
    evaluators = {name: KNN(k=3, baselines=False, weights=name) for name in ("ema", "student")}
    evaluation = Evaluation(evaluators, ToyTask(), data, build=None)
    encoders = {name: Encoder(ToyTask(), toy_params(data, seed)) for seed, name in enumerate(evaluators)}
    found = {name: flat(evaluation.measure(name, encoders))[f"{name}/accuracy"] for name in evaluators}
    alone = {name: flat(KNN(k=3, baselines=False)(encoders[name], data))["accuracy"] for name in evaluators}
    assert found == alone and found["ema"] != found["student"]
    with pytest.raises(UserError, match='weights=\'teacher\': must be "ema" or "student"'):
        KNN(weights="teacher")


def test_a_test_split_that_is_the_training_split_is_named():
    """kNN, which leaves out the example itself, measures no training example."""
    data, evaluators = blobs(), {"knn": KNN(k=3), "few_shot": FewShot(shots=(1,))}
    cautions = lambda data: Evaluation(evaluators, ToyTask(), data, build=None).cautions()
    assert cautions(data) == []
    (line,) = cautions(dataclasses.replace(data, test=data.train))
    assert line.startswith(f"{data.train.source.name} is both data.train and data.test: few_shot will be measured on")
    one_class = dataclasses.replace(data.train, info=dataclasses.replace(data.train.info, classes=("one",)))
    assert cautions(dataclasses.replace(data, train=one_class, test=one_class)) == []  # few_shot is skipped


class MeanColour(Task):
    name, data = "mean_colour", "pairs"

    def features(self, params, batch):
        grey = batch["image"].mean((1, 2, 3))
        return {"mean": jnp.stack([grey, jnp.ones_like(grey)], axis=1)}  # greys differ in their direction


def test_an_evaluator_may_read_data_of_another_kind(tmp_path):
    """A model of images and captions, probed on a folder of labelled images, in its own size and normalisation."""
    shapes = {"image": jax.ShapeDtypeStruct((4, 4, 3), jnp.float32), "tokens": jax.ShapeDtypeStruct((6,), jnp.int32)}
    info = DataInfo(shapes, mean=(0.5,) * 3, std=(0.25,) * 3, tokenizer=CharacterTokenizer("ab", ("[PAD]", "[EOS]")))
    config = ConfigDict(dict(data=dict(train="jsonl:pairs", batch_size=4, context_length=6), task=dict(name="image_text")))
    parts = types.SimpleNamespace(task=MeanColour(), info=info, config=config)
    own, encoder = EvaluationData(None, None), Encoder(MeanColour(), {})
    train = write("folder", tmp_path / "train", good("ant", "cat", "dog", each=3))
    test = write("folder", tmp_path / "test", good("cat", "dog"))
    knn = KNN(k=1, baselines=False, data=dict(kind="images", train=train, test=test))
    evaluation = Evaluation({"knn": knn}, MeanColour(), own, lambda sources: runs.other_data(parts, own, sources))
    assert flat(evaluation.measure("knn", {"ema": encoder}))["knn/accuracy"] == 1.0
    data = evaluation.data_of("knn")
    assert data.classes == ("ant", "cat", "dog") and data.test.info.mean == info.mean and data.test.info.std == info.std
    assert np.asarray(encoder.extract(data.test, ("mean",))["mean"]).min() > -2.0  # (0 - 0.5) / 0.25
    parts.info = DataInfo({"image": shapes["image"]})
    with pytest.raises(UserError, match="data.kind='labelled_text': a mean_colour model does not read text"):
        runs.other_data(parts, own, dict(kind="labelled_text", train=train))
    with pytest.raises(UserError, match="data.kind='image': unknown; did you mean images"):
        runs.other_data(parts, own, dict(kind="image", train=train))
