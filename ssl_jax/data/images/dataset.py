"""The kind "images": decoding, host augmentation, normalisation, and the settings of the config's section `data`."""

import dataclasses
import functools
import math
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from ssl_jax.config import read
from ssl_jax.data.existing import existing
from ssl_jax.data.images import augment, colour, decode
from ssl_jax.data.images.augment import Augment
from ssl_jax.data.images.views import Copies, read_views
from ssl_jax.data.labels import match_classes
from ssl_jax.data.pipeline import BadExample, Dataset, subset
from ssl_jax.data.sources import HINT, Source, load_source
from ssl_jax.data.sources.image_table import require_images
from ssl_jax.data.splits import held_out
from ssl_jax.errors import UserError
from ssl_jax.task import DataInfo

NORMALIZE = {"imagenet": ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225)), "half": ((0.5,), (0.5,))}
DEVICE_BYTES = 2**30  # placement "auto" puts arrays up to this size on the device
STATISTICS_EXAMPLES = 2048  # over how many examples mean and std are taken where each must be decoded


@dataclasses.dataclass(frozen=True)
class ImagesSettings:
    """The config's section `data` for images.

    Without `test`, a random share `holdout` of the training source is held out as test set: by a hash of each example's name
    (of its content, for arrays), so that the split is the same in every run and stays when the source grows.
    Evaluation scales an image so that `image_size` is `eval_crop` of it, and cuts centrally; one of that size is left alone.
    """

    train: str
    batch_size: int
    test: str | None = None
    holdout: float = 0.1
    image_size: int | tuple | None = None  # int or (height, width); needed where images differ in size
    channels: int | None = None  # 1 or 3; the source's own where it is an array, else 3
    augment: Augment = Augment()
    views: Mapping = dataclasses.field(default_factory=dict)  # name -> View: several augmented copies of a training image
    eval_crop: float = 0.875
    normalize: str | tuple | None = "dataset"  # "dataset", "imagenet", "half", None ([0, 1]) or (means, stds)
    placement: str = "auto"  # "device": the whole set lies there; "host"; "auto": device where it is arrays under 1 GiB
    workers: int = 0  # processes that decode; 0: threads of this process
    fast_decode: bool = False  # JPEG decoded at a reduced scale where the crop allows it: faster, other pixel values
    on_bad_example: str = "error"  # or "skip": unreadable examples and those without a label are left out and counted
    classes: tuple = ()  # class names in their order; default: the training source's
    unknown_classes: str = "error"  # test examples of a class that training does not have; or "skip": left out and counted
    columns: Mapping | None = None  # of a table: dict(image=..., label=...); None: not read; default: usual names
    dir: str | None = None  # where prepared TFDS data lies; else $TFDS_DATA_DIR or ~/tensorflow_datasets

    def __post_init__(self):
        if self.batch_size < 1:
            raise UserError(f"batch_size={self.batch_size}: must be at least 1")
        if not 0 <= self.holdout < 1:
            raise UserError(f"holdout={self.holdout}: must lie in [0, 1)")
        sizes = (self.image_size,) if isinstance(self.image_size, int) else self.image_size or ()
        if any(not isinstance(n, int) or not 1 <= n <= 16384 for n in sizes) or len(sizes) > 2:
            raise UserError(f"image_size={self.image_size}: must be a number of pixels or (height, width)")
        if self.channels not in (None, 1, 3):
            raise UserError(f"channels={self.channels}: must be 1 or 3")
        if not 0 < self.eval_crop <= 1:
            raise UserError(f"eval_crop={self.eval_crop}: must lie in (0, 1]")
        if isinstance(self.normalize, str) and self.normalize not in ("dataset", *NORMALIZE):
            raise UserError(f'normalize={self.normalize!r}: must be "dataset", "imagenet", "half", None or (means, stds)')
        if self.placement not in ("auto", "host", "device"):
            raise UserError(f'placement={self.placement!r}: must be "auto", "host" or "device"')
        if not 0 <= self.workers <= 256:
            raise UserError(f"workers={self.workers}: must lie in [0, 256]")
        if self.on_bad_example not in ("error", "skip"):
            raise UserError(f'on_bad_example={self.on_bad_example!r}: must be "error" or "skip"')
        if self.unknown_classes not in ("error", "skip"):
            raise UserError(f'unknown_classes={self.unknown_classes!r}: must be "error" or "skip"')
        check_columns(self.columns)

    @property
    def size(self) -> tuple[int, int] | None:
        if self.image_size is None:
            return None
        return (
            (self.image_size, self.image_size)
            if isinstance(self.image_size, int)
            else tuple(self.image_size) * (2 // len(self.image_size))
        )


def check_columns(columns: Mapping | None) -> None:
    """Raise UserError for a role of a column that a table of images does not have."""
    for role, name in (columns or {}).items():
        if role not in ("image", "text", "label"):
            raise UserError(f"columns.{role}: unknown; valid keys are image, text, label")
        if name is not None and not isinstance(name, str):
            raise UserError(f"columns.{role}={name!r}: must be a column's name, or None")


def build(
    section: Any,
    *,
    split: str = "train",
    train: bool = True,
    task_section: Any = None,
    workdir: str | None = None,
) -> Dataset:
    """The image data set of the config's section `data`; train=False leaves the augmentation out of it.

    Task batches: {"image": f32[B, H, W, C] normalised, "label": i32[B] where the source has labels}; training batches also
    hold name: f32[B, count, h, w, C] for every view.
    """
    settings = read(ImagesSettings, section, "data")
    training = load_source(settings.train, dir=settings.dir, columns=settings.columns)
    classes, named_by = (settings.classes, "data.classes") if settings.classes else (training.classes, settings.train)
    source = training
    if split == "test" and settings.test:
        source = load_source(settings.test, dir=settings.dir, columns=settings.columns)
    require_images(source)
    source = match_classes(source, classes, named_by, settings.unknown_classes)
    size, channels = _shape(settings, source)
    mean, std = _normalization(settings, training, size, channels)
    augmentation = settings.augment if train else Augment()
    views = read_views(settings.views, size, settings.augment) if train else ()
    host_side = any(a.needs_host for a in (augmentation, *(a for view in views for a in view.augment)))
    arrays = _arrays(source, channels) if not host_side else None
    if arrays is None and settings.placement == "device":
        why = "randaugment works on the host" if host_side else f"{source.name} does not come as arrays"
        raise UserError(f'data.placement="device": {why}; use "host"')
    size_on_device = sum(array.nbytes for array in arrays.values()) if arrays is not None else math.inf
    device = settings.placement == "device" or settings.placement == "auto" and size_on_device <= DEVICE_BYTES
    raw = arrays is not None
    examples = Examples(source, size, channels, augmentation, settings.eval_crop, settings.fast_decode, raw, views)
    shapes = {"image": jax.ShapeDtypeStruct((*size, channels), jnp.float32)}
    if labelled(source):
        shapes["label"] = jax.ShapeDtypeStruct((), jnp.int32)
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
    )
    if settings.test is None:
        dataset = holdout(dataset, split, settings.holdout)
    return existing(dataset, scan=labelled(source) or split == "test", augmented=train)


def labelled(source: Source) -> bool:
    """Whether a source has labels, without reading them where it says so."""
    return bool(source.all_labelled) or source.labels() is not None


def holdout(dataset: Dataset, split: str, share: float) -> Dataset:
    """Return the part of a data set that is trained on, or the part that is held out as its test set (splits.held_out)."""
    source = dataset.source
    if share == 0 and split != "test":
        return dataset
    held = held_out(source.keys(), share, source.labels())
    if split == "test" and not held.any():
        why = "data.holdout=0" if share == 0 else f"data.holdout={share} of {dataset.size:,} examples"
        raise UserError(f"data.test is missing, and {why} holds nothing out for it")
    return subset(dataset, np.flatnonzero(held if split == "test" else ~held)) if held.any() else dataset


def _shape(settings: ImagesSettings, source: Source) -> tuple[tuple[int, int], int]:
    """((height, width), channels) of what a task sees."""
    arrays, uri = source.arrays, source.name
    if arrays is not None and "image" not in arrays:
        raise UserError(f"{uri}: holds no images, only {', '.join(arrays)}")
    own = arrays["image"].shape[1:] if arrays is not None else None
    if settings.size is None and own is None:
        raise UserError(f"data.image_size is missing: the images of {uri} may differ in size; set it, such as image_size=224")
    channels = settings.channels or (min(own[2], 3) if own is not None else 3)
    return settings.size or own[:2], channels


def _arrays(source: Source, channels: int) -> dict[str, np.ndarray] | None:
    """{"image", "label"?} of a source that is arrays with as many channels as wanted."""
    if source.arrays is None or source.arrays["image"].shape[-1] != channels:
        return None
    return {name: source.arrays[name] for name in ("image", "label") if name in source.arrays}


@dataclasses.dataclass
class Examples:
    """index -> {"image": u8[height, width, channels], "label"?}: decoded, and on the host cropped and augmented.

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
            raise UserError(f"{self.source.name}: holds no images, only {', '.join(example)}")
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
        return images | ({"label": np.int32(example["label"])} if "label" in example else {})

    def _open(self, image: Any, generator: np.random.Generator | None):
        """The stored image as a PIL image of the wanted channels."""
        if not isinstance(image, bytes):
            return decode.from_array(np.asarray(image), self.channels)
        wanted = [(self.size, self.augment.crop)] + [(view.size, a.crop) for view in self.views for a in view.augment]
        smallest = lambda crop: min(crop.scale) if generator is not None and crop is not None and crop.scale else 1.0
        size, share = max(((n, smallest(crop)) for n, crop in wanted), key=lambda pair: max(pair[0]) / math.sqrt(pair[1]))
        return decode.decode(image, self.channels, size if self.fast_decode else None, share)


@dataclasses.dataclass(frozen=True)
class OnDevice:
    """Raw pixels in [0, `high`] -> the task's batch: cropped and flipped where the host has not done it, and normalised.

    With `keys` images are augmented, and the views are made.
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


# Normalisation ------------------------------------------------------------------------------------------------------


def _normalization(settings: ImagesSettings, source: Source, size, channels: int) -> tuple[tuple, tuple]:
    """(mean, std) per channel of pixels in [0, 1]."""
    wanted = settings.normalize
    if wanted is None:
        return (0.0,) * channels, (1.0,) * channels
    if wanted == "dataset":
        return _dataset_statistics(source, tuple(size), channels, settings.eval_crop)
    mean, std = NORMALIZE[wanted] if isinstance(wanted, str) else _pair(wanted)
    if len(mean) not in (1, channels) or len(std) not in (1, channels):
        raise UserError(f"data.normalize={wanted!r}: has {len(mean)} channels, the images have {channels}")
    return tuple(map(float, mean * (channels // len(mean)))), tuple(map(float, std * (channels // len(std))))


def _pair(value: tuple) -> tuple[tuple, tuple]:
    try:
        mean, std = (tuple(v) if isinstance(v, tuple | list) else (v,) for v in value)
        good = all(math.isfinite(m) for m in mean) and all(math.isfinite(s) and s > 0 for s in std)
    except (TypeError, ValueError):
        good = False
    if not good:
        raise UserError(f"data.normalize={value}: expected (means, stds) such as ((0.5, 0.5, 0.5), (0.5, 0.5, 0.5))")
    return mean, std


@functools.lru_cache(maxsize=8)
def _dataset_statistics(source: Source, size, channels: int, share: float) -> tuple[tuple, tuple]:
    """Mean and std over the training source: over all pixels of arrays, else over 2,048 evenly spaced examples."""
    arrays = _arrays(source, channels)
    if arrays is not None:
        return pixel_statistics(arrays["image"])
    examples = Examples(source, size, channels, Augment(), share, True, False)
    images = []
    for index in np.unique(np.linspace(0, len(source) - 1, min(len(source), STATISTICS_EXAMPLES)).astype(int)):
        try:
            images.append(examples(int(index), None)["image"])
        except BadExample:
            continue  # told, or skipped, when the stream meets it
    if not images:
        raise UserError(f"{source.name}: not one of its images can be read")
    return pixel_statistics(np.stack(images))


def pixel_statistics(images: np.ndarray) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """(mean, std) per channel of images [N, H, W, C] scaled to [0, 1]; a constant channel has std 1. No float copy is made."""
    means, stds = [], []
    for channel in range(images.shape[-1]):
        if images.dtype == np.uint8:
            counts = np.zeros(256, np.int64)
            for part in np.array_split(images[..., channel], max(1, len(images) // 1024)):
                counts += np.bincount(part.ravel(), minlength=256)
            values = np.arange(256) / 255
            mean = float((counts * values).sum() / counts.sum())
            variance = float((counts * (values - mean) ** 2).sum() / counts.sum())
        else:
            mean = float(images[..., channel].mean(dtype=np.float64))
            variance = float(images[..., channel].var(dtype=np.float64))
        means.append(mean)
        stds.append(math.sqrt(variance) if variance > 1e-12 else 1.0)
    return tuple(means), tuple(stds)
