"""Random data with the shapes of a config's data, to trace, compile and time its step without the data.

Only quantities that shapes and tables depend on are real: sizes of images and views, lengths of texts, the number of tokens.
"""

import functools
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from ml_collections import ConfigDict

from ssl_jax.config import read
from ssl_jax.data.images.augment import Augment
from ssl_jax.data.images.dataset import ImagesSettings
from ssl_jax.data.images.views import read_views
from ssl_jax.data.pairs import PairsSettings
from ssl_jax.data.pipeline import Dataset
from ssl_jax.data.sources import Source
from ssl_jax.data.text.corpus import TokensSettings
from ssl_jax.data.text.squad import Squad
from ssl_jax.data.text.supervised import LabelledText, ParallelText
from ssl_jax.data.text.tokenizers import TokenizerSettings
from ssl_jax.errors import UserError
from ssl_jax.task import DataInfo

PUBLISHED = {"gpt2": 50_257, "bert": 30_522, "clip": 49_408, "characters": 128}  # sizes of vocabularies by name
IMAGES = {
    "fashion_mnist": (28, 28, 1),
    "mnist": (28, 28, 1),
    "cifar10": (32, 32, 3),
    "cifar100": (32, 32, 3),
}  # shapes by data set
EXAMPLES, CLASSES = 2**20, 1000


class Words:
    """A stand-in for a tokenizer: its size and special token ids."""

    def __init__(self, size: int, pad_id: int = 0):
        self.size, self.pad_id = size, pad_id
        self.cls_id, self.sep_id, self.mask_id = (i for i in range(4) if i != pad_id)
        self.bos_id, self.eos_id, self.separator_id = self.cls_id, self.sep_id, self.sep_id
        self.special_ids, self.stop_ids = tuple(range(4)), (self.sep_id,)
        self.continues = np.zeros(size, bool)

    def require(self, *names: str) -> int:
        return getattr(self, f"{names[0]}_id")


def info_of(kind: str, config: Mapping[str, Any] | ConfigDict, vocabulary: int | None = None) -> DataInfo:
    """Return the DataInfo that data of `kind` (a key of ssl_jax.data.KINDS) under `config.data` would give a task.

    vocabulary: the number of tokens; by default that of a published tokenizer or of one that would be trained. Raise UserError
    if it, or an image's size, depends on the data.
    """
    section, shapes, extra, classes = dict(config["data"]), {}, {}, ()
    words = lambda length, *names: {name: jax.ShapeDtypeStruct((length,), jnp.int32) for name in names}
    number = lambda *names: {name: jax.ShapeDtypeStruct((), jnp.int32) for name in names}
    settings = read(SETTINGS[kind], {name: section[name] for name in section if name != "test"} | {"test": ""}, "data")
    if kind in ("images", "pairs"):
        size, channels = settings.image_size, getattr(settings, "channels", 3) or 3
        known = IMAGES.get(str(section.get("train")).partition(":")[2].partition("/")[0])
        if size is None and known:
            size, channels = known[:2], known[2]
        if size is None:
            raise UserError("data.image_size is missing: it is unknown without the data; set it, such as image_size=224")
        size = (size, size) if isinstance(size, int) else tuple(size) * (2 // len(size))
        shapes["image"] = jax.ShapeDtypeStruct((*size, channels), jnp.float32)
        for view in read_views(getattr(settings, "views", {}), size, Augment()):
            shapes[view.name] = jax.ShapeDtypeStruct((len(view.augment), *view.size, channels), jnp.float32)
    if kind == "images":
        classes = tuple(map(str, getattr(settings, "classes", ()) or range(CLASSES)))
        several = getattr(settings, "label_separator", None) is not None
        shapes["label"] = jax.ShapeDtypeStruct((len(classes),) if several else (), jnp.int32)
        extra = {"class_counts": [[1, 1] if several else 1 for _ in classes]}
    elif kind == "pairs":
        shapes |= words(settings.context_length, "tokens")
    elif kind == "tokens":
        names = ["tokens", *(["segments"] if settings.packing == "documents" else [])]
        names += ["positions"] if settings.packing == "documents" and settings.restart_positions else []
        shapes, extra = words(settings.block + 1, *names), {"tokens_per_example": settings.block}
    elif kind == "sequences":
        names = ["tokens", *(["segments"] if settings.packing != "windows" else [])]
        names += ["token_types"] if settings.packing == "pairs" else []
        shapes = words(settings.block, *names) | (number("is_random") if settings.packing == "pairs" else {})
        extra = {"tokens_per_example": settings.block}
    elif kind == "labelled_text":
        shapes, classes = words(settings.max_length, "tokens", "segments", "token_types"), ("0", "1")
        several = settings.label_separator is not None
        shapes["label"] = jax.ShapeDtypeStruct((len(classes),) if several else (), jnp.int32)
        extra = {"class_counts": [[1, 1] if several else 1 for _ in classes]}
    elif kind == "parallel_text":
        shapes = words(settings.max_source_length, "source", "source_segments")
        shapes |= words(settings.max_target_length + 1, "target", "target_segments")
    elif kind == "squad":
        shapes = words(settings.max_length, "tokens", "segments", "token_types", "answerable") | number("start", "end")
    tokenizer = None
    if kind != "images":
        offset = (config.get("model") or {}).get("position_offset", 0)
        tokenizer = Words(vocabulary or tokens_of(settings.tokenizer, config), max(offset - 1, 0))
    channels = shapes["image"].shape[-1] if "image" in shapes else 0
    return DataInfo(shapes, classes, (0.5,) * channels, (0.25,) * channels, tokenizer, extra)


SETTINGS: dict[str, type] = {
    "images": ImagesSettings, "pairs": PairsSettings, "tokens": TokensSettings, "sequences": TokensSettings,
    "labelled_text": LabelledText, "parallel_text": ParallelText, "squad": Squad,
}  # fmt: skip


def tokens_of(settings: TokenizerSettings, config: Mapping[str, Any] | ConfigDict) -> int:
    """Return the number of tokens of a tokenizer from its settings."""
    if settings.trained and settings.name not in PUBLISHED:
        return settings.size
    model = config.get("model") or {}
    known = PUBLISHED.get(settings.name) or model.get("vocabulary") or (model.get("text") or {}).get("vocabulary")
    if known is None:
        raise UserError(
            f"data.tokenizer: {settings.path} is missing, so that the number of tokens is unknown; set model.vocabulary"
        )
    return known


def dataset(info: DataInfo, examples: int | None = None) -> Dataset:
    """Return a dataset of random examples: `examples` of them in memory, on the device; by default one, repeated 2^20 times
    on the host."""
    count, generator, tokenizer = examples or 1, np.random.default_rng(0), info.tokenizer
    arrays = {}
    for name, shape in info.shapes.items():
        if shape.dtype == jnp.float32:
            arrays[name] = generator.integers(0, 256, (count, *shape.shape), np.uint8)
        else:
            tokens = name in ("tokens", "source", "target")
            high = tokenizer.size if tokens else len(info.classes) if name == "label" and not shape.shape else 2
            arrays[name] = generator.integers(4 if tokens else 0, high, (count, *shape.shape), np.int32)
    for name in ("segments", "source_segments", "target_segments", "answerable"):
        if name in arrays:
            arrays[name][:] = 1
    if "positions" in arrays:
        arrays["positions"][:] = np.arange(arrays["positions"].shape[1])
    if "tokens" in arrays:
        arrays["tokens"][:, -1] = tokenizer.separator_id
    source = Random(arrays)
    on_device = functools.partial(_normalised, mean=info.mean, std=info.std)
    if examples is None:
        example = lambda index, generator: source[0]
        return Dataset(info, EXAMPLES, example, source, on_device=on_device, placement="host")
    example = lambda index, generator: source[index]
    return Dataset(info, count, example, source, arrays, on_device=on_device, arrays=arrays, placement="device")


def build(
    kind: str, section: Any, *, config: ConfigDict, vocabulary: int | None = None, **options: Any
) -> Dataset:  # the other options of ssl_jax.data.build change no shape
    """Replace ssl_jax.data.build."""
    return dataset(info_of(kind, config, vocabulary))


class Random(Source):
    """A source of examples in memory."""

    name, classes = "random", ()

    def __init__(self, arrays: dict[str, np.ndarray]):
        self.arrays = arrays

    def __len__(self) -> int:
        return len(next(iter(self.arrays.values())))

    def __getitem__(self, index: int) -> dict[str, Any]:
        return {name: array[index] for name, array in self.arrays.items()}

    def labels(self) -> np.ndarray | None:
        return self.arrays.get("label")

    def describe(self, index: int) -> str:
        return f"random:{index}"


def _normalised(batch: Mapping[str, Any], keys: Any, *, mean: tuple, std: tuple) -> dict[str, Any]:
    """Return the batch with u8 pixels as normalised f32."""
    scale = lambda x: (x.astype(jnp.float32) / 255 - jnp.float32(mean)) / jnp.float32(std)
    return {name: scale(jnp.asarray(x)) if x.dtype == jnp.uint8 else x for name, x in batch.items()}
