"""Torchvision's colour operations on image batches inside the jitted step, on f32 pixels in [0, 1], with one key per image.

Saturation, hue and greyscale leave images of one channel unchanged, as torchvision's do.
"""

import functools
from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Key, Num

from ssl_jax import randomness
from ssl_jax.data.images.augment import Augment, Blur, Jitter, erase
from ssl_jax.errors import UserError

LUMA = (0.2989, 0.587, 0.114)  # torchvision.transforms.functional.rgb_to_grayscale


def apply(images: Float[Array, "b h w c"], keys: Key[Array, "b"], settings: Augment) -> Float[Array, "b h w c"]:
    """Apply jitter, greyscale, blur and solarize, in this order; each draws from its own named stream below `keys`."""
    operations: dict[str, Callable] = {}
    if settings.jitter is not None:
        operations["jitter"] = functools.partial(jitter, settings=settings.jitter)
    if settings.greyscale:
        operations["greyscale"] = functools.partial(sometimes, prob=settings.greyscale, operation=greyscale)
    if settings.blur is not None:
        operations["blur"] = functools.partial(random_blur, settings=settings.blur)
    if settings.solarize:
        operations["solarize"] = functools.partial(sometimes, prob=settings.solarize, operation=solarize)
    for name, operation in operations.items():
        images = jax.vmap(operation)(images, randomness.substream(keys, name))
    return images


def sometimes(image: Float[Array, "h w c"], key: Key[Array, ""], *, prob: float, operation: Callable) -> Float[Array, "h w c"]:
    """Apply `operation` with probability `prob`."""
    return jnp.where(jax.random.uniform(key) < prob, operation(image), image)


# Colour jitter ------------------------------------------------------------------------------------------------------


def jitter(image: Float[Array, "h w c"], key: Key[Array, ""], settings: Jitter) -> Float[Array, "h w c"]:
    """Apply torchvision's ColorJitter, its operations in a random order, with probability `settings.prob`."""
    factors, choice, order = jax.random.split(key, 3)
    draws = jax.random.uniform(factors, (4,), minval=-1)
    operations: list[Callable] = []
    for i, operation in enumerate((brightness, contrast, saturation, hue)):
        width, centre = getattr(settings, operation.__name__), 0.0 if operation is hue else 1.0
        if width and (image.shape[2] == 3 or operation in (brightness, contrast)):
            operations.append(functools.partial(operation, factor=centre + width * draws[i]))
    result = image
    if operations:
        for which in jax.random.permutation(order, len(operations)):
            result = jax.lax.switch(which, operations, result)
    return jnp.where(jax.random.uniform(choice) < settings.prob, result, image)


def brightness(image: Float[Array, "h w c"], factor: Float[Array, ""] | float) -> Float[Array, "h w c"]:
    """Scale the pixels by `factor`."""
    return jnp.clip(factor * image, 0, 1)


def contrast(image: Float[Array, "h w c"], factor: Float[Array, ""] | float) -> Float[Array, "h w c"]:
    """Scale the distance from the mean of the greyscale image by `factor`."""
    return blend(image, jnp.mean(greyscale(image)), factor)


def saturation(image: Float[Array, "h w c"], factor: Float[Array, ""] | float) -> Float[Array, "h w c"]:
    """Scale the distance from the greyscale image by `factor`."""
    return blend(image, greyscale(image), factor)


def hue(image: Float[Array, "h w 3"], factor: Float[Array, ""] | float) -> Float[Array, "h w 3"]:
    """Rotate the hue by `factor` of the circle, without changing saturation and value in HSV."""
    red, green, blue = jnp.moveaxis(image, -1, 0)
    value = jnp.max(image, axis=-1)
    chroma = value - jnp.min(image, axis=-1)
    divisor = jnp.where(chroma > 0, chroma, 1)  # avoids a division by zero: grey pixels have no hue
    sectors = [(green - blue) / divisor, 2 + (blue - red) / divisor, 4 + (red - green) / divisor]
    sector = jnp.select([value == red, value == green], sectors[:2], sectors[2])
    place = (jnp.array([5.0, 3.0, 1.0]) + (sector + 6 * factor)[..., None]) % 6
    return value[..., None] - chroma[..., None] * jnp.clip(jnp.minimum(place, 4 - place), 0, 1)


def blend(image: Float[Array, "h w c"], other: Float[Array, "..."], factor: Float[Array, ""] | float) -> Float[Array, "h w c"]:
    """Return `factor` image + (1 - `factor`) other, clipped to [0, 1]."""
    return jnp.clip(factor * image + (1 - factor) * other, 0, 1)


# Greyscale, blur, solarize ------------------------------------------------------------------------------------------


def greyscale(image: Float[Array, "h w c"]) -> Float[Array, "h w c"]:
    """Replace the three channels of each pixel by their luma."""
    if image.shape[2] != 3:
        return image
    return jnp.broadcast_to(jnp.sum(image * jnp.array(LUMA), axis=-1, keepdims=True), image.shape)


def solarize(image: Float[Array, "h w c"]) -> Float[Array, "h w c"]:
    """Invert the pixels from one half up (torchvision's solarize at threshold 0.5; 128 of 255 levels)."""
    return jnp.where(image >= 0.5, 1 - image, image)


def random_blur(image: Float[Array, "h w c"], key: Key[Array, ""], settings: Blur) -> Float[Array, "h w c"]:
    """Blur with probability `settings.prob`, the deviation uniform in `settings.sigma`."""
    choice, deviation = jax.random.split(key)
    sigma = jax.random.uniform(deviation, minval=settings.sigma[0], maxval=settings.sigma[1])
    taps = settings.taps(image.shape[:2])
    return sometimes(image, choice, prob=settings.prob, operation=lambda x: gaussian_blur(x, sigma, taps))


def gaussian_blur(image: Float[Array, "h w c"], sigma: Float[Array, ""] | float, taps: int) -> Float[Array, "h w c"]:
    """Convolve both axes with a normalised Gaussian of `taps` (odd) pixels; the border is reflected.

    Raise UserError if the image is too small to reflect half of the taps.
    """
    radius = taps // 2
    if radius >= min(image.shape[:2]):
        h, w = image.shape[:2]
        raise UserError(f"blur.kernel={taps}: an image of {h} x {w} pixels allows at most {2 * min(h, w) - 1}; lower it")
    weights = jnp.exp(-0.5 * (jnp.arange(-radius, radius + 1) / sigma) ** 2)
    weights = weights / jnp.sum(weights)
    for axis in (0, 1):
        padding = [(radius, radius) if a == axis else (0, 0) for a in range(3)]
        padded, size = jnp.pad(image, padding, mode="reflect"), image.shape[axis]
        image = sum(weights[i] * jax.lax.slice_in_dim(padded, i, i + size, axis=axis) for i in range(taps))
    return image


# The end of the chain -----------------------------------------------------------------------------------------------


def finish(
    images: Num[Array, "b h w c"], keys: Key[Array, "b"] | None, settings: Augment, *, high: float, mean: tuple, std: tuple
) -> Float[Array, "b h w c"]:
    """Apply colour operations, normalisation (x - mean) / std and erasing to cropped pixels in [0, `high`].

    Without `keys`, only normalise. `mean` and `std` hold one number per channel, for pixels in [0, 1].
    """
    if keys is not None and settings.changes_colour:
        images, high = apply(images.astype(jnp.float32) / high, keys, settings), 1.0
    scale, offset = 1 / (high * np.array(std)), np.array(mean) / np.array(std)
    images = images.astype(jnp.float32) * scale.astype(np.float32) - offset.astype(np.float32)
    if keys is not None and settings.erase is not None:
        images = erase(images, randomness.substream(keys, "erase"), settings.erase)
    return images
