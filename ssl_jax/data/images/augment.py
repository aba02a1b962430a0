"""Augmentation of image batches inside the jitted step: pure functions of raw pixels and one key per example.

Geometric operations take raw pixels in [0, `high`], u8 (255) or float (1.0); interpolating ones return f32 in the same range.
Colour operations (colour.py) take f32 in [0, 1].
"""

import dataclasses
import math
from typing import ClassVar

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int, Key, Num

from ssl_jax import randomness
from ssl_jax.errors import UserError

# Settings -----------------------------------------------------------------------------------------------------------


def _in_range(name: str, value: float, low: float, high: float) -> None:
    if not low <= value <= high:
        raise UserError(f"{name}={value}: must lie in [{low:g}, {high:g}]")


def _pair(name: str, value: tuple, low: float, high: float) -> None:
    if len(value) != 2 or not all(isinstance(v, int | float) for v in value) or not low < value[0] <= value[1] <= high:
        raise UserError(f"{name}={value}: must be (from, to) with {low:g} < from <= to <= {high:g}")


@dataclasses.dataclass(frozen=True)
class Crop:
    """Either `padding`: pad with zeros (black) on all sides and crop the original size at a random place (a shift); or `scale`:
    random-resized crop (Szegedy et al. 2015), a box with this share of the area and this aspect ratio, bicubic, antialiased.
    """

    padding: int | None = None
    scale: tuple | None = None
    ratio: tuple = (3 / 4, 4 / 3)

    def __post_init__(self):
        if (self.padding is None) == (self.scale is None):
            raise UserError("crop: give either padding=2 (a shift) or scale=(0.2, 1.0) (a random-resized crop)")
        if self.padding is not None and self.padding < 1:
            raise UserError(f"padding={self.padding}: must be at least 1; omit crop for no padding")
        if self.scale is not None:
            _pair("scale", self.scale, 0, 1)
        _pair("ratio", self.ratio, 0, 1e3)


@dataclasses.dataclass(frozen=True)
class RandAugment:
    """RandAugment (Cubuk et al. 2020) with timm's increasing severities: the defaults are its "rand-m9-mstd0.5-inc1".

    `layers` operations drawn with replacement, each applied with probability `prob` at magnitude N(magnitude, std) in [0, 10].
    """

    layers: int = 2
    magnitude: float = 9.0
    std: float = 0.5
    prob: float = 0.5

    def __post_init__(self):
        _in_range("layers", self.layers, 1, 16)
        _in_range("magnitude", self.magnitude, 0, 10)
        _in_range("std", self.std, 0, 100)
        _in_range("prob", self.prob, 0, 1)


@dataclasses.dataclass(frozen=True)
class Jitter:
    """Colour jitter: factors drawn from [1 - x, 1 + x] for brightness, contrast and saturation; hue rotated by up to `hue`.

    `hue` is a share of the colour circle. The operations are applied in a random order (torchvision's ColorJitter).
    """

    brightness: float = 0.4
    contrast: float = 0.4
    saturation: float = 0.4
    hue: float = 0.0
    prob: float = 1.0

    def __post_init__(self):
        for name in ("brightness", "contrast", "saturation", "prob"):
            _in_range(name, getattr(self, name), 0, 1)
        _in_range("hue", self.hue, 0, 0.5)


@dataclasses.dataclass(frozen=True)
class Blur:
    """Gaussian blur with a deviation drawn uniformly from `sigma`, in pixels (Chen et al. 2020, appendix A)."""

    prob: float = 0.5
    sigma: tuple = (0.1, 2.0)
    kernel: int | None = None  # pixels, odd; default: SimCLR's, a tenth of the image's side

    def __post_init__(self):
        _in_range("prob", self.prob, 0, 1)
        _pair("sigma", self.sigma, 0, 1e3)
        if self.kernel is not None and (self.kernel < 1 or self.kernel % 2 == 0):
            raise UserError(f"kernel={self.kernel}: must be an odd number of pixels")

    def taps(self, size: tuple[int, int]) -> int:
        """Return the kernel's number of pixels for images of `size`."""
        return self.kernel or 2 * (min(size) // 10 // 2) + 1


@dataclasses.dataclass(frozen=True)
class Erase:
    """Random erasing (Zhong et al. 2020), after normalisation: one box is filled with unit normal noise ("pixel") or zeros."""

    prob: float = 0.25
    scale: tuple = (0.02, 1 / 3)
    ratio: tuple = (0.3, 10 / 3)
    fill: str = "pixel"

    def __post_init__(self):
        _in_range("prob", self.prob, 0, 1)
        _pair("scale", self.scale, 0, 1)
        _pair("ratio", self.ratio, 0, 1e3)
        if self.fill not in ("pixel", "zero"):
            raise UserError(f'fill={self.fill!r}: must be "pixel" or "zero"')


@dataclasses.dataclass(frozen=True)
class Augment:
    """The augmentations of a training image, in this order: crop, flip, randaugment, jitter, greyscale, blur, solarize,
    normalisation, erase.
    """

    OFF_WHEN_EMPTY: ClassVar[bool] = True  # data.augment=None switches all of it off

    crop: Crop | None = None
    flip: bool = False
    randaugment: RandAugment | None = None
    jitter: Jitter | None = None
    greyscale: float = 0.0  # probability
    blur: Blur | None = None
    solarize: float = 0.0  # probability; inverts pixels of at least one half
    erase: Erase | None = None

    def __post_init__(self):
        _in_range("greyscale", self.greyscale, 0, 1)
        _in_range("solarize", self.solarize, 0, 1)

    @property
    def needs_host(self) -> bool:
        """Return whether an operation processes single images in PIL."""
        return self.randaugment is not None

    @property
    def changes_colour(self) -> bool:
        """Return whether an operation of colour.py is enabled."""
        return self.jitter is not None or self.greyscale > 0 or self.blur is not None or self.solarize > 0


@dataclasses.dataclass(frozen=True)
class Mix:
    """Mixup (Zhang et al. 2018) and cutmix (Yun et al. 2019) of a whole batch, as in timm's batch mode.

    With probability `prob` a batch is mixed with its reverse: if both are enabled (alpha > 0), by cutmix with probability
    `switch_prob`, else by the enabled one. `smoothing` is label smoothing, applied to all targets.
    """

    mixup: float = 0.8
    cutmix: float = 1.0
    prob: float = 1.0
    switch_prob: float = 0.5
    smoothing: float = 0.1

    def __post_init__(self):
        _in_range("mixup", self.mixup, 0, 100)
        _in_range("cutmix", self.cutmix, 0, 100)
        _in_range("prob", self.prob, 0, 1)
        _in_range("switch_prob", self.switch_prob, 0, 1)
        _in_range("smoothing", self.smoothing, 0, 0.999)


# One image at a time, vectorised ------------------------------------------------------------------------------------


def flip(images: Num[Array, "b h w c"], keys: Key[Array, "b"]) -> Num[Array, "b h w c"]:
    """Mirror each image left to right with probability one half."""
    mirrored = jax.vmap(jax.random.bernoulli)(keys)
    return jnp.where(mirrored[:, None, None, None], images[:, :, ::-1], images)


def shift(images: Num[Array, "b h w c"], keys: Key[Array, "b"], padding: int) -> Num[Array, "b h w c"]:
    """Pad each image with `padding` zeros on all sides and crop its size at a random place."""
    offsets = jax.vmap(lambda key: jax.random.randint(key, (2,), 0, 2 * padding + 1))(keys)
    padded = jnp.pad(images, ((0, 0), (padding, padding), (padding, padding), (0, 0)))
    cut = lambda image, offset: jax.lax.dynamic_slice(image, (offset[0], offset[1], 0), images.shape[1:])
    return jax.vmap(cut)(padded, offsets)


def random_box(
    key: Key[Array, ""], size: tuple[int, int], scale: tuple, ratio: tuple, *, attempts: int = 10, whole: bool = True
) -> Int[Array, "4"]:
    """Return (top, left, height, width) of a random box: its share of the area is uniform in `scale`, its log aspect ratio
    uniform in `ratio`.

    It is rounded to pixels. The first of `attempts` draws that fits is used; if none fits, the largest centred box within
    `ratio` (torchvision's RandomResizedCrop), or with whole=False an empty box.
    """
    height, width = size
    draws = jax.random.uniform(key, (2 * attempts + 2,))  # one call: a separate kernel for each draw compiles slowly
    shares, aspects, (down, right) = draws[:attempts], draws[attempts:-2], draws[-2:]
    area = height * width * (scale[0] + (scale[1] - scale[0]) * shares)
    aspect = jnp.exp(math.log(ratio[0]) + (math.log(ratio[1]) - math.log(ratio[0])) * aspects)
    w = jnp.round(jnp.sqrt(area * aspect)).astype(jnp.int32)
    h = jnp.round(jnp.sqrt(area / aspect)).astype(jnp.int32)
    fits = (w > 0) & (w <= width) & (h > 0) & (h <= height)
    first = jnp.argmax(fits)
    top = jnp.floor(down * (height - h[first] + 1)).astype(jnp.int32)
    left = jnp.floor(right * (width - w[first] + 1)).astype(jnp.int32)
    box = jnp.stack([top, left, h[first], w[first]])
    fallback = jnp.array(centred_box(size, ratio) if whole else (0, 0, 0, 0), jnp.int32)
    return jnp.where(fits.any(), box, fallback)


def centred_box(size: tuple[int, int], ratio: tuple) -> tuple[int, int, int, int]:
    """Return (top, left, height, width) of the largest centred box whose aspect ratio lies within `ratio`."""
    height, width = size
    if width / height < ratio[0]:
        box = min(height, round(width / ratio[0])), width
    elif width / height > ratio[1]:
        box = height, min(width, round(height * ratio[1]))
    else:
        box = height, width
    return (height - box[0]) // 2, (width - box[1]) // 2, *box


def cubic(x: Float[Array, "*shape"]) -> Float[Array, "*shape"]:
    """Return Keys' cubic kernel with a = -1/2, as in PIL and JAX."""
    x = jnp.abs(x)
    near, far = (1.5 * x - 2.5) * x * x + 1, ((-0.5 * x + 2.5) * x - 4) * x + 2
    return jnp.where(x < 1, near, jnp.where(x < 2, far, 0))


def resize_weights(start, length, low, high, size: int, out: int) -> Float[Array, "{out} {size}"]:
    """Return the matrix that resizes pixels [start, start + length) of `size` to `out`, bicubic and antialiased.

    Only pixels within [low, high) count: a crop is resized as if it had been cropped first, as in PIL and torchvision
    (the kernel of jax.image.scale_and_translate reaches beyond the crop).
    """
    scale = length / out
    centre = start + (jnp.arange(out) + 0.5) * scale
    pixel = jnp.arange(size)
    weights = cubic((pixel + 0.5 - centre[:, None]) / jnp.maximum(scale, 1.0))
    weights = jnp.where((pixel >= low) & (pixel < high), weights, 0)
    return weights / jnp.sum(weights, axis=1, keepdims=True)


def resize(image: Num[Array, "h w c"], box, size: tuple[int, int], high: float | None) -> Float[Array, "{size[0]} {size[1]} c"]:
    """Return the crop `box` (top, left, height, width) of an image, resized to `size`: bicubic, antialiased.

    The result is clipped to [0, `high`] if `high` is given.
    """
    top, left, height, width = box
    rows = resize_weights(top, height, top, top + height, image.shape[0], size[0])
    columns = resize_weights(left, width, left, left + width, image.shape[1], size[1])
    result = jnp.einsum("yh,xw,hwc->yxc", rows, columns, image.astype(jnp.float32), precision="highest")
    return result if high is None else jnp.clip(result, 0, high)


def random_resized_crop(
    images: Num[Array, "b h w c"], keys: Key[Array, "b"], size: tuple[int, int], scale: tuple, ratio: tuple, high: float
) -> Float[Array, "b {size[0]} {size[1]} c"]:
    """Resize a random box of each image (area share in `scale`, aspect ratio in `ratio`) to `size`."""
    one = lambda image, key: resize(image, random_box(key, image.shape[:2], scale, ratio), size, high)
    return jax.vmap(one)(images, keys)


def centre_crop(
    images: Num[Array, "b h w c"], size: tuple[int, int], share: float, high: float
) -> Num[Array, "b {size[0]} {size[1]} c"]:
    """Scale so that `size` is `share` of the image in the tighter direction, and crop centrally: the evaluation transform.

    Images of `size` are unchanged.
    """
    height, width = images.shape[1:3]
    if (height, width) == tuple(size):
        return images
    scale = max(size[0] / height, size[1] / width) / share
    box_height, box_width = size[0] / scale, size[1] / scale
    rows = resize_weights((height - box_height) / 2, box_height, 0, height, height, size[0])
    columns = resize_weights((width - box_width) / 2, box_width, 0, width, width, size[1])
    result = jnp.einsum("yh,xw,bhwc->byxc", rows, columns, images.astype(jnp.float32), precision="highest")
    return jnp.clip(result, 0, high)


def erase(images: Float[Array, "b h w c"], keys: Key[Array, "b"], settings: Erase) -> Float[Array, "b h w c"]:
    """Erase random boxes of normalised images (Zhong et al. 2020; fill "pixel" draws a unit normal for every value)."""

    def one(image, key):
        chance, place, noise = jax.random.split(key, 3)
        box = random_box(place, image.shape[:2], settings.scale, settings.ratio, whole=False)
        inside = in_box(box, image.shape[:2]) & (jax.random.uniform(chance) < settings.prob)
        fill = jax.random.normal(noise, image.shape, image.dtype) if settings.fill == "pixel" else 0.0
        return jnp.where(inside[..., None], fill, image)

    return jax.vmap(one)(images, keys)


def in_box(box, size: tuple[int, int]):
    """Return bool[height, width]: True inside (top, left, height, width)."""
    top, left, height, width = box
    rows, columns = jnp.arange(size[0])[:, None], jnp.arange(size[1])[None]
    return (rows >= top) & (rows < top + height) & (columns >= left) & (columns < left + width)


def crop_and_flip(
    images: Num[Array, "b h w c"], keys: Key[Array, "b"], settings: Augment, *, size: tuple[int, int], share: float, high: float
) -> Num[Array, "b {size[0]} {size[1]} c"]:
    """Crop and flip whole raw images in [0, `high`]; every operation draws from its own named stream below `keys`."""
    crop = settings.crop
    if crop is not None and crop.scale is not None:
        images = random_resized_crop(images, randomness.substream(keys, "crop"), size, crop.scale, crop.ratio, high)
    else:
        images = centre_crop(images, size, share, high)
        if crop is not None:
            images = shift(images, randomness.substream(keys, "crop"), crop.padding)
    return flip(images, randomness.substream(keys, "flip")) if settings.flip else images


# Whole batches ------------------------------------------------------------------------------------------------------


def mix(batch: dict, key: Key[Array, ""], settings: Mix, classes: int) -> dict:
    """Return `batch` with "image" f32[B, H, W, C] mixed with its reverse and "label" i32[B] as soft labels f32[B, classes].

    Labels i32[B, classes] of 0 and 1 (several classes per example) are mixed likewise; smoothing moves each towards 1/2.

    lambda ~ Beta(alpha, alpha), one per batch. Mixup: lambda x + (1 - lambda) x'. Cutmix: a box of area 1 - lambda around
    a uniform centre, clipped at the border, comes from x', and lambda is corrected to the true area (timm's batch mode).
    """
    images = batch["image"]
    several = batch["label"].ndim == 2
    targets = batch["label"].astype(jnp.float32) if several else jax.nn.one_hot(batch["label"], classes)
    targets = targets * (1 - settings.smoothing) + settings.smoothing / (2 if several else classes)
    if settings.mixup == 0 and settings.cutmix == 0:
        return {**batch, "label": targets}
    chance, switch, draw, place = jax.random.split(key, 4)
    both = settings.mixup > 0 and settings.cutmix > 0
    cut = jax.random.uniform(switch) < settings.switch_prob if both else jnp.bool_(settings.cutmix > 0)
    alpha = jnp.where(cut, settings.cutmix, settings.mixup)
    share = jnp.where(jax.random.uniform(chance) < settings.prob, jax.random.beta(draw, alpha, alpha), 1.0)
    height, width = images.shape[1:3]
    side = jnp.sqrt(1 - share)
    centre = jnp.floor(jax.random.uniform(place, (2,)) * jnp.array([height, width]))
    half = jnp.array([height, width]) * side // 2
    low = jnp.clip(centre - half, 0, jnp.array([height, width]))
    high = jnp.clip(centre + half, 0, jnp.array([height, width]))
    inside = in_box((low[0], low[1], high[0] - low[0], high[1] - low[1]), (height, width))
    share_cut = 1 - jnp.mean(inside)
    other, other_targets = images[::-1], targets[::-1]
    keep = jnp.where(cut, 1.0 - inside, share)[..., None]
    share = jnp.where(cut, share_cut, share)
    return {**batch, "image": images * keep + other * (1 - keep), "label": targets * share + other_targets * (1 - share)}
