"""A task and a data set that compile in a second, with all that a step can hold: dropout, augmentation, weights."""

import jax
import jax.numpy as jnp
import numpy as np

from ssl_jax.data.pipeline import Dataset, Stream
from ssl_jax.data.sources import Source
from ssl_jax.randomness import example_keys, substream
from ssl_jax.task import DataInfo, Task


class ToyTask(Task):
    """A two-layer perceptron that regresses, with dropout; the loss is a mean over the examples' weights."""

    name = "toy"
    data = "toy"

    def __init__(self, width: int = 16, dropout: float = 0.1, features: int = 6, poison: int | None = None, unroll: int = 0):
        self.width, self.dropout, self.features_in, self.poison = width, dropout, features, poison
        self.unroll = unroll  # so many matrix products, each of another shape: a long compilation

    def init(self, key, batch):
        a, b = jax.random.split(key)
        return {
            "encoder": {
                "patch_embedding": {"kernel": jax.random.normal(a, (self.features_in, self.width)) * 0.3},
                "block00": {
                    "mlp": {
                        "up": {"kernel": jax.random.normal(b, (self.width, 2 * self.width)) * 0.2,
                               "bias": jnp.zeros(2 * self.width)},
                        "down": {"kernel": jax.random.normal(a, (2 * self.width, self.width)) * 0.2,
                                 "bias": jnp.zeros(self.width)},
                    }
                },
            },
            "head": {"kernel": jnp.zeros((self.width, 1)), "bias": jnp.zeros(1)},
        }  # fmt: skip

    def loss(self, params, batch, key, *, train, context=None):
        x = batch["x"] @ params["encoder"]["patch_embedding"]["kernel"]
        mlp = params["encoder"]["block00"]["mlp"]
        h = jax.nn.gelu(x @ mlp["up"]["kernel"] + mlp["up"]["bias"])
        if train and self.dropout:
            keys = substream(example_keys(key, batch["position"]), "dropout")
            keep = jax.vmap(lambda k: jax.random.bernoulli(k, 1 - self.dropout, h.shape[1:]))(keys)
            h = jnp.where(keep, h / (1 - self.dropout), 0)
        x = x + h @ mlp["down"]["kernel"] + mlp["down"]["bias"]
        y = (x @ params["head"]["kernel"] + params["head"]["bias"])[:, 0]
        if self.poison is not None:
            y = y * jnp.where(batch["index"] == self.poison, jnp.nan, 1)
        for i in range(self.unroll):
            table = jnp.sin(jnp.arange((self.width + i) * self.width, dtype=jnp.float32)).reshape(self.width, -1)
            y = y + 1e-6 * jnp.sum(jnp.tanh(jnp.tanh(x @ table) @ table.T), axis=1)
        weight = jnp.sum(batch["weight"])
        error = jnp.sum(batch["weight"] * (y - batch["y"]) ** 2) / weight
        return error, {"weight": weight, "error": jnp.sum(batch["weight"] * jnp.abs(y - batch["y"])) / weight}

    def forward(self, params, batch):
        return {"embedding": batch["x"] @ params["encoder"]["patch_embedding"]["kernel"]}

    def features(self, params, batch):
        return {"mean": self.forward(params, batch)["embedding"]}

    def flops(self):
        return 6.0 * (self.features_in * self.width + 4 * self.width**2)


class ToySource(Source):
    name = "toy:"

    def __init__(self, size):
        self.size = size

    def __len__(self):
        return self.size

    def __getitem__(self, index):
        return {}

    def describe(self, index):
        return f"toy:{index}"


def toy_dataset(size: int = 96, features: int = 6, seed: int = 0) -> Dataset:
    rng = np.random.default_rng(seed)
    x = rng.normal(size=(size, features)).astype(np.float32)
    y = np.sin(x.sum(1)).astype(np.float32)
    arrays = {"x": x, "y": y, "weight": rng.integers(1, 4, size).astype(np.float32)}

    def on_device(batch, keys):
        if keys is None:
            return dict(batch)
        noise = jax.vmap(lambda k: jax.random.normal(k, (features,)))(substream(keys, "noise"))
        return {**batch, "x": batch["x"] + 0.01 * noise}

    info = DataInfo({"x": jax.ShapeDtypeStruct((features,), jnp.float32)})
    example = lambda i, generator: {k: v[i] for k, v in arrays.items()}
    return Dataset(info, size, example, ToySource(size), resident=arrays, on_device=on_device, arrays=arrays)


def toy_stream(batch_size: int = 12, placement: str = "host", **options) -> Stream:
    return Stream(toy_dataset(**options), batch_size=batch_size, seed=3, placement=placement, workers=0)
