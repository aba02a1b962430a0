"""What the numbers of an array mean, and files whose EXIF data are damaged."""

import io
import struct

import numpy as np
import pytest
from PIL import Image

from ssl_jax.data.images import decode
from ssl_jax.data.images.values import as_stored, as_uint8, as_unit_range
from ssl_jax.data.sources import load_source
from ssl_jax.errors import UserError

BYTES = np.random.default_rng(0).integers(0, 256, (3, 4, 5, 1), np.uint8)
BYTES[0, 0, :2, 0] = 0, 255


@pytest.mark.parametrize("dtype", [np.uint8, np.int16, np.uint32, np.int32, np.int64])
def test_integers_from_0_to_255_are_bytes(dtype):
    np.testing.assert_array_equal(as_unit_range(BYTES.astype(dtype)), BYTES.astype(np.float32) / np.float32(255))
    assert as_unit_range(BYTES.astype(dtype)).dtype == np.float32 and as_stored(BYTES.astype(dtype), "x").dtype == np.uint8
    np.testing.assert_array_equal(as_uint8(BYTES.astype(dtype)), BYTES)


def test_sixteen_bits_floats_and_truth_values():
    np.testing.assert_allclose(as_unit_range(BYTES.astype(np.uint16) * 257), BYTES / 255, rtol=1e-6)
    np.testing.assert_array_equal(as_uint8(BYTES.astype(np.uint16) * 257), BYTES)
    for dtype in (np.float16, np.float32, np.float64):
        np.testing.assert_array_equal(
            as_unit_range((BYTES / 255).astype(dtype)), (BYTES / 255).astype(dtype).astype(np.float32)
        )
    np.testing.assert_array_equal(as_unit_range(BYTES > 100), (BYTES > 100).astype(np.float32))
    assert as_unit_range(np.zeros((2, 3, 3, 1), np.uint16)).max() == 0  # black in any scale


@pytest.mark.parametrize(
    ("images", "message"),
    [
        (BYTES.astype(np.uint16), "images.npz: image is uint16, but its highest value is 255; convert 8-bit values to uint8"),
        (BYTES.astype(np.int64) * 16, "image is int64 with values from 0 to 4080; expected 0 to 255"),
        (BYTES.astype(np.int32) - 1, "image is int32 with values from -1 to "),
        ((BYTES > 100).astype(np.int64), "image is int64 with values from 0 to 1; expected 0 to 255"),
        (BYTES.astype(np.float32), "a value of example 0 is "),
        (np.where(np.arange(3)[:, None, None, None] == 1, -0.5, BYTES / 255), "a value of example 1 is -0.5; expected uint8"),
        (np.full((2, 2, 2, 1), np.inf), "a value of example 0 is inf"),
        (BYTES.astype(complex), "image is complex128, expected uint8 or floats"),
    ],
)
def test_a_scale_is_never_guessed(images, message):
    for convert in (as_stored, as_unit_range, as_uint8):
        with pytest.raises(UserError) as caught:
            convert(images, "images.npz")
        assert message in str(caught.value)


@pytest.mark.parametrize("dtype", [np.int64, np.int32, np.uint16])
def test_npz_images_of_any_integer_are_those_of_bytes(tmp_path, dtype):
    scale = 257 if dtype == np.uint16 else 1
    np.savez(tmp_path / "a.npz", image=BYTES.astype(dtype) * dtype(scale))
    stored = load_source(f"npz:{tmp_path / 'a.npz'}").arrays["image"]
    np.testing.assert_array_equal(as_uint8(stored), BYTES)
    np.testing.assert_array_equal(np.asarray(decode.from_array(stored[0], 1)), BYTES[0, :, :, 0])


def test_an_array_of_another_scale_is_no_picture():
    with pytest.raises(decode.Unreadable, match="cannot be read: the image: image is int64 with values"):
        decode.from_array(BYTES[0].astype(np.int64) * 100, 1)


@pytest.mark.parametrize(
    ("pixels", "shown"),
    [
        (BYTES[0, ..., 0].astype(np.uint16) * 257, BYTES[0, ..., 0]),
        (BYTES[0, ..., 0].astype(np.int32), BYTES[0, ..., 0]),
        ((BYTES[0, ..., 0] / 255).astype(np.float32), BYTES[0, ..., 0]),
        (BYTES[0, ..., 0].astype(np.int32) * 100, "the image: image is int32 with values from 0 to 25500"),
        (BYTES[0, ..., 0].astype(np.float32), "the image: a value is "),
        (BYTES[0, ..., 0].astype(np.uint16), "image is uint16, but its highest value is 255"),
    ],
)
def test_tiff_files_of_more_than_eight_bits(pixels, shown):
    """Pillow itself clips 32-bit and float images to 0 ... 255: one in [0, 1] would come out black."""
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, "TIFF")
    if isinstance(shown, str):
        with pytest.raises(decode.Unreadable) as caught:
            decode.decode(buffer.getvalue(), 1)
        assert shown in str(caught.value)
    else:
        np.testing.assert_array_equal(np.asarray(decode.decode(buffer.getvalue(), 1)), shown)
        assert decode.decode(buffer.getvalue(), 3).mode == "RGB"


# EXIF -----------------------------------------------------------------------------------------------------------------

ORIENTATION, RESOLUTION_UNIT = 0x0112, 0x0128


def jpeg(exif: bytes) -> tuple[bytes, np.ndarray]:
    """A JPEG, 16 wide and 8 high and dark on its left, with these EXIF data; and its pixels."""
    image = Image.new("L", (16, 8), 250)
    image.paste(10, (0, 0, 8, 8))
    buffer = io.BytesIO()
    image.save(buffer, "JPEG", quality=98)
    data = buffer.getvalue()
    marker = b"\xff\xe1" + struct.pack(">H", len(exif) + 2) + exif
    return data[:2] + marker + data[2:], np.asarray(Image.open(buffer))


def tags(*entries: tuple[int, int, int, bytes], extra: bytes = b"") -> bytes:
    """EXIF data of (tag, type, count, four bytes of value or offset)."""
    body = b"".join(struct.pack("<HHI", tag, kind, count) + value for tag, kind, count, value in entries)
    return b"Exif\0\0II*\0" + struct.pack("<IH", 8, len(entries)) + body + struct.pack("<I", 0) + extra


TURN_RIGHT = (ORIENTATION, 3, 1, struct.pack("<HH", 6, 0))
DAMAGED = {  # name: (EXIF data, whether the picture is turned)
    "sound": (tags(TURN_RIGHT), True),
    "a tag of a wrong type": (
        tags(TURN_RIGHT, (RESOLUTION_UNIT, 5, 1, struct.pack("<I", 38)), extra=struct.pack("<II", 2, 1)),
        True,
    ),
    "a rational with the denominator zero": (
        tags(TURN_RIGHT, (0x011A, 5, 1, struct.pack("<I", 38)), extra=struct.pack("<II", 2, 0)),
        True,
    ),
    "a value beyond the end": (tags(TURN_RIGHT, (0x010E, 2, 9999, struct.pack("<I", 60_000))), True),
    "an orientation as text": (tags((ORIENTATION, 2, 4, b"six\0")), False),
    "an orientation that does not exist": (tags((ORIENTATION, 3, 1, struct.pack("<HH", 9, 0))), False),
    "two orientations": (tags((ORIENTATION, 3, 2, struct.pack("<HH", 6, 6))), True),  # the first counts
    "no TIFF header": (b"Exif\0\0garbage that is no TIFF", False),
    "a directory that breaks off": (tags(TURN_RIGHT)[:20], False),
    "nothing": (b"Exif\0\0", False),
}


@pytest.mark.parametrize("name", DAMAGED)
def test_a_picture_with_damaged_exif_is_shown(name):
    exif, turned = DAMAGED[name]
    data, pixels = jpeg(exif)
    shown = np.asarray(decode.decode(data, 1))
    np.testing.assert_array_equal(shown, np.rot90(pixels, -1) if turned else pixels)


@pytest.mark.parametrize("orientation", range(1, 9))
def test_every_orientation_is_pillows(orientation):
    from PIL import ImageOps

    data, _ = jpeg(tags((ORIENTATION, 3, 1, struct.pack("<HH", orientation, 0))))
    expected = ImageOps.exif_transpose(Image.open(io.BytesIO(data)))
    np.testing.assert_array_equal(np.asarray(decode.decode(data, 1)), np.asarray(expected))


# Shapes ---------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("size", [(2000, 1), (1, 3000), (5000, 3)])
def test_a_long_thin_picture_takes_little_memory(size):
    """Its centre is cut before it is scaled: 2,000 x 1 pixels scaled to a height of 256 would be 512,000 x 256."""
    import resource

    image = Image.fromarray(np.random.default_rng(0).integers(0, 256, (size[1], size[0], 3), np.uint8))
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    assert decode.centre_crop(image, (224, 224), 0.875).size == (224, 224)
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 50_000  # kilobytes


def test_the_crop_alone_is_the_crop_of_the_whole():
    """Both ways of cutting a thin picture's centre give it, up to the rounding between the two passes of PIL's resize."""
    smooth = np.linspace(0, 255, 300)[None, :, None] * np.ones((6, 1, 3))
    image = Image.fromarray(smooth.astype(np.uint8))
    found = np.asarray(decode.centre_crop(image, (48, 48), 0.875)).astype(int)
    scale = 48 / 6 / 0.875
    whole = image.resize((int(300 * scale), int(6 * scale)), Image.Resampling.BICUBIC)
    left, top = round((whole.width - 48) / 2), round((whole.height - 48) / 2)
    expected = np.asarray(whole.crop((left, top, left + 48, top + 48))).astype(int)
    assert np.abs(found - expected).max() <= 1
