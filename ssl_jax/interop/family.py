"""The interface of a convertible architecture."""

import dataclasses
import re
from collections.abc import Mapping, Sequence
from typing import Any, ClassVar

import jax
import jax.numpy as jnp
import numpy as np

from ssl_jax.errors import UserError
from ssl_jax.interop.mapping import Row, Tensors
from ssl_jax.task import DataInfo, Task


@dataclasses.dataclass(frozen=True)
class Sections:
    """A config.json translated: the sections `task` and `model` of a config, and the DataInfo that a data set would give."""

    task: Mapping[str, Any]
    model: Mapping[str, Any]
    info: DataInfo


@dataclasses.dataclass(frozen=True)
class Preprocessing:
    """The files beside the weights: a tokenizer and the normalisation of images."""

    source: str
    tokenizer: Any = None
    mean: tuple[float, ...] = ()
    std: tuple[float, ...] = ()
    eval_crop: float = 1.0  # share of an image that evaluation crops


class Family:
    """An architecture: the translation between `config.json` and a config's sections, and the table of its tensors."""

    architecture: ClassVar[str]
    model_type: ClassVar[str]
    base: ClassVar[str] = ""  # the optional prefix of the base model's names
    ignored: ClassVar[tuple[str, ...]] = ()  # buffers in older files: regular expressions over names
    marks: ClassVar[tuple[str, ...]] = ()  # tensors that only this family of its model type has

    def can_hold(self, task: Task) -> bool:
        """Return whether this family may hold the task (its settings may still not fit)."""
        raise NotImplementedError

    def read(self, theirs: Mapping[str, Any], tensors: Tensors, preprocessing: Preprocessing) -> Sections:
        raise NotImplementedError

    def write(self, task: Task) -> dict[str, Any]:
        """Return config.json without architecture and model type."""
        raise NotImplementedError

    def rows(self, task: Task) -> Sequence[Row]:
        raise NotImplementedError

    def carried(self, task: Task) -> Mapping[str, str]:
        """Return unused parameters, preserved for a lossless round trip: our path -> the parameter of the same shape that is
        exported in its place if there is none."""
        return {}

    def tied(self, task: Task) -> Mapping[str, str]:
        """Return second names of tied tensors, which a file may contain too: second name -> name."""
        return {}

    def names(self, task: Task, tensors: Tensors, source: str) -> dict[str, np.ndarray]:
        """Return the tensors under the table's names: prefixes added or removed, buffers and second names dropped."""
        known, tied, found = {name for r in self.rows(task) for name in r.theirs}, self.tied(task), {}
        for name, value in tensors.items():
            name = re.sub(r"LayerNorm\.gamma$", "LayerNorm.weight", re.sub(r"LayerNorm\.beta$", "LayerNorm.bias", name))
            place = next((n for n in spellings(name, self.base) if n in known or n in tied), name)
            if place in found:
                raise UserError(f"{source}: contains {place} twice, under two names; remove one")
            if place in known or not any(re.fullmatch(pattern, place) for pattern in self.ignored):
                found[place] = value
        for name, original in tied.items():
            value = found.pop(name, None)
            if value is None or name in known:
                continue
            if original not in found:  # some writers store only the second name
                found[original] = value
            elif not np.array_equal(value, found[original]):
                raise UserError(f"{source}: {name} differs from {original}, but config.json says that they are tied")
        return found


def spellings(name: str, base: str) -> tuple[str, ...]:
    return (name, f"{base}.{name}", name.removeprefix(f"{base}.")) if base else (name,)


def look_up(tensors: Tensors, name: str, base: str, source: str) -> np.ndarray:
    """Return a tensor that the settings depend on; raise UserError if it is missing."""
    for spelling in spellings(name, base):
        if spelling in tensors:
            return tensors[spelling]
    raise UserError(f"{source}: lacks {name}")


def number(settings: Mapping[str, Any], key: str, default: Any, source: str, *, least: float = 1, kind: type = int) -> Any:
    """Return a number of a config.json, by default `default`; kind=float also admits fractions."""
    value = settings.get(key)
    value = default if value is None else value
    numeric = isinstance(value, int | float if kind is float else int) and not isinstance(value, bool)
    if not numeric or not least <= value < (1e30 if kind is float else 2**31):
        what = "a number" if kind is float else "a whole number"
        raise UserError(f"{source}: {key}={value!r}: expected {what} of at least {least}")
    return value


def section(settings: Mapping[str, Any], key: str, source: str) -> Mapping[str, Any]:
    """Return a section of a config.json, empty if missing."""
    value = settings.get(key)
    if value is not None and not isinstance(value, Mapping):
        raise UserError(f"{source}: {key}={value!r}: expected a JSON object")
    return value or {}


def vocabulary(settings: Mapping[str, Any], default: int | None, preprocessing: Preprocessing) -> dict[str, int]:
    """Return our setting `vocabulary` if the model has more tokens than its tokenizer."""
    size, tokenizer = number(settings, "vocab_size", default, preprocessing.source), preprocessing.tokenizer
    if tokenizer is None:
        raise UserError(f"{preprocessing.source}: vocab_size={size}: must be at most {2**22:,}")
    if tokenizer.size > size:
        raise UserError(
            f"{preprocessing.source}: tokenizer.json has {tokenizer.size} tokens, but config.json vocab_size={size}"
        )
    return {"vocabulary": size} if tokenizer.size < size else {}


IDS = ("bos_token_id", "eos_token_id", "pad_token_id", "cls_token_id", "sep_token_id", "mask_token_id")


def read_ids(settings: Mapping[str, Any]) -> dict[str, Any]:
    """Return the special tokens' ids of a config.json, which are unused here and preserved for export."""
    return {"special_ids": {key: settings[key] for key in IDS if key in settings}}


def write_ids(task: Task, *more: str) -> dict[str, Any]:
    """Return the special tokens' ids for config.json: those that were read, or else the tokenizer's."""
    names = {key: f"{key[:3]}_id" for key in ("pad_token_id", "bos_token_id", "eos_token_id", *more)}
    ids = {key: getattr(task.info.tokenizer, name) for key, name in names.items()}
    return {key: None if value is None else int(value) for key, value in ids.items()} | task.info.extra.get("special_ids", {})


def pair(value: Any, key: str, source: str) -> tuple[int, int]:
    """Return (height, width) of a size given as one number or as [height, width]."""
    size = (value, value) if isinstance(value, int) else value
    fits = lambda n: isinstance(n, int) and not isinstance(n, bool) and 0 < n < 2**16
    if not isinstance(size, list | tuple) or len(size) != 2 or not all(map(fits, size)):
        raise UserError(f"{source}: {key}={value!r}: expected a number of pixels or [height, width]")
    return tuple(size)


def patches(settings: Mapping[str, Any], default: int, size: tuple[int, int], key: str, source: str) -> dict[str, Any]:
    """Return our `patch_size` for images of `size`, and `crop` if patches do not divide them."""
    value = settings.get("patch_size", default)
    p, q = pair(value, key, source)
    if p > size[0] or q > size[1]:
        raise UserError(f"{source}: {key}={value!r}: must not be larger than the image, {size[0]} x {size[1]}")
    return {"patch_size": p if p == q else (p, q)} | ({"crop": True} if size[0] % p or size[1] % q else {})


def one_or_two(size: tuple[int, int]) -> int | list[int]:
    return size[0] if size[0] == size[1] else list(size)


def image_info(size: tuple[int, int], channels: int, preprocessing: Preprocessing, **more: Any) -> DataInfo:
    shapes = {"image": jax.ShapeDtypeStruct((*size, channels), jnp.float32)}
    fits = lambda values: values if len(values) in (0, 1, channels) else ()
    if preprocessing.eval_crop != 1:
        more["extra"] = {**more.get("extra", {}), "eval_crop": preprocessing.eval_crop}
    return DataInfo(shapes, mean=fits(preprocessing.mean), std=fits(preprocessing.std), **more)
