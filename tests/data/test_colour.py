"""Colour operations against torchvision's definitions, written out in float64 or taken from PIL and colorsys."""

import colorsys
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from PIL import Image, ImageEnhance, ImageOps

from ssl_jax import randomness
from ssl_jax.data.images import colour
from ssl_jax.data.images.augment import Augment, Blur, Jitter
from ssl_jax.errors import UserError

SHAPE = (6, 7, 3)


def keys(n, seed=0):
    return randomness.example_keys(jax.random.key(seed), jnp.arange(n))


def pixels(shape=SHAPE, seed=0):
    return np.random.default_rng(seed).random(shape).astype(np.float32)


# torchvision.transforms.v2.functional, image by image in float64 -------------------------------------------------------


def luma(image):
    return image if image.shape[2] == 1 else (image @ np.array([0.2989, 0.587, 0.114]))[..., None]


def blended(image, other, factor):
    return np.clip(factor * image + (1 - factor) * other, 0, 1)


def hue_turned(image, factor):
    turned = [colorsys.rgb_to_hsv(*pixel) for pixel in image.reshape(-1, 3)]
    return np.array([colorsys.hsv_to_rgb((h + factor) % 1, s, v) for h, s, v in turned]).reshape(image.shape)


REFERENCE = {
    "brightness": lambda image, factor: blended(image, 0, factor),
    "contrast": lambda image, factor: blended(image, luma(image).mean(), factor),
    "saturation": lambda image, factor: blended(image, luma(image), factor),
    "hue": hue_turned,
}


@pytest.mark.parametrize("name", REFERENCE)
def test_operations_are_those_of_torchvision(name):
    image = pixels()
    image[0] = image[0, :, :1]  # a row of greys, which have no hue
    image[1, 0], image[1, 1], image[1, 2] = (1, 0, 0), (0, 1, 0), (0, 0, 1)
    run = jax.jit(getattr(colour, name))
    for factor in (-0.5, -0.2, 0.0, 0.3, 0.5) if name == "hue" else (0.0, 0.4, 1.0, 1.7):
        np.testing.assert_allclose(run(image, factor), REFERENCE[name](np.float64(image), factor), atol=2e-6)


@pytest.mark.parametrize("kind", ["Brightness", "Contrast", "Color"])
def test_factors_mean_what_they_mean_in_pil(kind):
    """PIL rounds the greyscale image, its mean and the result to whole levels."""
    image = np.uint8(255 * pixels((16, 16, 3)))
    name = {"Brightness": "brightness", "Contrast": "contrast", "Color": "saturation"}[kind]
    for factor in (0.3, 1.4):
        expected = np.asarray(getattr(ImageEnhance, kind)(Image.fromarray(image)).enhance(factor), np.float32)
        assert np.abs(255 * np.asarray(getattr(colour, name)(jnp.float32(image / 255), factor)) - expected).max() < 2.01


def test_greyscale_and_solarize_are_those_of_pil():
    image = np.uint8(255 * pixels((16, 16, 3)))
    grey = 255 * np.asarray(colour.greyscale(jnp.float32(image / 255)))
    assert np.abs(grey - np.asarray(Image.fromarray(image).convert("L").convert("RGB"), np.float32)).max() < 1.01
    levels = np.arange(256, dtype=np.uint8).reshape(16, 16)
    solarized = 255 * np.asarray(colour.solarize(jnp.float32(levels / 255)[..., None]))[..., 0]
    np.testing.assert_allclose(solarized, np.asarray(ImageOps.solarize(Image.fromarray(levels), 128)), atol=1e-3)


@pytest.mark.parametrize(("sigma", "taps"), [(0.1, 5), (0.8, 3), (2.0, 9)])
def test_blur_convolves_with_a_gaussian_and_reflects_the_border(sigma, taps):
    """torchvision's gaussian_blur, pixel by pixel."""
    image = pixels()
    weights = np.exp(-0.5 * (np.arange(taps) - taps // 2) ** 2 / sigma**2)
    weights = np.outer(weights, weights) / weights.sum() ** 2
    padded = np.pad(np.float64(image), ((taps // 2,) * 2, (taps // 2,) * 2, (0, 0)), mode="reflect")
    window = lambda y, x: padded[y : y + taps, x : x + taps]
    expected = [[np.tensordot(weights, window(y, x), 2) for x in range(SHAPE[1])] for y in range(SHAPE[0])]
    np.testing.assert_allclose(
        jax.jit(colour.gaussian_blur, static_argnums=(2,))(jnp.asarray(image), sigma, taps), expected, atol=1e-6
    )


def test_a_kernel_that_does_not_fit_is_refused():
    with pytest.raises(UserError, match=r"blur.kernel=13: an image of 6 x 7 pixels allows at most 11"):
        colour.apply(jnp.asarray(pixels()[None]), keys(1), Augment(blur=Blur(kernel=13)))
    assert Blur().taps((224, 224)) == 23 and Blur().taps((28, 40)) == 3  # SimCLR: a tenth of the side, odd


# What is drawn --------------------------------------------------------------------------------------------------------


def test_jitter_applies_its_operations_in_every_order():
    """Every result is that of one order of the four operations with factors within their ranges; all orders occur."""
    image, settings = pixels((1, 2, 3)), Jitter(0.4, 0.3, 0.2, 0.1)
    count = 300
    run = jax.jit(jax.vmap(functools.partial(colour.jitter, settings=settings), in_axes=(None, 0)))
    results = np.asarray(run(image, keys(count)))
    drawn = jax.vmap(lambda key: jax.random.split(key, 3))(keys(count))
    factors = np.asarray(jax.vmap(lambda key: jax.random.uniform(key, (4,), minval=-1))(drawn[:, 0]), np.float64)
    orders = np.asarray(jax.vmap(lambda key: jax.random.permutation(key, 4))(drawn[:, 2]))
    assert len({tuple(order) for order in orders}) == 24
    for result, factor, order in zip(results, factors, orders, strict=True):
        expected = np.float64(image)
        for which in order:
            name = list(REFERENCE)[which]
            expected = REFERENCE[name](expected, (name != "hue") + getattr(settings, name) * factor[which])
        np.testing.assert_allclose(result, expected, atol=1e-5)


def test_jitter_stays_within_its_factors():
    image = jnp.full((500, 2, 2, 3), 0.5)
    run = jax.jit(lambda settings: colour.apply(image, keys(500), Augment(jitter=settings)), static_argnums=0)
    values = np.asarray(run(Jitter(0.2, 0.0, 0.0, prob=0.5)))[:, 0, 0, 0]
    moved = values[values != 0.5]
    assert 190 < len(moved) < 310 and 0.4 <= moved.min() < 0.405 and 0.595 < moved.max() <= 0.6  # 5 standard deviations
    np.testing.assert_array_equal(run(Jitter(0.0, 0.0, 0.0)), image)


def test_operations_act_with_their_probability_and_draw_from_streams_of_their_own():
    images = np.broadcast_to(pixels((4, 5, 3)), (400, 4, 5, 3))
    run = jax.jit(lambda settings: colour.apply(jnp.asarray(images), keys(400), settings), static_argnums=0)
    grey = np.asarray(run(Augment(greyscale=0.3)))
    both = np.asarray(run(Augment(greyscale=0.3, solarize=0.6)))
    is_grey = np.ptp(grey, axis=3).max((1, 2)) < 1e-6
    assert 75 < is_grey.sum() < 165
    np.testing.assert_array_equal(np.ptp(both, axis=3).max((1, 2)) < 1e-6, is_grey)  # solarize moves no other draw
    changed = (both != grey).any((1, 2, 3))
    assert 190 < changed.sum() < 290
    np.testing.assert_allclose(both[changed], np.where(grey >= 0.5, 1 - grey, grey)[changed])
    blurred = np.asarray(run(Augment(blur=Blur(prob=0.5, kernel=3))))
    assert 150 < (blurred != images).any((1, 2, 3)).sum() < 250


def test_grey_images_keep_one_channel():
    image = pixels((4, 4, 1))[None]
    settings = Augment(jitter=Jitter(0.0, 0.0, 0.5, hue=0.5), greyscale=1.0)
    np.testing.assert_array_equal(colour.apply(jnp.asarray(image), keys(1), settings), image)
