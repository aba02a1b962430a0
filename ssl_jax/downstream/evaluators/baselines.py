"""Encoders that learnt nothing, through the interface of the one that did; and the majority class."""

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Float, Int

from ssl_jax.downstream.evaluators.features import Encoder, RandomEncoder

BUCKETS = 4096  # of a bag of tokens: larger vocabularies are folded, token modulo BUCKETS


class InputEncoder(Encoder):
    """A fixed function of the input as an encoder: every name that an evaluator asks for is that function."""

    def __init__(self, function, mesh=None):
        super().__init__(function, {}, mesh)

    def extract(self, dataset, names=(), batch_size=1024):
        found = super().extract(dataset, ("input",), batch_size)
        label = {"label": found["label"]} if "label" in found else {}
        return dict.fromkeys(names, found["input"]) | {"input": found["input"]} | label

    @property
    def _features(self):
        function = self.task
        return lambda params, batch: {"input": function(batch)}


LARGE, SMALL = 64, 32  # pixels: an image longer than LARGE is averaged down, else ImageNet's would take 770 GB


def raw_pixels(batch):
    """Normalised pixels, flattened: f32[batch, height * width * channels]; of large images, those of SMALL x SMALL."""
    images = batch["image"]
    if max(images.shape[1:3]) > LARGE:
        images = jax.image.resize(images, (len(images), SMALL, SMALL, images.shape[3]), "linear")
    return images.reshape(len(images), -1)


def bag_of_tokens(batch):
    """How often each token occurs, f32[batch, BUCKETS]; padding (segment 0) does not count."""
    tokens = batch["tokens"]
    weight = (batch["segments"] > 0) if "segments" in batch else jnp.ones_like(tokens)
    rows = jnp.arange(len(tokens))[:, None]
    return jnp.zeros((len(tokens), BUCKETS), jnp.float32).at[rows, tokens % BUCKETS].add(weight.astype(jnp.float32))


def baselines(encoder: Encoder) -> dict[str, Encoder]:
    """The baselines of an encoder, by the name under which they are reported."""
    inputs = {
        "images": ("raw_pixels", raw_pixels),
        "pairs": ("raw_pixels", raw_pixels),
        "tokens": ("bag_of_tokens", bag_of_tokens),
        "sequences": ("bag_of_tokens", bag_of_tokens),
        "labelled_text": ("bag_of_tokens", bag_of_tokens),
    }
    found: dict[str, Encoder] = {"random_encoder": RandomEncoder(encoder)}
    if encoder.task.data in inputs:
        name, function = inputs[encoder.task.data]
        found[name] = InputEncoder(function, encoder.mesh)
    return found


def majority(train: Int[np.ndarray, "train"], test: Int[np.ndarray, "test"]) -> float:
    """Accuracy of always saying the training split's most frequent class."""
    return float(np.mean(test == np.argmax(np.bincount(train))))


def flat(features: Float[np.ndarray, "examples ..."]) -> Float[np.ndarray, "examples dim"]:
    return features.reshape(len(features), -1)
