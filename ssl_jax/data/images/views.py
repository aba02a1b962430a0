"""Several augmented copies of each training image: `data.views` gives batch[name] f32[batch, count, height, width, channels].

Each copy draws from its own random stream, named by its view and number, so that a new view does not change the others. Images
that are decoded individually are cropped on the host, arrays on the device.
"""

import dataclasses
import zlib
from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Key, Num, UInt8

from ssl_jax import randomness
from ssl_jax.config import read
from ssl_jax.data.images import decode
from ssl_jax.data.images.augment import Augment
from ssl_jax.errors import UserError

RESERVED = ("image", "label", "position", "index", "bad")  # names of a batch's other arrays


@dataclasses.dataclass(frozen=True)
class View:
    """`count` augmented copies of an image, resized to `image_size` (default: the data's).

    `augment` is one section for all copies or a tuple of one section for each (BYOL and DINO blur and solarize their two global
    crops differently); default: the data's.
    """

    count: int = 2
    image_size: int | tuple | None = None
    augment: Mapping | tuple | None = None

    def __post_init__(self):
        if not 1 <= self.count <= 64:
            raise UserError(f"count={self.count}: must lie in [1, 64]")
        size = 1 if self.image_size is None else self.image_size
        size = size if isinstance(size, tuple) else (size, size)
        if len(size) != 2 or any(not isinstance(n, int) or not 1 <= n <= 16384 for n in size):
            raise UserError(f"image_size={self.image_size}: must be a number of pixels or (height, width)")
        if isinstance(self.augment, tuple) and len(self.augment) != self.count:
            raise UserError(f"augment: has {len(self.augment)} sections for count={self.count}; give one, or one for each copy")


@dataclasses.dataclass(frozen=True)
class Copies:
    """A resolved view: the size of the copies and the augmentation of each."""

    name: str
    size: tuple[int, int]
    augment: tuple[Augment, ...]

    def on_host(self, image: Any, generator: np.random.Generator, share: float) -> UInt8[np.ndarray, "count h w c"]:
        """Crop, flip and RandAugment a PIL image; `share` as in decode.centre_crop."""
        copies = []
        for i, settings in enumerate(self.augment):
            own = np.random.Generator(np.random.Philox(named_seed(generator, f"{self.name}/{i}")))
            copy = np.asarray(decode.augment(image, own, settings, self.size, share), np.uint8)
            copies.append(copy[..., None] if copy.ndim == 2 else copy)
        return np.stack(copies)

    def on_device(
        self,
        images: Num[Array, "b *whole"],
        keys: Key[Array, "b"],
        make: Callable[[Any, Any, Augment, tuple[int, int]], Array],
    ) -> Float[Array, "b count h w c"]:
        """Stack `make(images, keys, augment, size)` of every copy; copy i of images [b, count, h, w, c] uses images[:, i]."""
        each = [randomness.substream(keys, f"{self.name}/{i}") for i in range(len(self.augment))]
        own, first = images.ndim == 5, self.augment[0]
        if all(settings == first for settings in self.augment):  # one program for all copies
            copy = lambda image, key: make(image, key, first, self.size)
            return jax.vmap(copy, in_axes=(1 if own else None, 0), out_axes=1)(images, jnp.stack(each))
        copies = [
            make(images[:, i] if own else images, key, settings, self.size)
            for i, (key, settings) in enumerate(zip(each, self.augment, strict=True))
        ]
        return jnp.stack(copies, axis=1)


def named_seed(generator: np.random.Generator, name: str) -> np.random.SeedSequence:
    """Return the seed of a named stream below that of `generator`, independent of the numbers drawn from it."""
    parent = generator.bit_generator.seed_seq
    return np.random.SeedSequence(parent.entropy, spawn_key=(*parent.spawn_key, zlib.crc32(name.encode())))


def read_views(section: Mapping, size: tuple[int, int], augment: Augment) -> tuple[Copies, ...]:
    """Return the views of the config's section `data.views`, by default with the data's size and augmentation.

    Raise UserError for a reserved name and for invalid keys and values, under their full name.
    """
    views = []
    for name, keys in section.items():
        path = f"data.views.{name}"
        if name in RESERVED:
            raise UserError(f"{path}: a batch already has an array of this name; use another name than {', '.join(RESERVED)}")
        view = read(View, keys, path)
        own = augment if view.augment is None else view.augment
        if isinstance(own, tuple):
            each = tuple(read(Augment, settings, f"{path}.augment[{i}]") for i, settings in enumerate(own))
        else:
            each = (own if isinstance(own, Augment) else read(Augment, own, f"{path}.augment"),) * view.count
        wanted = size if view.image_size is None else view.image_size
        views.append(Copies(name, (wanted, wanted) if isinstance(wanted, int) else tuple(wanted), each))
    return tuple(views)
