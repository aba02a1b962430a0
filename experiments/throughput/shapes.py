"""The model shapes that are timed, and random data for them in memory.

A shape is an ordinary config, so that `ssl-jax bench` and these scripts time the same step.
"""

import dataclasses
import pathlib
from typing import Any

import jax
import jax.numpy as jnp
from ml_collections import ConfigDict

from ssl_jax import config as configs
from ssl_jax import runs, stand_in
from ssl_jax.cpu import configure
from ssl_jax.task import DataInfo

ROOT = pathlib.Path(__file__).parents[2]
BERT = dict(
    norm_position="post", norm_eps=1e-12, embedding_norm=True, final_norm=False, head_transform=True, output_bias=True,
    token_types=2, init="normal", activation="gelu",
)  # fmt: skip
CLIP_IMAGE = dict(
    positions="learned",
    class_token=True,
    pooling="cls",
    pre_norm=True,
    patch_bias=False,
    activation="quick_gelu",
    norm_eps=1e-5,
)
BASE, LARGE = dict(width=768, depth=12, heads=12), dict(width=1024, depth=24, heads=16)
TINY = dict(width=32, depth=2, heads=2)


@dataclasses.dataclass(frozen=True)
class Shape:
    """A config, and the shape of one example: image (height, width, channels), tokens and vocabulary."""

    config: ConfigDict
    image: tuple[int, int, int] | None = None
    tokens: int | None = None
    vocabulary: int = 0


def _config(task: dict, model: dict, batch: int, dtype: str, **optimizer: Any) -> ConfigDict:
    options = dict(name="adamw", lr=1e-4, weight_decay=0.05, schedule="constant") | optimizer
    return ConfigDict(dict(seed=0, task=task, model=model, data=dict(batch_size=batch), optimizer=options,
                           training=dict(duration="1 steps", dtype=dtype)))  # fmt: skip


def masked_image(model: dict, *, size: int, patch: int, batch: int, dtype: str, decoder: dict, channels: int = 3) -> Shape:
    task = dict(name="masked_image", mask=dict(kind="random", ratio=0.75), target="normalized_pixels", decoder=decoder)
    return Shape(_config(task, dict(name="vit", patch_size=patch, **model), batch, dtype), image=(size, size, channels))


def next_token(model: dict, *, time: int, vocabulary: int, batch: int, dtype: str) -> Shape:
    shape = dict(name="transformer", activation="gelu_tanh", **model)
    return Shape(_config(dict(name="next_token"), shape, batch, dtype, clip=1.0), tokens=time + 1, vocabulary=vocabulary)


def masked_token(model: dict, *, time: int, vocabulary: int, batch: int, dtype: str) -> Shape:
    task = dict(name="masked_token", mask=dict(ratio=0.15))
    return Shape(_config(task, dict(name="transformer", **BERT, **model), batch, dtype), tokens=time, vocabulary=vocabulary)


def image_text(image: dict, text: dict, *, size: int, patch: int, dim: int, time: int, vocabulary: int, batch: int,
               dtype: str) -> Shape:  # fmt: skip
    towers = dict(image=dict(patch_size=patch, **CLIP_IMAGE, **image), text=dict(activation="quick_gelu", **text), dim=dim)
    config = _config(dict(name="image_text"), dict(name="dual_encoder", **towers), batch, dtype)
    return Shape(config, image=(size, size, 3), tokens=time, vocabulary=vocabulary)


def gpu(tiny: bool = False) -> dict[str, Shape]:
    """Return the published shapes in bfloat16; `tiny`: the same forms at a size for a CPU test."""
    dtype = "float32" if tiny else "bfloat16"
    base, large = (TINY, TINY) if tiny else (BASE, LARGE)
    decoder = dict(width=16, depth=1, heads=2) if tiny else dict(width=512, depth=8, heads=16)
    text = TINY if tiny else dict(width=512, depth=12, heads=8)
    size, vocabulary, clip_vocabulary = (32, 96, 96) if tiny else (224, 50_304, 49_408)
    n = lambda batch: 4 if tiny else batch
    t = lambda time: 16 if tiny else time
    mae = dict(size=size, patch=16, dtype=dtype, decoder=decoder)
    bert = dict(vocabulary=96 if tiny else 30_522, dtype=dtype)
    clip = dict(size=size, dim=16 if tiny else 512, time=t(77), vocabulary=clip_vocabulary, dtype=dtype)
    return {
        "GPT-2 124M, T=1024": next_token(base, time=t(1024), vocabulary=vocabulary, batch=n(32), dtype=dtype),
        "MAE ViT-B/16, 224": masked_image(base, batch=n(256), **mae),
        "MAE ViT-L/16, 224": masked_image(large, batch=n(256), **mae),
        "BERT-base, T=128": masked_token(base, time=t(128), batch=n(256), **bert),
        "BERT-base, T=512": masked_token(base, time=t(512), batch=n(64), **bert),
        "CLIP ViT-B/32": image_text(base, text, patch=8 if tiny else 32, batch=n(512), **clip),
        "CLIP ViT-B/16": image_text(base, text, patch=16, batch=n(256), **clip),
    }


def cpu(dtype: str = "float32") -> dict[str, Shape | ConfigDict]:
    """Return shapes for two cores: configs with their bundled data, and shapes with random data."""
    mine = lambda name, **changes: configs.load(str(ROOT / "configs" / name), {"training.dtype": dtype, **changes})
    cifar = mine("mae/cifar10.py", **{"data.batch_size": "32"})
    small = dict(width=128, depth=4, heads=4)
    return {
        "next token: nanoGPT's CPU shape": mine("gpt/shakespeare_char_cpu.py"),
        "masked image: Fashion-MNIST": mine("mae/fashion_mnist.py", **{"model.class_token": "True"}),  # as the peer has
        "masked image: ViT-T/2, CIFAR-10, batch 32": Shape(cifar, image=(32, 32, 3)),
        "masked token: 4 x 128, T=128, batch 16": masked_token(small, time=128, vocabulary=8192, batch=16, dtype=dtype),
        "image-text: 4 x 128 towers, 32 x 32, T=32, batch 32": image_text(
            small, small, size=32, patch=4, dim=128, time=32, vocabulary=8192, batch=32, dtype=dtype
        ),
    }


def prepare(shape: Shape | ConfigDict) -> Any:
    """Return the argument of bench.measure: a config with its own data, or a Shape with random examples on the device."""
    configure()
    if isinstance(shape, ConfigDict):
        return runs.prepare(shape)
    shapes = {}
    if shape.image:
        shapes["image"] = jax.ShapeDtypeStruct(shape.image, jnp.float32)
    if shape.tokens:
        shapes["tokens"] = jax.ShapeDtypeStruct((shape.tokens,), jnp.int32)
    extra = (
        {"tokens_per_example": shape.tokens - 1} if shape.config.task.name == "next_token" else {}
    )  # the last is only a label
    channels = shape.image[-1] if shape.image else 0
    tokenizer = stand_in.Words(shape.vocabulary) if shape.tokens else None
    info = DataInfo(shapes, (), (0.5,) * channels, (0.29,) * channels, tokenizer, extra)
    dataset = stand_in.dataset(info, 2 * int(shape.config.data.batch_size))
    return runs.prepare(shape.config, build=lambda *arguments, **options: dataset)
