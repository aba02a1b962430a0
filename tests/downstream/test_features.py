"""Features: each example once, the same in every way of asking."""

import dataclasses
import functools
import json

import jax.numpy as jnp
import numpy as np
import pytest

from ssl_jax.data.pipeline import subset
from ssl_jax.downstream.evaluation import Evaluation
from ssl_jax.downstream.evaluators.baselines import raw_pixels, with_baselines
from ssl_jax.downstream.evaluators.features import Encoder
from ssl_jax.downstream.evaluators.few_shot import FewShot
from ssl_jax.downstream.evaluators.knn import KNN
from ssl_jax.downstream.evaluators.linear_probe import LinearProbe
from ssl_jax.errors import UserError
from ssl_jax.reports.records import flat
from tests.downstream.downstream_toys import ToyTask, blobs, dataset, toy_params


@pytest.fixture(scope="module")
def data():
    return blobs()


def encoder(data, **options):
    return with_baselines(ToyTask(), toy_params(data), **options)


def expected(split, params):
    x = (split.arrays["image"].reshape(split.size, -1).astype(np.float32) / 255 - 0.5) / 0.25
    return np.tanh(x @ np.asarray(params["kernel"]))


@pytest.mark.parametrize("batch_size", [1, 7, 64, 101, 1000])
def test_every_example_counts_once_and_in_order(data, batch_size):
    found = encoder(data).extract(data.test, ["mean"], batch_size)
    assert found["mean"].shape == (101, 12)
    np.testing.assert_allclose(found["mean"], expected(data.test, toy_params(data)), atol=2e-6)
    np.testing.assert_array_equal(found["label"], data.test.labels())


def counted(compute, passes, dataset, names, batch_size):
    passes.append(names)
    return compute(dataset, names, batch_size)


def test_one_pass_serves_all_evaluators(data):
    """A name that was extracted once is not computed again, even when it is asked for beside another."""
    e, passes = encoder(data), []
    e._compute = functools.partial(counted, e._compute, passes)
    first = e.extract(data.train, ["mean", "cls"])
    again = e.extract(data.train, ["cls", "tokens"])
    assert passes == [("mean", "cls"), ("tokens",)]
    assert again["cls"] is first["cls"]


def test_what_all_evaluators_will_ask_for_takes_one_pass_and_always_the_same(data):
    """Whoever asks first, all names are computed together, of the baselines too; so equal to the last digit."""
    evaluators = dict(a=KNN(), b=LinearProbe(representation=("cls", "mean")), c=FewShot(representation="cls+mean"))
    wanted = Evaluation(evaluators, ToyTask(), data, lambda sources: data).planned
    assert wanted == ("mean", "cls", "cls+mean")
    found = []
    for first in ("mean", "cls+mean"):
        e, passes = encoder(data, planned=wanted), []
        for one in (e, e.baselines["random_encoder"]):
            one._compute = functools.partial(counted, one._compute, passes)
            for name in (first, "mean", "cls", "cls+mean"):
                one.extract(data.train, [name])
        assert passes == [("mean", "cls", "cls+mean")] * 2
        found.append(e.extract(data.train, wanted))
    for name in wanted:
        np.testing.assert_array_equal(found[0][name], found[1][name])


def test_the_same_parameters_give_the_same_features_to_the_last_digit(data):
    a, b = (encoder(data).extract(data.train, ["mean"])["mean"] for _ in range(2))
    np.testing.assert_array_equal(a, b)
    alone = encoder(data).extract(data.train, ["tokens", "mean"])["mean"]
    np.testing.assert_allclose(a, alone, atol=1e-6)


def test_names_joined_by_plus_are_concatenated(data):
    found = encoder(data).extract(data.test, ["cls+tokens", "cls", "tokens"])
    np.testing.assert_array_equal(found["cls+tokens"][:, :12], found["cls"])
    np.testing.assert_array_equal(found["cls+tokens"][:, 12:], found["tokens"].reshape(101, -1))


def test_the_disk_cache_gives_back_what_was_stored_and_knows_the_checkpoint(data, tmp_path):
    first = encoder(data, cache=tmp_path, checkpoint="step 1").extract(data.test, ["mean"])
    other = Encoder(ToyTask(), toy_params(data, seed=9), cache=tmp_path, checkpoint="step 1")
    again = other.extract(data.test, ["mean"])  # read, not computed: the parameters differ
    np.testing.assert_array_equal(first["mean"], again["mean"])
    np.testing.assert_array_equal(first["label"], again["label"])
    fresh = Encoder(ToyTask(), toy_params(data, seed=9), cache=tmp_path, checkpoint="step 2").extract(data.test, ["mean"])
    assert np.abs(fresh["mean"] - first["mean"]).max() > 0.1


def test_the_disk_cache_tells_parts_of_one_source_apart_and_transforms(data, tmp_path):
    """Two halves of one file have its name, and one size; the same images may be cropped otherwise."""
    e = encoder(data, cache=tmp_path, checkpoint="step 1")
    halves = [subset(data.train, np.arange(start, start + 150)) for start in (0, 150)]
    same = subset(data.train, np.arange(150))
    scaled = dataclasses.replace(data.train, on_device=functools.partial(data.train.on_device, keys=None))
    paths = [e._path(part) for part in (*halves, data.train, scaled)]
    assert len(set(paths)) == 3 + 1 and e._path(same) == paths[0]
    changed = dataset(255 - data.train.arrays["image"], data.train.label_array, data.train.info.classes, "memory:train")
    assert e._path(changed) not in paths  # another file under the same name


def test_baselines_have_the_encoders_interface(data):
    e = encoder(data)
    assert list(e.baselines) == ["random_encoder", "raw_pixels"]
    random = e.baselines["random_encoder"].extract(data.test, ["mean"])["mean"]
    assert random.shape == (101, 12) and np.abs(random - e.extract(data.test, ["mean"])["mean"]).max() > 0.1
    pixels = e.baselines["raw_pixels"].extract(data.test, ["mean"])
    wanted = (data.test.arrays["image"].reshape(101, -1) / 255 - 0.5) / 0.25
    np.testing.assert_allclose(pixels["mean"], wanted, atol=1e-6)
    np.testing.assert_array_equal(pixels["label"], data.test.labels())


def test_raw_pixels_of_large_images_are_averaged_down():
    small, large = (np.arange(2 * n * n * 3, dtype=np.float32).reshape(2, n, n, 3) for n in (64, 96))
    np.testing.assert_array_equal(raw_pixels({"image": small}), small.reshape(2, -1))
    found = np.asarray(raw_pixels({"image": large})).reshape(2, 32, 32, 3)
    inner = large.reshape(2, 32, 3, 32, 3, 3).mean((2, 4))[:, 1:-1, 1:-1]  # a triangle and a box agree on a plane
    np.testing.assert_allclose(found[:, 1:-1, 1:-1], inner, rtol=1e-4)


def test_an_unknown_representation_names_the_nearest(data):
    with pytest.raises(UserError, match="did you mean mean"):
        encoder(data).extract(data.test, ["meen"])


def test_features_that_are_not_finite_are_refused(data):
    params = {"kernel": toy_params(data)["kernel"].at[0, 0].set(jnp.nan)}
    with pytest.raises(UserError, match=r"'mean' of memory:test: 101 of 101 examples hold NaN.*training diverged"):
        Encoder(ToyTask(), params).extract(data.test, ["mean"])
    images = data.test.arrays["image"].astype(np.float32)
    images[[17, 40]] = np.nan
    broken = dataset(images, data.test.label_array, data.test.info.classes, "memory:broken")
    with pytest.raises(UserError, match=r"2 of 101 examples hold NaN or infinity; the first is memory:broken\[17\]"):
        encoder(data).extract(broken, ["mean"])


def test_a_split_without_labels_has_none(data):
    plain = dataset(data.test.arrays["image"], None, ())
    assert "label" not in encoder(data).extract(plain, ["mean"])


EVALUATORS = {
    "knn": KNN(k=(5, 20), baselines=False),
    "few_shot": FewShot(shots=(1, 5), baselines=False),
    "lbfgs": LinearProbe(),
    "grid": LinearProbe(protocol="grid", learning_rates=(0.01, 0.1), epochs=3, batch_size=16, baselines=False),
}


def evaluate(mesh=None):
    data = blobs(train=90, test=101, noise=120.0)
    e = with_baselines(ToyTask(), toy_params(data), mesh)
    return {f"{name}/{key}": value for name, evaluator in EVALUATORS.items() for key, value in flat(evaluator(e, data)).items()}


CHILD = """
import json, sys
import jax, numpy as np
from tests.downstream.test_features import evaluate
mesh = jax.sharding.Mesh(np.array(jax.devices()).reshape(-1, 1, 1), ("data", "fsdp", "tensor"))
print(json.dumps([jax.device_count(), evaluate(mesh)]))
"""


@pytest.mark.slow
@pytest.mark.parametrize("devices", [8, 4])
def test_evaluators_say_the_same_on_one_device_and_on_several(child, devices):
    """101 test examples divide by none of them: a padded example that counted would show."""
    count, several = json.loads(child(CHILD, devices=devices).splitlines()[-1])
    one = evaluate()
    assert count == devices and several.keys() == one.keys()
    for name, value in one.items():
        assert several[name] == pytest.approx(value, abs=1e-6), name


def test_an_evaluator_says_the_same_again_to_the_last_digit():
    assert evaluate() == evaluate()
