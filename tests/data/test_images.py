"""Decoding and augmentation on the host, normalisation, and the settings of the config's section `data`."""

import jax
import numpy as np
import pytest
from ml_collections import ConfigDict
from PIL import Image

from ssl_jax import randomness
from ssl_jax.data import build
from ssl_jax.data.images import augment, decode
from ssl_jax.data.images.normalization import pixel_moments
from ssl_jax.data.pipeline import Stream
from ssl_jax.errors import UserError


def picture(width, height, seed=0, low=0, high=256):
    return Image.fromarray(np.random.default_rng(seed).integers(low, high, (height, width, 3), np.uint8))


@pytest.fixture
def npz(tmp_path):
    images = np.random.default_rng(0).integers(0, 200, (40, 8, 8, 3), np.uint8)
    images[..., 1] //= 2
    np.savez(tmp_path / "a.npz", image=images, label=np.arange(40) % 2)
    return f"npz:{tmp_path / 'a.npz'}"


def data(npz, **keys):
    return build("images", ConfigDict(dict(train=npz, batch_size=8, holdout=0.0) | keys))


def first_batch(dataset, seed=0):
    stream = Stream(dataset, batch_size=8, seed=seed)
    return jax.jit(stream.on_device)(stream.resident, stream.host_batch(0), randomness.stream(seed, "augment", 0))


# Normalisation ------------------------------------------------------------------------------------------------------


def test_statistics_are_those_of_the_pixels():
    images = np.random.default_rng(0).integers(0, 256, (3000, 4, 5, 3), np.uint8)
    images[..., 2] = 7
    mean, std = pixel_moments(images)
    np.testing.assert_allclose(mean, (images / 255).mean((0, 1, 2)), rtol=1e-12)
    np.testing.assert_allclose(std, [*(images / 255).std((0, 1, 2))[:2], 1.0], rtol=1e-12)
    np.testing.assert_allclose(pixel_moments(np.float32(images / 255))[0], mean, rtol=1e-6)


@pytest.mark.parametrize(
    ("normalize", "mean", "std"),
    [
        ("imagenet", (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)),
        ("half", (0.5,) * 3, (0.5,) * 3),
        (None, (0.0,) * 3, (1.0,) * 3),
        (((0.1, 0.2, 0.3), (1.0, 2.0, 3.0)), (0.1, 0.2, 0.3), (1.0, 2.0, 3.0)),
    ],
)
def test_normalisation_follows_its_definition(npz, normalize, mean, std):
    dataset = data(npz, normalize=normalize)
    assert dataset.info.mean == mean and dataset.info.std == std
    batch = first_batch(dataset)
    raw = dataset.arrays["image"][batch["index"]]
    np.testing.assert_allclose(batch["image"], (raw / 255 - mean) / std, atol=2e-6)
    assert batch["image"].dtype == np.float32 and batch["label"].dtype == np.int32
    assert dataset.info.shapes["image"].shape == batch["image"].shape[1:]


def test_the_test_set_is_normalised_with_the_training_set(npz, tmp_path):
    np.savez(tmp_path / "b.npz", image=np.zeros((4, 8, 8, 3), np.uint8))
    section = dict(train=npz, test=f"npz:{tmp_path / 'b.npz'}", batch_size=8)
    train, test = build("images", section), build("images", section, split="test", train=False)
    assert test.info.mean == train.info.mean and test.info.std == train.info.std and test.size == 4
    whole = np.asarray(train.on_device(train.arrays, None)["image"])
    np.testing.assert_allclose(whole.mean((0, 1, 2)), 0, atol=1e-5)
    np.testing.assert_allclose(whole.std((0, 1, 2)), 1, atol=1e-5)


def test_float_images_are_taken_as_they_are(tmp_path):
    images = np.random.default_rng(0).random((8, 4, 4, 1)).astype(np.float32)
    np.savez(tmp_path / "f.npz", image=images)
    dataset = data(f"npz:{tmp_path / 'f.npz'}", normalize=None)
    np.testing.assert_allclose(dataset.on_device({"image": images}, None)["image"], images, atol=1e-7)


def test_evaluation_is_never_augmented(npz):
    keys = dict(crop=dict(padding=2), flip=True, erase=dict(prob=1.0))
    train = data(npz, augment=keys)
    plain = build("images", dict(train=npz, batch_size=8, holdout=0.0, augment=keys), train=False)
    assert not np.array_equal(first_batch(train)["image"], first_batch(plain)["image"])
    np.testing.assert_array_equal(
        plain.on_device(plain.arrays, None)["image"],
        plain.on_device(plain.arrays, jax.random.split(jax.random.key(0), 40))["image"],
    )


# Cropping on the host -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("size", [(500, 375), (224, 224), (100, 333), (20, 20)])
def test_centre_crop_is_that_of_the_papers(size):
    """Resize the shorter side to 256, bicubic, then cut 224 x 224 out of the middle."""
    image = picture(*size)
    result = decode.centre_crop(image, (224, 224), 0.875)
    if size == (224, 224):
        assert result is image
        return
    width, height = size
    short = 256
    resized = (short, int(short * height / width)) if width <= height else (int(short * width / height), short)
    expected = image.resize(resized, Image.Resampling.BICUBIC)
    left, top = round((resized[0] - 224) / 2), round((resized[1] - 224) / 2)
    np.testing.assert_array_equal(result, expected.crop((left, top, left + 224, top + 224)))


def test_host_and_device_cut_the_same_random_boxes():
    """Given its box, a crop on the host is the crop on the device up to PIL's rounding."""
    image, size = picture(50, 40, low=90, high=160), (16, 20)
    settings = augment.Augment(crop=augment.Crop(scale=(0.3, 0.9)))
    for seed in range(5):
        result = decode.augment(image, np.random.default_rng(seed), settings, size, 1.0)
        box = decode.random_box(np.random.default_rng(seed), (40, 50), (0.3, 0.9), (3 / 4, 4 / 3))
        expected = jax.jit(augment.resize, static_argnums=(2, 3))(np.asarray(image), box, size, 255.0)
        assert np.abs(np.asarray(result, np.float32) - expected).max() < 1.6


def test_host_augmentation_is_drawn_from_its_generator_alone():
    settings = augment.Augment(crop=augment.Crop(scale=(0.2, 1.0)), flip=True, randaugment=augment.RandAugment())
    one, other, third = (
        np.asarray(decode.augment(picture(40, 30), np.random.default_rng(seed), settings, (16, 16), 1.0)) for seed in (1, 1, 2)
    )
    np.testing.assert_array_equal(one, other)
    assert (one != third).any()


def test_host_shift_and_flip():
    image = picture(6, 6)
    settings = augment.Augment(crop=augment.Crop(padding=1), flip=True)
    padded = np.pad(np.asarray(image), ((1, 1), (1, 1), (0, 0)))
    windows = [padded[y : y + 6, x : x + 6] for y in range(3) for x in range(3)]
    seen = set()
    for seed in range(200):
        result = np.asarray(decode.augment(image, np.random.default_rng(seed), settings, (6, 6), 1.0))
        (which,) = [k for k, w in enumerate([*windows, *[w[:, ::-1] for w in windows]]) if (w == result).all()]
        seen.add(which)
    assert len(seen) == 18


# RandAugment --------------------------------------------------------------------------------------------------------

GREY = Image.fromarray(np.arange(256, dtype=np.uint8).reshape(16, 16))


@pytest.mark.parametrize(
    "name", [n for n in decode.OPERATIONS if n not in ("auto_contrast", "equalize", "invert", "posterize")]
)
def test_operations_at_level_zero_change_nothing(name):
    image = picture(12, 10)
    expected = np.asarray(image)
    np.testing.assert_array_equal(decode.OPERATIONS[name](image, 0.0, 1), expected)


def test_operations_follow_their_definitions():
    """Cubuk et al. 2019 (AutoAugment), table 6, with timm's increasing severities, at magnitude 9 of 10."""
    apply = lambda name, image=GREY, sign=1: np.asarray(decode.OPERATIONS[name](image, 0.9, sign)).astype(int)
    values = np.asarray(GREY).astype(int)
    np.testing.assert_array_equal(apply("invert"), 255 - values)
    np.testing.assert_array_equal(apply("posterize"), values & 0b10000000)  # 4 - int(3.6) = 1 bit is kept
    np.testing.assert_array_equal(apply("solarize"), np.where(values < 26, values, 255 - values))  # 256 - int(0.9 * 256)
    np.testing.assert_array_equal(apply("solarize_add"), np.where(values < 128, np.minimum(values + 99, 255), values))
    np.testing.assert_allclose(apply("brightness", sign=-1), values * 0.19, atol=1)  # 1 - 0.9 * 0.9
    np.testing.assert_allclose(apply("brightness"), np.minimum(values * 1.81, 255), atol=1)
    flat = picture(20, 20)
    grey = np.asarray(flat.convert("L")).mean()
    washed = apply("contrast", flat, -1)
    np.testing.assert_allclose(washed, grey + 0.19 * (np.asarray(flat) - grey), atol=2)


def test_geometry_moves_turns_and_shears():
    image = Image.new("RGB", (40, 40))
    image.paste((255, 255, 255), (18, 18, 22, 22))

    def centre(name, sign, level=0.5):
        white = (np.asarray(decode.OPERATIONS[name](image, level, sign)) > 200).all(-1)
        return np.argwhere(white).mean(0) - 19.5

    np.testing.assert_allclose(centre("translate_x", 1), [0, -9], atol=0.01)  # 0.45 * 0.5 * 40 pixels
    np.testing.assert_allclose(centre("translate_x", -1), [0, 9], atol=0.01)
    np.testing.assert_allclose(centre("translate_y", 1), [-9, 0], atol=0.01)
    np.testing.assert_allclose(centre("rotate", 1), [0, 0], atol=0.3)
    np.testing.assert_allclose(centre("shear_x", 1, 1.0), [0, -0.3 * 19.5], atol=0.6)
    corner = np.asarray(decode.OPERATIONS["rotate"](image, 1.0, 1))[0, 0]
    assert tuple(corner) == (124, 116, 104)


def test_randaugment_applies_each_layer_half_of_the_time():
    image = picture(16, 16)
    generator = np.random.default_rng(0)
    same = [
        (np.asarray(decode.randaugment(image, generator, augment.RandAugment())) == np.asarray(image)).all() for _ in range(400)
    ]
    # both layers are left out with probability 1/4; autocontrast of a picture that uses all levels changes nothing either
    assert 0.2 < np.mean(same) < 0.45
    never = decode.randaugment(image, generator, augment.RandAugment(prob=0.0))
    assert never is image


def test_randaugment_works_on_grey_images_and_runs_on_the_host(tmp_path):
    images = np.random.default_rng(0).integers(0, 256, (8, 12, 12), np.uint8)
    np.savez(tmp_path / "g.npz", image=images)
    dataset = data(f"npz:{tmp_path / 'g.npz'}", augment=dict(randaugment=dict(prob=1.0, layers=8), flip=True))
    assert dataset.placement == "host" and first_batch(dataset)["image"].shape == (8, 12, 12, 1)


def test_fast_decode_keeps_size_and_looks_alike(tmp_path):
    smooth = Image.fromarray(np.linspace(0, 255, 640 * 480).reshape(480, 640).astype(np.uint8)).convert("RGB")
    smooth.save(tmp_path / "a.jpg", quality=95)
    section = dict(train=f"folder:{tmp_path}", batch_size=1, image_size=64, normalize=None, holdout=0.0)
    exact, fast = (build("images", section | dict(fast_decode=f), train=False).example(0, None)["image"] for f in (False, True))
    assert exact.shape == fast.shape == (64, 64, 3) and np.abs(exact.astype(int) - fast).max() < 4


# Settings -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("keys", "told"),
    [
        (dict(augment=dict(flipp=True)), "unknown key data.augment.flipp; did you mean data.augment.flip?"),
        (dict(imagesize=8), "did you mean data.image_size?"),
        (dict(augment=dict(crop=dict(scale=(0.0, 1.0)))), "data.augment.crop.scale"),
        (dict(holdout=1.0), "data.holdout=1.0: must lie in [0, 1)"),
        (dict(image_size=0), "data.image_size=0"),
        (dict(image_size=(8, 8, 8)), "data.image_size"),
        (dict(channels=2), "must be 1 or 3"),
        (dict(normalize="imagnet"), "data.normalize='imagnet'"),
        (dict(normalize=((0.5,), (0.0,))), "expected (means, stds)"),
        (dict(normalize=((0.5, 0.5), (0.5, 0.5))), "has 2 channels, but the images have 3"),
        (dict(normalize="imagenet", channels=1), "has 3 channels, but the images have 1"),
        (dict(placement="gpu"), "data.placement='gpu'"),
        (dict(placement="device", augment=dict(randaugment=dict())), "randaugment works on the host"),
        (dict(on_bad_example="ignore"), "data.on_bad_example='ignore'"),
        (dict(batch_size="64"), "expected int, not str"),
        (dict(workers=-1), "data.workers=-1"),
        (dict(eval_crop=0.0), "data.eval_crop"),
    ],
)
def test_wrong_settings_are_told_in_one_line(npz, keys, told):
    with pytest.raises(UserError) as caught:
        data(npz, **keys)
    assert told in str(caught.value) and "\n" not in str(caught.value)


def test_another_size_and_other_channels(npz):
    dataset = data(npz, image_size=(6, 10))
    assert first_batch(dataset)["image"].shape == (8, 6, 10, 3)
    grey = data(npz, channels=1)
    batch = first_batch(grey)
    assert batch["image"].shape == (8, 8, 8, 1) and grey.placement == "host"
