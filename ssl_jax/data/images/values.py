"""The interpretation of an image array's numbers: one rule for all external arrays."""

import numpy as np

from ssl_jax.errors import UserError


def as_stored(images: np.ndarray, name: str) -> np.ndarray:
    """Return images as u8 in [0, 255] or f32 in [0, 1], by their dtype and range.

    Unchanged: u8; floats in [0, 1]. Converted: true and false become 255 and 0; u16 is divided by 65,535; other integers
    within 0 to 255 become u8. Everything else raises UserError, which begins with `name`, because the scale would be a guess:
    also u16 with a maximum of at most 255, and other integers with a maximum of at most 1.
    """
    if images.dtype == np.uint8:
        return images
    if images.dtype == bool:
        return images.astype(np.uint8) * np.uint8(255)
    if images.size == 0:
        return images.astype(np.uint8)
    if np.issubdtype(images.dtype, np.floating):
        good = np.isfinite(images) & (images >= 0) & (images <= 1)
        if not good.all():
            raise UserError(f"{name}: {_example(images, good)} is {_worst(images, good)}; expected uint8 or floats in [0, 1]")
        return images.astype(np.float32, copy=False)
    if not np.issubdtype(images.dtype, np.integer):
        raise UserError(f"{name}: image is {images.dtype}, expected uint8 or floats in [0, 1]")
    low, high = int(images.min()), int(images.max())
    if images.dtype == np.uint16:
        if 0 < high <= 255:
            raise UserError(f"{name}: image is uint16, but its highest value is {high}; convert 8-bit values to uint8")
        return images.astype(np.float32) / np.float32(65535)
    if low < 0 or high > 255 or high == 1:
        raise UserError(
            f"{name}: image is {images.dtype} with values from {low} to {high}; expected 0 to 255, uint16 or floats in [0, 1]"
        )
    return images.astype(np.uint8)


def as_unit_range(images: np.ndarray, name: str = "image") -> np.ndarray:
    """Return images as f32 in [0, 1] by the rule of `as_stored`, which may raise UserError."""
    images = as_stored(np.asarray(images), name)
    return images.astype(np.float32) / np.float32(255) if images.dtype == np.uint8 else images


def as_uint8(images: np.ndarray, name: str = "image") -> np.ndarray:
    """Return images as u8 by the rule of `as_stored`, which may raise UserError."""
    images = as_stored(np.asarray(images), name)
    return images if images.dtype == np.uint8 else np.round(images * 255).astype(np.uint8)


def _example(images: np.ndarray, good: np.ndarray) -> str:
    """Return "example 3" for the first image with a value out of range, "a value" of a single image."""
    return f"a value of example {int(np.argmin(good.all((1, 2, 3)))):,}" if images.ndim == 4 else "a value"


def _worst(images: np.ndarray, good: np.ndarray) -> str:
    return f"{float(images.reshape(-1)[int(np.argmin(good.reshape(-1)))]):g}"
