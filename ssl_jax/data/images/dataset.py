"""The kind "images": the settings of the config's section `data`, and the Dataset that they describe."""

import dataclasses
import math
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from ssl_jax.config import read
from ssl_jax.data.existing import existing, with_class_counts
from ssl_jax.data.images import augment, colour, decode
from ssl_jax.data.images.augment import Augment
from ssl_jax.data.images.normalization import moments, source_moments
from ssl_jax.data.images.settings import ImageDataSettings, label_shape, labelled
from ssl_jax.data.images.views import Copies, read_views
from ssl_jax.data.pipeline import BadExample, Dataset
from ssl_jax.data.sources import HINT, Source
from ssl_jax.errors import UserError
from ssl_jax.task import DataInfo

DEVICE_BYTES = 2**30  # placement "auto" puts arrays up to this size on the device


@dataclasses.dataclass(frozen=True)
class ImagesSettings(ImageDataSettings):
    """The config's section `data` for images."""

    channels: int | None = None  # 1 or 3; default: the source's if it is an array, else 3
    augment: Augment = Augment()
    views: Mapping = dataclasses.field(default_factory=dict)  # name -> View: several augmented copies of a training image
    placement: str = "auto"  # "device": the whole set is placed there; "host"; "auto": device for arrays of up to 1 GiB
    fast_decode: bool = False  # decode JPEG at a reduced scale if the crop allows it: faster, but with different pixel values

    def __post_init__(self):
        super().__post_init__()
        if self.channels not in (None, 1, 3):
            raise UserError(f"channels={self.channels}: must be 1 or 3")
        if self.placement not in ("auto", "host", "device"):
            raise UserError(f'placement={self.placement!r}: must be "auto", "host" or "device"')


def build(
    section: Any,
    *,
    split: str = "train",
    train: bool = True,
    task_section: Any = None,
    workdir: str | None = None,
    unlabelled: bool = False,
) -> Dataset:
    """Build the image data set of the config's section `data`; train=False: without augmentation; unlabelled=True: include
    examples without a label, with the label MISSING.

    Task batches: {"image": f32[B, H, W, C] normalised, "label": i32[B] if the source has labels, i32[B, classes] of 0 and 1
    if examples have several}; training batches also hold name: f32[B, count, h, w, C] for every view.
    """
    settings = read(ImagesSettings, section, "data")
    source = settings.source(split)
    size, channels = _shape(settings, source)
    of_training = lambda: source_moments(settings.open(settings.train), tuple(size), channels, settings.eval_crop)
    mean, std = moments(settings.normalize, channels, of_training)
    augmentation = settings.augment if train else Augment()
    views = read_views(settings.views, size, settings.augment) if train else ()
    host_side = any(a.needs_host for a in (augmentation, *(a for view in views for a in view.augment)))
    arrays = _arrays(source, channels) if not host_side else None
    if arrays is None and settings.placement == "device":
        why = "randaugment works on the host" if host_side else f"{source.name} has no arrays of one size"
        raise UserError(f'data.placement="device": {why}; use "host"')
    size_on_device = sum(array.nbytes for array in arrays.values()) if arrays is not None else math.inf
    device = settings.placement == "device" or settings.placement == "auto" and size_on_device <= DEVICE_BYTES
    raw = arrays is not None
    examples = Examples(source, size, channels, augmentation, settings.eval_crop, settings.fast_decode, raw, views)
    shapes = {"image": jax.ShapeDtypeStruct((*size, channels), jnp.float32)}
    shapes |= label_shape(source)
    for view in views:
        shapes[view.name] = jax.ShapeDtypeStruct((len(view.augment), *view.size, channels), jnp.float32)
    high = 1.0 if raw and arrays["image"].dtype != np.uint8 else 255.0  # a source's pixels are u8, or floats in [0, 1]
    on_device = OnDevice(augmentation, views, raw, size, settings.eval_crop, high, mean, std)
    dataset = Dataset(
        info=DataInfo(shapes=shapes, classes=tuple(source.classes), mean=mean, std=std),
        size=len(source),
        example=examples,
        source=source,
        resident=arrays if device else {},
        on_device=on_device,
        arrays=arrays,
        placement="device" if device else "host",
        workers=settings.workers,
        skip_bad=settings.on_bad_example == "skip",
        class_balanced=train and settings.sampling == "class_balanced",
    )
    scan = labelled(source) or split == "test"
    dataset = existing(settings.part(dataset, split), scan=scan, augmented=train, unlabelled=unlabelled)
    return with_class_counts(dataset, task_section) if train else dataset


def _shape(settings: ImagesSettings, source: Source) -> tuple[tuple[int, int], int]:
    """Return ((height, width), channels) of the task's images; raise UserError if images may differ in size."""
    arrays, uri = source.arrays, source.name
    if arrays is not None and "image" not in arrays:
        raise UserError(f"{uri}: contains no images, only {', '.join(arrays)}; name a source of images")
    own = arrays["image"].shape[1:] if arrays is not None else None
    if settings.size is None and own is None:
        raise UserError(f"data.image_size is missing: the images of {uri} may differ in size; set it, such as image_size=224")
    channels = settings.channels or (min(own[2], 3) if own is not None else 3)
    return settings.size or own[:2], channels


def _arrays(source: Source, channels: int) -> dict[str, np.ndarray] | None:
    """Return {"image", "label"?} of a source of arrays with this number of channels, else None."""
    if source.arrays is None or source.arrays["image"].shape[-1] != channels:
        return None
    return {name: source.arrays[name] for name in ("image", "label") if name in source.arrays}


@dataclasses.dataclass
class Examples:
    """index -> {"image": u8[height, width, channels], "label"?}: decode an example, crop and augment it on the host.

    `raw`: the source is arrays, and cropping and flipping happen on the device.
    """

    source: Source
    size: tuple[int, int]
    channels: int
    augment: Augment
    eval_crop: float
    fast_decode: bool
    raw: bool
    views: tuple[Copies, ...] = ()

    def __call__(self, index: int, generator: np.random.Generator | None) -> dict[str, np.ndarray]:
        example = self.source[index]
        if self.raw:
            return {name: np.asarray(example[name]) for name in ("image", "label") if name in example}
        if "image" not in example:
            raise UserError(f"{self.source.name}: contains no images, only {', '.join(example)}; name a source of images")
        try:
            image = self._open(example["image"], generator)
            if generator is None:
                images = {"image": decode.centre_crop(image, self.size, self.eval_crop)}
            else:
                images = {view.name: view.on_host(image, generator, self.eval_crop) for view in self.views}
                images["image"] = decode.augment(image, generator, self.augment, self.size, self.eval_crop)
        except decode.Unreadable as error:
            raise BadExample(f"{self.source.describe(index)} {error}; {HINT}") from None
        array = images["image"] = np.asarray(images["image"], np.uint8)
        images["image"] = array[..., None] if array.ndim == 2 else array
        return images | ({"label": np.asarray(example["label"], np.int32)} if "label" in example else {})

    def _open(self, image: Any, generator: np.random.Generator | None):
        """Return the stored image as a PIL image of `channels`."""
        if not isinstance(image, bytes):
            return decode.from_array(np.asarray(image), self.channels)
        wanted = [(self.size, self.augment.crop)] + [(view.size, a.crop) for view in self.views for a in view.augment]
        smallest = lambda crop: min(crop.scale) if generator is not None and crop is not None and crop.scale else 1.0
        size, share = max(((n, smallest(crop)) for n, crop in wanted), key=lambda pair: max(pair[0]) / math.sqrt(pair[1]))
        return decode.decode(image, self.channels, size if self.fast_decode else None, share)


@dataclasses.dataclass(frozen=True)
class OnDevice:
    """Raw pixels in [0, `high`] -> the task's batch: cropped and flipped unless the host did so, and normalised.

    With `keys`, images are augmented and views are made.
    """

    augment: Augment
    views: tuple[Copies, ...]
    raw: bool
    size: tuple[int, int]
    share: float
    high: float
    mean: tuple[float, ...]
    std: tuple[float, ...]

    def __call__(self, batch: Mapping[str, Any], keys: Any) -> dict[str, Any]:
        images = jnp.asarray(batch["image"])
        result = {**batch, "image": self._make(images, keys, self.augment, self.size)}
        for view in self.views if keys is not None else ():
            result[view.name] = view.on_device(images if self.raw else jnp.asarray(batch[view.name]), keys, self._make)
        return result | ({"label": jnp.asarray(batch["label"], jnp.int32)} if "label" in batch else {})

    def _make(self, images: Any, keys: Any, settings: Augment, size: tuple[int, int]) -> Any:
        if self.raw and keys is None:
            images = augment.centre_crop(images, size, self.share, self.high)
        elif self.raw:
            images = augment.crop_and_flip(images, keys, settings, size=size, share=self.share, high=self.high)
        return colour.finish(images, keys, settings, high=self.high, mean=self.mean, std=self.std)
