"""Augmentation in the jitted step, against definitions written out with NumPy loops and against PIL."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from PIL import Image

from ssl_jax import randomness
from ssl_jax.data.images import augment, decode
from ssl_jax.data.images.augment import Augment, Crop, Erase, Mix
from ssl_jax.errors import UserError


def keys(n, seed=0):
    return randomness.example_keys(jax.random.key(seed), jnp.arange(n))


@functools.partial(jax.jit, static_argnums=(1, 2, 3))
def boxes_of(keys, size, scale, ratio):
    return jax.vmap(lambda key: augment.random_box(key, size, scale, ratio))(keys)


resize = jax.jit(augment.resize, static_argnames=("size", "high"))


def pixels(*shape, seed=0):
    return np.random.default_rng(seed).integers(0, 256, shape, np.uint8)


# Resizing -----------------------------------------------------------------------------------------------------------


def kernel(x):
    """Keys (1981), a = -1/2."""
    x = abs(x)
    if x < 1:
        return 1.5 * x**3 - 2.5 * x**2 + 1
    return -0.5 * x**3 + 2.5 * x**2 - 4 * x + 2 if x < 2 else 0.0


def resized(line, size):
    """One line of numbers resized with the cubic kernel, stretched where the line shrinks; ends are renormalised."""
    scale = len(line) / size
    stretch = max(scale, 1.0)
    result = []
    for i in range(size):
        centre = (i + 0.5) * scale
        weights = [kernel((j + 0.5 - centre) / stretch) for j in range(len(line))]
        result.append(sum(w * v for w, v in zip(weights, line, strict=True)) / sum(weights))
    return np.array(result)


def resized_image(image, size):
    columns = np.array([[resized(image[y, :, c], size[1]) for c in range(image.shape[2])] for y in range(image.shape[0])])
    columns = columns.transpose(0, 2, 1)
    return np.array([[resized(columns[:, x, c], size[0]) for c in range(image.shape[2])] for x in range(size[1])]).transpose(
        2, 0, 1
    )


@pytest.mark.parametrize("size", [(7, 9), (20, 31), (15, 4)])
@pytest.mark.parametrize("box", [(0, 0, 15, 18), (3, 5, 11, 8), (14, 17, 1, 1)])
def test_a_resized_crop_is_the_crop_resized(size, box):
    """Bicubic and antialiased, and what lies outside the crop does not bleed in."""
    image = pixels(15, 18, 3)
    top, left, h, w = box
    expected = resized_image(image[top : top + h, left : left + w].astype(np.float64), size)
    actual = resize(image, box, size=size, high=None)
    np.testing.assert_allclose(actual, expected, atol=2e-3)  # f32 arithmetic on values up to 255


@pytest.mark.parametrize("box", [(0, 0, 40, 50), (3, 5, 21, 38), (10, 2, 9, 9)])
@pytest.mark.parametrize("size", [(16, 16), (24, 20)])
def test_a_resized_crop_is_that_of_pil(size, box):
    image = 90 + pixels(40, 50, 3) // 4  # PIL clips to [0, 255] between its passes too; here nothing overshoots
    top, left, h, w = box
    expected = np.asarray(Image.fromarray(image[top : top + h, left : left + w]).resize(size[::-1], Image.Resampling.BICUBIC))
    difference = np.abs(np.asarray(resize(image, box, size=size, high=255.0)) - expected)
    assert difference.max() < 1.6 and difference.mean() < 0.4  # PIL rounds to whole levels after each of two passes


@pytest.mark.parity
@pytest.mark.parametrize("size", [(16, 16), (64, 60)])
def test_a_resized_crop_is_that_of_torch(size):
    torch = pytest.importorskip("torch")
    image = pixels(40, 50, 3)
    batch = torch.from_numpy(image.astype(np.float32)).permute(2, 0, 1)[None]
    expected = torch.nn.functional.interpolate(batch, size=size, mode="bicubic", antialias=True, align_corners=False)
    actual = resize(image, (0, 0, 40, 50), size=size, high=None)
    np.testing.assert_allclose(actual, expected[0].permute(1, 2, 0), atol=2e-3)


def test_centre_crop_leaves_the_right_size_alone_and_cuts_the_middle():
    images = jnp.asarray(pixels(2, 8, 8, 1))
    assert augment.centre_crop(images, (8, 8), 0.875, 255.0) is images
    image = np.zeros((1, 32, 64, 1), np.uint8)
    image[:, 12:20, 28:36] = 255
    crop = jax.jit(lambda image: augment.centre_crop(image, (16, 16), 0.5, 255.0))
    cut = np.asarray(crop(image))[0, ..., 0]  # no scaling: 16 is half of 32
    np.testing.assert_allclose(cut[4:12, 4:12], 255, atol=1e-2)
    assert cut.sum() == pytest.approx(255 * 64, rel=1e-4)


# Random operations --------------------------------------------------------------------------------------------------


def test_flip_mirrors_half_of_the_images():
    images = pixels(400, 3, 4, 2)
    flipped = np.asarray(augment.flip(jnp.asarray(images), keys(400)))
    mirrored = np.array([(f == i[:, ::-1]).all() for f, i in zip(flipped, images, strict=True)])
    kept = np.array([(f == i).all() for f, i in zip(flipped, images, strict=True)])
    assert (mirrored ^ kept).all() and 150 < mirrored.sum() < 250  # 5 standard deviations


def test_shift_moves_by_every_offset_equally_often_and_fills_with_zeros():
    n, padding = 900, 1
    images = pixels(n, 4, 5, 1)
    shifted = np.asarray(augment.shift(jnp.asarray(images), keys(n), padding))
    counts = {}
    for image, result in zip(images, shifted, strict=True):
        padded = np.zeros((6, 7, 1), np.uint8)
        padded[1:5, 1:6] = image
        matches = [(y, x) for y in range(3) for x in range(3) if (padded[y : y + 4, x : x + 5] == result).all()]
        assert len(matches) == 1
        counts[matches[0]] = counts.get(matches[0], 0) + 1
    assert len(counts) == 9 and all(55 < count < 150 for count in counts.values())  # 100 expected, 5 standard deviations


@pytest.mark.parametrize("size", [(28, 28), (24, 40)])
def test_random_boxes_are_of_the_wanted_area_and_ratio(size):
    scale, ratio = (0.2, 0.8), (3 / 4, 4 / 3)
    boxes = np.asarray(boxes_of(keys(2000), size, scale, ratio))
    top, left, h, w = boxes.T
    assert (top >= 0).all() and (left >= 0).all() and (top + h <= size[0]).all() and (left + w <= size[1]).all()
    area = h * w / (size[0] * size[1])
    assert area.min() > 0.2 - 0.06 and area.max() < 0.8 + 0.06
    if size[0] == size[1]:  # else large boxes fit less often
        assert abs(area.mean() - 0.5) < 0.03 and abs(np.log(w / h).mean()) < 0.03
    generator = np.random.default_rng(0)
    rejected = np.array([decode.random_box(generator, size, scale, ratio) for _ in range(2000)])
    np.testing.assert_allclose(boxes.mean(0), rejected.mean(0), atol=0.75)
    assert (w / h).min() > 0.75 - 0.1 and (w / h).max() < 4 / 3 + 0.15
    slack = size[0] - h
    assert abs((top[slack > 3] / slack[slack > 3]).mean() - 0.5) < 0.04


def test_a_box_that_cannot_fit_is_the_largest_centred_one():
    assert boxes_of(keys(1), (4, 40), (0.9, 1.0), (3 / 4, 4 / 3)).tolist() == [[0, 17, 4, 5]]
    assert boxes_of(keys(1), (40, 4), (0.9, 1.0), (3 / 4, 4 / 3)).tolist() == [[17, 0, 5, 4]]


def test_random_resized_crop_resizes_its_own_random_box():
    images, size = pixels(6, 12, 15, 3), (8, 7)
    crops = jax.jit(lambda i, k: augment.random_resized_crop(i, k, size, (0.2, 0.9), (0.7, 1.5), 255.0))(images, keys(6))
    boxes = boxes_of(keys(6), (12, 15), (0.2, 0.9), (0.7, 1.5)).tolist()
    assert len({tuple(box) for box in boxes}) == 6
    for image, crop, (top, left, h, w) in zip(images, crops, boxes, strict=True):
        expected = np.clip(resized_image(image[top : top + h, left : left + w].astype(np.float64), size), 0, 255)
        np.testing.assert_allclose(crop, expected, atol=2e-3)


def test_erase_fills_one_box_with_noise():
    settings = Erase(prob=0.5, scale=(0.1, 0.3))
    images = np.full((300, 16, 16, 2), 9.0, np.float32)
    run = jax.jit(augment.erase, static_argnums=2)
    erased = np.asarray(run(images, keys(300), settings))
    touched = (erased != 9.0).any((1, 2, 3))
    assert 105 < touched.sum() < 195
    noise = erased[erased != 9.0]
    assert abs(noise.mean()) < 0.05 and abs(noise.std() - 1) < 0.05
    for image in erased[touched]:
        mask = (image != 9.0).all(-1)
        rows, columns = np.where(mask.any(1))[0], np.where(mask.any(0))[0]
        assert mask[rows[0] : rows[-1] + 1, columns[0] : columns[-1] + 1].all()
        assert mask.sum() == (rows[-1] - rows[0] + 1) * (columns[-1] - columns[0] + 1)
        assert 0.05 < mask.mean() < 0.35
    zeroed = np.asarray(run(images, keys(300), Erase(prob=1.0, fill="zero")))
    assert set(np.unique(zeroed)) == {0.0, 9.0}


def test_operations_draw_from_streams_of_their_own():
    """Switching the flip on moves no crop."""
    images = jnp.asarray(pixels(40, 6, 6, 1))
    run = jax.jit(functools.partial(augment.crop_and_flip, size=(6, 6), share=1.0, high=255.0), static_argnums=2)
    plain = np.asarray(run(images, keys(40), Augment(crop=Crop(padding=2))))
    both = np.asarray(run(images, keys(40), Augment(crop=Crop(padding=2), flip=True)))
    same = (both == plain).all((1, 2, 3)) | (both == plain[:, :, ::-1]).all((1, 2, 3))
    assert same.all() and (both != plain).any()


# Mixup and cutmix ---------------------------------------------------------------------------------------------------

CLASSES = 4


def mixed(settings, count):
    """A batch whose image i is constant i + 1 and whose label is i, mixed `count` times."""
    images = jnp.broadcast_to(jnp.arange(1.0, 5.0)[:, None, None, None], (4, 10, 12, 1))
    batch = {"image": images, "label": jnp.arange(4), "position": jnp.arange(4)}
    run = jax.jit(jax.vmap(lambda key: augment.mix(batch, key, settings, CLASSES)))
    result = run(keys(count))
    np.testing.assert_array_equal(result["position"][0], np.arange(4))
    for image, label in zip(np.asarray(result["image"]), np.asarray(result["label"]), strict=True):
        yield np.asarray(images), image, label


def test_mixup_mixes_images_and_labels_by_the_same_share():
    shares = []
    for images, result, labels in mixed(Mix(cutmix=0.0, mixup=0.8, smoothing=0.0), 60):
        share = labels[0, 0]
        np.testing.assert_allclose(result, share * images + (1 - share) * images[::-1], atol=1e-5)
        np.testing.assert_allclose(labels, share * np.eye(4) + (1 - share) * np.eye(4)[::-1], atol=1e-6)
        shares.append(share)
    # Beta(0.8, 0.8) has mean 1/2 and variance 1 / (4 (2 * 0.8 + 1))
    assert abs(np.mean(shares) - 0.5) < 0.2 and abs(np.var(shares) - 1 / 10.4) < 0.035


def test_cutmix_labels_count_the_pixels():
    areas = []
    for images, result, labels in mixed(Mix(cutmix=1.0, mixup=0.0, smoothing=0.0), 400):
        pasted = result[0, ..., 0] == images[3, 0, 0, 0]
        assert ((result == images) | (result == images[::-1])).all()
        assert labels[0, 3] == pytest.approx(pasted.mean(), abs=1e-6) and labels[0, 0] == pytest.approx(
            1 - pasted.mean(), abs=1e-6
        )
        rows, columns = pasted.any(1), pasted.any(0)
        assert (pasted == rows[:, None] & columns[None]).all()
        areas.append(pasted.mean())
    assert len(set(areas)) > 20
    expected = [cutmix_area(np.random.default_rng(i), 10, 12) for i in range(20000)]
    assert np.mean(areas) == pytest.approx(np.mean(expected), abs=4 * np.std(expected) / len(areas) ** 0.5)
    assert np.std(areas) == pytest.approx(np.std(expected), rel=0.15)


def cutmix_area(random, height, width):
    """The share that one box of Yun et al. 2019 covers, alpha 1: sides sqrt(1 - lambda), whole pixels, cut at the border."""
    share = random.beta(1.0, 1.0)
    covered = 1.0
    for size in (height, width):
        centre, side = random.integers(size), int(size * np.sqrt(1 - share))
        covered *= (min(centre + side // 2, size) - max(centre - side // 2, 0)) / size
    return covered


def test_mix_switches_and_smooths():
    kinds = []
    for images, result, labels in mixed(Mix(prob=0.8), 200):
        np.testing.assert_allclose(labels.sum(1), 1, atol=1e-6)
        assert labels.min() == pytest.approx(0.1 / 4, abs=1e-6)
        if (result == images).all():
            kinds.append("none")
        else:
            kinds.append("cutmix" if ((result == images) | (result == images[::-1])).all() else "mixup")
    counts = {kind: kinds.count(kind) for kind in kinds}
    assert 55 < counts["mixup"] < 105 and 50 < counts["cutmix"] < 105 and 20 < counts["none"] < 75
    ((images, result, labels),) = mixed(Mix(prob=0.0, smoothing=0.0), 1)
    np.testing.assert_array_equal(result, images)
    np.testing.assert_array_equal(labels, np.eye(4))


# Settings -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "make",
    [
        lambda: Crop(),
        lambda: Crop(padding=2, scale=(0.2, 1.0)),
        lambda: Crop(padding=0),
        lambda: Crop(scale=(0.0, 1.0)),
        lambda: Crop(scale=(0.5, 0.2)),
        lambda: Crop(scale=(0.5, 1.2)),
        lambda: augment.RandAugment(magnitude=11.0),
        lambda: augment.RandAugment(layers=0),
        lambda: Erase(prob=1.5),
        lambda: Erase(fill="green"),
        lambda: augment.Jitter(hue=0.6),
        lambda: augment.Blur(sigma=(0.0, 1.0)),
        lambda: augment.Blur(kernel=4),
        lambda: Augment(greyscale=1.5),
        lambda: Augment(solarize=-0.1),
        lambda: Mix(smoothing=1.0),
        lambda: Mix(mixup=-0.1),
    ],
)
def test_settings_out_of_range_are_refused(make):
    with pytest.raises(UserError):
        make()
