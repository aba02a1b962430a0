"""Several augmented copies of an image: which stream each draws from, on the host and on the device."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from ml_collections import ConfigDict
from PIL import Image

from ssl_jax import randomness
from ssl_jax.data import build
from ssl_jax.data.images import augment, decode
from ssl_jax.data.pipeline import Stream
from ssl_jax.errors import UserError

JITTER = dict(jitter=dict(hue=0.1), greyscale=0.2, blur=dict(), solarize=0.2)
GLOBALS = dict(count=2, augment=dict(crop=dict(scale=(0.4, 1.0)), flip=True, **JITTER))
LOCALS = dict(count=3, image_size=6, augment=dict(crop=dict(scale=(0.1, 0.4))))


@pytest.fixture
def npz(tmp_path):
    images = np.random.default_rng(0).integers(0, 256, (12, 12, 12, 3), np.uint8)
    np.savez(tmp_path / "a.npz", image=images, label=np.arange(12) % 2)
    np.savez(tmp_path / "floats.npz", image=np.float32(images / 255), label=np.arange(12) % 2)
    return f"npz:{tmp_path / 'a.npz'}"


@pytest.fixture
def folder(tmp_path):
    for i in range(6):
        picture = np.random.default_rng(i).integers(0, 256, (20 + i, 30, 3), np.uint8)
        Image.fromarray(picture).save(tmp_path / f"{i}.png")
    return f"folder:{tmp_path}"


def stream_of(uri, *, seed=0, **keys):
    section = ConfigDict(dict(train=uri, batch_size=6, holdout=0.0) | keys)
    return Stream(build("images", section), batch_size=6, seed=seed)


def batch_of(stream, step=0, rows=slice(None)):
    key = randomness.stream(stream.seed, "augment", step)
    return jax.jit(stream.on_device)(stream.resident, stream.host_batch(step, rows), key)


def test_batches_hold_every_view_and_the_data_set_says_so(npz):
    stream = stream_of(npz, views=dict(globals=GLOBALS, locals=LOCALS))
    batch = batch_of(stream)
    assert batch["globals"].shape == (6, 2, 12, 12, 3) and batch["locals"].shape == (6, 3, 6, 6, 3)
    for name in ("image", "globals", "locals"):
        assert stream.dataset.info.shapes[name].shape == batch[name].shape[1:] and batch[name].dtype == jnp.float32
    pixels = np.asarray(batch["globals"]) * np.array(stream.dataset.info.std) + np.array(stream.dataset.info.mean)
    assert pixels.min() > -1e-6 and pixels.max() < 1 + 1e-6 and pixels.std() > 0.1
    copies = np.asarray(batch["locals"]).reshape(18, -1)
    assert len(np.unique(copies, axis=0)) == 18
    test = build("images", ConfigDict(dict(train=npz, batch_size=6, views=dict(globals=GLOBALS))), train=False)
    assert set(test.info.shapes) == {"image", "label"}  # evaluation sees whole images only


def test_a_view_is_the_augmentation_drawn_from_its_own_stream(npz):
    """Copy i of the view "locals" is the crop of the stream "locals/i" below the example's key."""
    stream = stream_of(npz, views=dict(locals=LOCALS), normalize=None)
    batch = batch_of(stream)
    keys = randomness.example_keys(randomness.stream(0, "augment", 0), batch["position"])
    whole = jnp.asarray(stream.dataset.arrays["image"])[batch["index"]]
    for i in range(3):
        own = randomness.substream(randomness.substream(keys, f"locals/{i}"), "crop")
        crop = jax.jit(augment.random_resized_crop, static_argnums=(2, 3, 4, 5))
        expected = crop(whole, own, (6, 6), (0.1, 0.4), (3 / 4, 4 / 3), 255.0)
        np.testing.assert_allclose(batch["locals"][:, i], expected / 255, atol=1e-6)


def same(a, b):
    return bool((np.asarray(a) == np.asarray(b)).all())


@pytest.mark.parametrize("kind", ["npz", "folder"])
def test_a_new_view_changes_no_other(kind, request):
    uri, keys = request.getfixturevalue(kind), dict(image_size=12, augment=dict(flip=True))
    one = batch_of(stream_of(uri, views=dict(globals=GLOBALS), **keys))
    both = batch_of(stream_of(uri, views=dict(locals=LOCALS, globals=GLOBALS), **keys))
    more = batch_of(stream_of(uri, views=dict(globals=GLOBALS | dict(count=3)), **keys))
    plain = batch_of(stream_of(uri, **keys))
    assert same(one["globals"], both["globals"]) and same(one["globals"], more["globals"][:, :2])
    assert same(one["image"], both["image"]) and same(one["image"], plain["image"])


@pytest.mark.parametrize("kind", ["npz", "folder"])
def test_views_follow_position_seed_and_step_alone(kind, request):
    """Views made of a part of the batch equal these rows of the whole, up to the rounding of contrast's mean; another step or
    seed draws anew."""
    make = lambda **keys: stream_of(
        request.getfixturevalue(kind), image_size=12, views=dict(globals=GLOBALS, locals=LOCALS), **keys
    )
    stream = make()
    whole, part = batch_of(stream), batch_of(stream, rows=slice(2, 5))
    for name in ("globals", "locals"):
        np.testing.assert_allclose(whole[name][2:5], part[name], atol=1e-5)
        assert not same(whole[name], batch_of(stream, 1)[name]) and not same(whole[name], batch_of(make(seed=1))[name])


def test_arrays_give_the_same_views_on_host_and_device_and_as_floats(npz):
    views = dict(globals=GLOBALS, locals=LOCALS)
    device = batch_of(stream_of(npz, views=views))
    host = batch_of(stream_of(npz, views=views, placement="host"))
    floats = batch_of(stream_of(npz.replace("a.npz", "floats.npz"), views=views, normalize=None))
    assert same(device["globals"], host["globals"]) and same(device["locals"], host["locals"])
    dataset = stream_of(npz, views=views).dataset.info
    unit = np.asarray(device["locals"]) * np.float32(dataset.std) + np.float32(dataset.mean)
    np.testing.assert_allclose(unit, floats["locals"], atol=1e-5)  # the range of pixels is that of the source


def test_decoded_images_are_cropped_on_the_host(folder):
    """What the host draws for each copy is `decode.augment` from a generator named by view and number."""
    stream = stream_of(folder, image_size=12, views=dict(locals=LOCALS), normalize=None)
    raw = stream.host_batch(0)
    assert raw["locals"].dtype == np.uint8 and raw["locals"].shape == (6, 3, 6, 6, 3)
    np.testing.assert_allclose(batch_of(stream)["locals"], raw["locals"] / np.float32(255), atol=1e-7)
    generator = np.random.Generator(np.random.Philox(np.random.SeedSequence(5)))
    example = stream.dataset.example(2, generator)
    view = stream.dataset.example.views[0]
    generator.random(100)  # copies do not depend on what has been drawn
    image = Image.open(folder.removeprefix("folder:") + "/2.png")
    assert same(view.on_host(image, generator, 1.0), example["locals"])
    assert not same(decode.augment(image, generator, view.augment[0], (6, 6), 1.0), example["locals"][0])


def test_each_copy_may_have_an_augmentation_of_its_own(npz, folder):
    """BYOL and DINO: the second global crop alone is solarized."""
    views = dict(pair=dict(count=2, augment=(dict(), dict(solarize=1.0))))
    for uri in (npz, folder):
        pair = np.asarray(batch_of(stream_of(uri, image_size=12, views=views, normalize=None))["pair"])
        np.testing.assert_allclose(pair[:, 1], np.where(pair[:, 0] >= 0.5, 1 - pair[:, 0], pair[:, 0]), atol=1e-6)


def test_views_default_to_the_size_and_augmentation_of_the_data(npz):
    keys = dict(image_size=10, augment=dict(solarize=1.0), normalize=None)
    pair = np.asarray(batch_of(stream_of(npz, views=dict(pair=dict(count=2)), **keys))["pair"])
    plain = np.asarray(batch_of(stream_of(npz, **(keys | dict(augment=dict()))))["image"])
    assert pair.shape == (6, 2, 10, 10, 3) and same(pair[:, 0], pair[:, 1])
    np.testing.assert_allclose(pair[:, 0], np.where(plain >= 0.5, 1 - plain, plain), atol=1e-6)


@pytest.mark.parametrize("kind", ["npz", "folder"])
def test_crops_have_the_published_scales(kind, tmp_path):
    """DINO's ViT-S: global crops of 25 to 100 %, local ones of 5 to 25 % of the area, aspect ratio 3/4 to 4/3.

    A pixel holds its own row and column, so that a crop says where it was cut."""
    row, column = np.mgrid[:64, :64].astype(np.uint8)
    image = np.stack([4 * row, 4 * column, 0 * row], axis=-1)
    np.savez(tmp_path / "coordinates.npz", image=np.stack([image] * 40))
    for i in range(40 if kind == "folder" else 0):
        Image.fromarray(image).save(tmp_path / f"{i:02d}.png")
    crop = lambda *scale: dict(crop=dict(scale=scale), flip=True)
    views = dict(
        globals=dict(count=2, image_size=32, augment=crop(0.25, 1.0)),
        locals=dict(count=6, image_size=16, augment=crop(0.05, 0.25)),
    )
    uri = f"npz:{tmp_path / 'coordinates.npz'}" if kind == "npz" else f"folder:{tmp_path}"
    section = ConfigDict(dict(train=uri, batch_size=40, holdout=0.0, image_size=64, views=views, normalize=None))
    batch = batch_of(Stream(build("images", section), batch_size=40, seed=0))
    for name, low, high in (("globals", 0.25, 1.0), ("locals", 0.05, 0.25)):
        pixels = np.asarray(batch[name]).reshape(-1, *batch[name].shape[2:]) * 255 / 4
        inner = pixels.shape[1] - 1
        steps = np.abs(pixels[:, -3, -3] - pixels[:, 2, 2])[:, :2] / (inner - 4)  # source pixels for one of the crop's
        height, width = pixels.shape[1] * steps[:, 0], pixels.shape[1] * steps[:, 1]
        area, aspect = height * width / 64**2, width / height
        assert area.min() > low * 0.85 and area.max() < high * 1.1 and np.ptp(area) > 0.5 * (high - low), name
        assert aspect.min() > 0.7 and aspect.max() < 1.43


@pytest.mark.parametrize(
    ("views", "told"),
    [
        (dict(image=dict()), "data.views.image: a batch already has an array of this name"),
        (dict(a=dict(count=0)), "data.views.a.count=0"),
        (dict(a=dict(size=3)), "unknown key data.views.a.size"),
        (dict(a=dict(image_size=0)), "data.views.a.image_size=0"),
        (dict(a=dict(count=3, augment=(dict(), dict()))), "data.views.a.augment: has 2 sections for count=3"),
        (dict(a=dict(augment=dict(flipp=True))), "unknown key data.views.a.augment.flipp; did you mean"),
        (dict(a=dict(augment=(dict(), dict(blur=dict(kernel=2))))), "data.views.a.augment[1].blur.kernel=2"),
        (dict(a=3), "data.views.a=3: expected a section"),
        (dict(a=dict(augment=dict(randaugment=dict()))), "randaugment works on the host"),
    ],
)
def test_wrong_views_are_refused_in_one_line(npz, views, told):
    with pytest.raises(UserError) as caught:
        stream_of(npz, views=views, placement="device")
    assert told in str(caught.value) and "\n" not in str(caught.value)
