"""Untrained encoders, with the interface of `Encoder`; and the majority class."""

from collections.abc import Iterable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh
from jaxtyping import Float, Int

from ssl_jax.downstream.evaluators.features import Encoder
from ssl_jax.randomness import stream
from ssl_jax.reports.records import Record, over_examples

BUCKETS = 4096  # of a bag of tokens: larger vocabularies are folded, token modulo BUCKETS


class RandomEncoder(Encoder):
    """The task with the parameters of its initialisation from `seed`."""

    def _parameters(self, batch):
        if self.params is None:
            zeros = {name: jnp.zeros((1, *s.shape[1:]), s.dtype) for name, s in batch.items()}
            self.params = jax.jit(self.task.init)(stream(self.seed, "init"), zeros)
        return self.params


class InputEncoder(Encoder):
    """A fixed function of the input as an encoder; it is returned for every representation name."""

    def __init__(self, function, mesh=None):
        super().__init__(function, {}, mesh)

    def extract(self, dataset, names=(), batch_size=1024):
        found = super().extract(dataset, ("input",), batch_size)
        return dict.fromkeys(names, found["input"]) | found

    @property
    def _features(self):
        function = self.task
        return lambda params, batch: {"input": function(batch)}


LARGE, SMALL = 64, 32  # pixels: images above LARGE are averaged to SMALL; ImageNet would otherwise take 770 GB


def raw_pixels(batch):
    """Return flattened normalised pixels, f32[batch, height * width * channels]; large images are averaged to SMALL x SMALL."""
    images = batch["image"]
    if max(images.shape[1:3]) > LARGE:
        images = jax.image.resize(images, (len(images), SMALL, SMALL, images.shape[3]), "linear")
    return images.reshape(len(images), -1)


def bag_of_tokens(batch):
    """Return the count of each token, f32[batch, BUCKETS], without padding (segment 0)."""
    tokens = batch["tokens"]
    weight = (batch["segments"] > 0) if "segments" in batch else jnp.ones_like(tokens)
    rows = jnp.arange(len(tokens))[:, None]
    return jnp.zeros((len(tokens), BUCKETS), jnp.float32).at[rows, tokens % BUCKETS].add(weight.astype(jnp.float32))


INPUTS = {
    "images": ("raw_pixels", raw_pixels),
    "pairs": ("raw_pixels", raw_pixels),
    "tokens": ("bag_of_tokens", bag_of_tokens),
    "sequences": ("bag_of_tokens", bag_of_tokens),
    "labelled_text": ("bag_of_tokens", bag_of_tokens),
}


def baselines(task: Any, mesh: Mesh | None = None, *, seed: int = 0, planned: Iterable[str] = ()) -> dict[str, Encoder]:
    """Return the baselines of an encoder of `task`, by name: an untrained one from another seed than `seed`, and its input."""
    found: dict[str, Encoder] = {"random_encoder": RandomEncoder(task, None, mesh, seed=seed + 1, planned=planned)}
    if task.data in INPUTS:
        name, function = INPUTS[task.data]
        found[name] = InputEncoder(function, mesh)
    return found


def with_baselines(
    task: Any, params: Any, mesh: Mesh | None = None, *, seed: int = 0, planned: Iterable[str] = (), **options: Any
) -> Encoder:
    """Return an `Encoder` that has its `baselines`."""
    encoders = baselines(task, mesh, seed=seed, planned=planned)
    return Encoder(task, params, mesh, seed=seed, baselines=encoders, planned=planned, **options)


def majority(train: Int[np.ndarray, "train"], test: Int[np.ndarray, "test"]) -> Record:
    """Return the accuracy of always predicting the training split's most frequent class."""
    return over_examples("accuracy", test == np.argmax(np.bincount(train)), baseline="majority")


def flat(features: Float[np.ndarray, "examples ..."]) -> Float[np.ndarray, "examples dim"]:
    return features.reshape(len(features), -1)
