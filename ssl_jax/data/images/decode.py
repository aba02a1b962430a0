"""Decoding and augmentation of single images in PIL, with random numbers from a NumPy generator."""

import io
import math
from collections.abc import Mapping
from typing import Any

import numpy as np
from PIL import Image, ImageEnhance, ImageOps

from ssl_jax.data.images import augment as settings_of
from ssl_jax.data.images.augment import centred_box
from ssl_jax.data.images.values import as_uint8
from ssl_jax.errors import UserError

BICUBIC = Image.Resampling.BICUBIC


class Unreadable(Exception):
    """The problem of an image, as the second half of a sentence that begins with its name."""


# Decoding -----------------------------------------------------------------------------------------------------------


def decode(data: bytes, channels: int, draft: tuple[int, int] | None = None, share: float = 1.0) -> Image.Image:
    """Decode an image as PIL "L" (1 channel) or "RGB" (3): EXIF rotation applied, transparency over white, first frame.

    `draft`: a JPEG may be decoded at 1/2, 1/4 or 1/8 if a crop with this share of the area still has this size.
    Raise Unreadable for a damaged image.
    """
    try:
        image = Image.open(io.BytesIO(data))
        if draft is not None and image.format == "JPEG":
            side = max(draft) / math.sqrt(share)
            image.draft("RGB" if channels == 3 else "L", (math.ceil(side), math.ceil(side)))
        image.load()
        if image.mode == "I" and image.format == "PNG":  # PNG has at most 16 bits, which older versions of Pillow widen
            image = Image.fromarray(np.asarray(image).astype(np.uint16))
        return convert(upright(image), channels)
    except Unreadable:
        raise
    except Image.UnidentifiedImageError:
        raise Unreadable(_broken(data) or "is not an image that PIL can read") from None
    except MemoryError:
        raise
    except Exception as error:  # Pillow's parsers raise almost any exception for a damaged file: struct.error, KeyError, ...
        raise Unreadable(_broken(data) or f"cannot be decoded ({error or type(error).__name__})") from None


ORIENTATIONS = {  # EXIF's tag 0x0112 -> the operation that makes the picture upright
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}


def upright(image: Image.Image) -> Image.Image:
    """Return the image rotated according to its EXIF data, or unchanged if they have no orientation or cannot be parsed.

    Only the orientation is read: ImageOps.exif_transpose also rewrites all tags, which fails for one of a wrong type.
    """
    try:
        method = ORIENTATIONS.get(image.getexif().get(0x0112))
    except Exception:  # damaged EXIF data; the picture is valid
        return image
    return image if method is None else image.transpose(method)


def _broken(data: bytes) -> str | None:
    """Return how an encoded image is truncated, from the length that its format declares; None if it is complete."""
    have, want = len(data), None
    if have == 0:
        return "is empty (0 bytes)"
    if data[:4] == b"RIFF" and have >= 8:
        want = int.from_bytes(data[4:8], "little") + 8
    elif data[:2] == b"BM" and have >= 6:
        want = int.from_bytes(data[2:6], "little")
    elif data[:8] == b"\x89PNG\r\n\x1a\n":
        at = 8
        while at + 8 <= have and data[at + 4 : at + 8] != b"IEND":
            at += 12 + int.from_bytes(data[at : at + 4], "big")
        if at + 12 > have:
            return f"is truncated (it breaks off after {have:,} bytes, before the end of its last chunk)"
    elif data[:2] == b"\xff\xd8" and data.rfind(b"\xff\xd9") < 0:
        return f"is truncated (it breaks off after {have:,} bytes, without an end marker)"
    return f"is truncated ({have:,} of {want:,} bytes)" if want is not None and have < want else None


def convert(image: Image.Image, channels: int) -> Image.Image:
    """Return an image of any PIL mode as "L" or "RGB", with transparency over white; raise Unreadable if that fails.

    `values.as_stored` interprets the numbers of modes beyond 8 bits.
    """
    mode = "L" if channels == 1 else "RGB"
    if image.mode.startswith("I") or image.mode == "F":  # 16 bits (I;16), 32 bits, floats
        try:
            return Image.fromarray(as_uint8(np.asarray(image), "the image")).convert(mode)
        except UserError as error:
            raise Unreadable(f"cannot be read: {error}") from None
    if image.mode in ("RGBA", "LA", "PA", "RGBa", "La") or "transparency" in image.info:
        image = image.convert("RGBA")
        image = Image.alpha_composite(Image.new("RGBA", image.size, (255, 255, 255, 255)), image)
    return image if image.mode == mode else image.convert(mode)


def from_array(array: np.ndarray, channels: int) -> Image.Image:
    """Return an array [h, w(, c)], interpreted by `values.as_stored`, as a PIL image; raise Unreadable if that fails."""
    if array.ndim == 2:
        array = array[..., None]
    if array.ndim != 3 or array.shape[2] not in (1, 3, 4) or 0 in array.shape:
        raise Unreadable(f"has shape {array.shape}, expected (height, width, channels)")
    try:
        array = as_uint8(array, "the image")
    except UserError as error:
        raise Unreadable(f"cannot be read: {error}") from None
    return convert(Image.fromarray(array[..., 0] if array.shape[2] == 1 else array), channels)


def stored_image(example: Mapping[str, Any], channels: int) -> Image.Image:
    """Return the image of a source's example, encoded or an array, as a PIL image; raise Unreadable if that fails."""
    stored = example.get("image")
    if stored is None:
        raise Unreadable("has no image")
    return decode(stored, channels) if isinstance(stored, bytes) else from_array(np.asarray(stored), channels)


def evaluation_image(example: Mapping[str, Any], size: tuple[int, int], channels: int, share: float) -> np.ndarray:
    """Return the image of a source's example under the evaluation transform, u8[*size, channels]; may raise Unreadable."""
    array = np.asarray(centre_crop(stored_image(example, channels), size, share), np.uint8)
    return array[..., None] if array.ndim == 2 else array


# Cropping -----------------------------------------------------------------------------------------------------------


def centre_crop(image: Image.Image, size: tuple[int, int], share: float) -> Image.Image:
    """Resize (bicubic, antialiased) so that `size` is `share` of the image in the tighter direction, then crop the centre."""
    width, height = image.size
    if (height, width) == tuple(size):
        return image
    scale = max(size[0] / height, size[1] / width) / share
    scaled = max(size[1], int(width * scale + 1e-6)), max(size[0], int(height * scale + 1e-6))
    left, top = round((scaled[0] - size[1]) / 2), round((scaled[1] - size[0]) / 2)
    if scaled[0] * scaled[1] <= 64 * size[0] * size[1]:
        return image.resize(scaled, BICUBIC).crop((left, top, left + size[1], top + size[0]))
    # 2,000 x 1 pixels would be scaled to gigabytes: resize the crop alone (equal up to the rounding between PIL's two passes)
    x, y = width / scaled[0], height / scaled[1]  # source pixels per scaled pixel
    box = left * x, top * y, min((left + size[1]) * x, width), min((top + size[0]) * y, height)
    return image.resize(size[::-1], BICUBIC, box=box)


def random_box(generator: np.random.Generator, size: tuple[int, int], scale: tuple, ratio: tuple) -> tuple[int, int, int, int]:
    """Return (top, left, height, width), like augment.random_box."""
    height, width = size
    for _ in range(10):
        area = height * width * generator.uniform(*scale)
        aspect = math.exp(generator.uniform(math.log(ratio[0]), math.log(ratio[1])))
        w, h = round(math.sqrt(area * aspect)), round(math.sqrt(area / aspect))
        if 0 < w <= width and 0 < h <= height:
            return int(generator.integers(height - h + 1)), int(generator.integers(width - w + 1)), h, w
    return centred_box(size, ratio)


def augment(
    image: Image.Image, generator: np.random.Generator, settings: settings_of.Augment, size: tuple[int, int], share: float
) -> Image.Image:
    """Crop, flip and RandAugment, in this order; colours follow on the device (colour.py)."""
    crop = settings.crop
    if crop is not None and crop.scale is not None:
        top, left, h, w = random_box(generator, image.size[::-1], crop.scale, crop.ratio)
        image = image.crop((left, top, left + w, top + h)).resize(size[::-1], BICUBIC)
    else:
        image = centre_crop(image, size, share)
        if crop is not None:
            dx, dy = generator.integers(-crop.padding, crop.padding + 1, 2).tolist()
            image = image.crop((dx, dy, dx + size[1], dy + size[0]))  # beyond the border PIL's crop is zero
    if settings.flip and generator.random() < 0.5:
        image = image.transpose(Image.Transpose.FLIP_LEFT_RIGHT)
    if settings.randaugment is not None:
        image = randaugment(image, generator, settings.randaugment)
    return image


# RandAugment --------------------------------------------------------------------------------------------------------


def _enhance(kind):
    return lambda image, level, sign: kind(image).enhance(max(0.1, 1 + sign * 0.9 * level))


def _affine(image: Image.Image, a=1.0, b=0.0, c=0.0, d=0.0, e=1.0, f=0.0) -> Image.Image:
    return image.transform(image.size, Image.Transform.AFFINE, (a, b, c, d, e, f), resample=BICUBIC, fillcolor=_fill(image))


def _fill(image: Image.Image):
    """Return the colour of pixels from outside the image: ImageNet's mean."""
    return 117 if image.mode == "L" else (124, 116, 104)


def _solarize_add(image: Image.Image, level: float, sign: int) -> Image.Image:
    add = min(128, int(level * 110))
    table = [min(255, i + add) if i < 128 else i for i in range(256)]
    return image.point(table * len(image.getbands()))


# name -> (image, level in [0, 1], sign) -> image: timm's increasing set, severities of AutoAugment with the direction corrected
OPERATIONS = {
    "auto_contrast": lambda image, level, sign: ImageOps.autocontrast(image),
    "equalize": lambda image, level, sign: ImageOps.equalize(image),
    "invert": lambda image, level, sign: ImageOps.invert(image),
    "rotate": lambda image, level, sign: image.rotate(sign * 30 * level, resample=BICUBIC, fillcolor=_fill(image)),
    "posterize": lambda image, level, sign: ImageOps.posterize(image, max(1, 4 - int(level * 4))) if level else image,
    "solarize": lambda image, level, sign: ImageOps.solarize(image, 256 - min(256, int(level * 256))),
    "solarize_add": _solarize_add,
    "color": _enhance(ImageEnhance.Color),
    "contrast": _enhance(ImageEnhance.Contrast),
    "brightness": _enhance(ImageEnhance.Brightness),
    "sharpness": _enhance(ImageEnhance.Sharpness),
    "shear_x": lambda image, level, sign: _affine(image, b=sign * 0.3 * level),
    "shear_y": lambda image, level, sign: _affine(image, d=sign * 0.3 * level),
    "translate_x": lambda image, level, sign: _affine(image, c=sign * 0.45 * level * image.size[0]),
    "translate_y": lambda image, level, sign: _affine(image, f=sign * 0.45 * level * image.size[1]),
}


def randaugment(image: Image.Image, generator: np.random.Generator, settings: settings_of.RandAugment) -> Image.Image:
    """Apply RandAugment (Cubuk et al. 2020, algorithm 1) with timm's magnitudes from N(magnitude, std), clipped to [0, 10]."""
    names = list(OPERATIONS)
    for choice in generator.integers(len(names), size=settings.layers):
        applied = generator.random() < settings.prob
        level = float(np.clip(generator.normal(settings.magnitude, settings.std), 0, 10)) / 10
        sign = -1 if generator.random() < 0.5 else 1
        if applied:
            image = OPERATIONS[names[choice]](image, level, sign)
    return image
