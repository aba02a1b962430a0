"""Mean and standard deviation of pixels in [0, 1], by channel: published ones, given ones, or those of the training images."""

import functools
import math
from collections.abc import Callable
from typing import Any

import numpy as np

from ssl_jax.data.images import decode
from ssl_jax.data.sources import BadExample, Source
from ssl_jax.errors import UserError

Moments = tuple[tuple[float, ...], tuple[float, ...]]  # means, standard deviations

NORMALIZATIONS: dict[str, Moments] = {
    "imagenet": ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225)),
    "half": ((0.5,), (0.5,)),
    # of CLIP's training images (Radford et al. 2021, published with its code)
    "clip": ((0.48145466, 0.4578275, 0.40821073), (0.26862954, 0.26130258, 0.27577711)),
}
SAMPLE = 2048  # number of images decoded for the moments of a source without arrays


def moments(normalize: str | tuple | None, channels: int, of_training: Callable[[], Moments]) -> Moments:
    """Return the moments that `normalize` names, one mean and deviation per channel; raise UserError for an invalid value."""
    if normalize is None:
        return (0.0,) * channels, (1.0,) * channels
    if normalize == "dataset":
        return of_training()
    mean, std = NORMALIZATIONS[normalize] if isinstance(normalize, str) else _pair(normalize)
    if len(mean) not in (1, channels) or len(std) not in (1, channels):
        raise UserError(
            f"data.normalize={normalize!r}: has {max(len(mean), len(std))} channels, but the images have {channels}"
        )
    return tuple(map(float, mean * (channels // len(mean)))), tuple(map(float, std * (channels // len(std))))


def _pair(value: Any) -> tuple[tuple, tuple]:
    try:
        mean, std = (tuple(v) if isinstance(v, tuple | list) else (v,) for v in value)
        good = all(math.isfinite(m) for m in mean) and all(math.isfinite(s) and s > 0 for s in std)
    except (TypeError, ValueError):
        good = False
    if not good:
        raise UserError(f"data.normalize={value}: expected (means, stds) such as ((0.5, 0.5, 0.5), (0.5, 0.5, 0.5))")
    return mean, std


@functools.lru_cache(maxsize=8)
def source_moments(source: Source, size: tuple[int, int], channels: int, share: float) -> Moments:
    """Return the moments of a source: of all pixels if it has arrays with this number of channels, else of SAMPLE images.

    The sample is evenly spaced, under the evaluation transform (`size`, `share`); unreadable images are skipped. Raise
    UserError if no image can be read.
    """
    if source.arrays is not None and source.arrays["image"].shape[-1] == channels:
        return pixel_moments(source.arrays["image"])
    images = []
    for index in np.unique(np.linspace(0, len(source) - 1, min(len(source), SAMPLE)).astype(int)):
        try:
            images.append(decode.evaluation_image(source[int(index)], size, channels, share))
        except (decode.Unreadable, BadExample):
            continue  # reported or skipped when the stream reads it
    if not images:
        raise UserError(f"{source.name}: none of its images can be read; run `ssl-jax data inspect` on it")
    return pixel_moments(np.stack(images))


def pixel_moments(images: np.ndarray) -> Moments:
    """Return the moments of images [N, H, W, C], u8 or f32 in [0, 1], without a float copy.

    A constant channel has deviation 1.
    """
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
