"""The held-out split depends on the example alone: it survives added, removed and reordered examples."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from ssl_jax.data import build
from ssl_jax.data.sources import Source
from ssl_jax.data.sources.arrays import Arrays
from ssl_jax.data.splits import held_out
from ssl_jax.errors import UserError

keys = st.lists(st.binary(min_size=1, max_size=4), min_size=2, max_size=60, unique=True)


@settings(max_examples=100, deadline=None)
@given(keys, st.floats(0.01, 0.9), st.integers(0, 60), st.integers(1, 3))
def test_no_example_that_was_trained_on_is_held_out_once_the_data_grow(names, share, count, classes):
    labels = np.arange(len(names)) % classes
    count = min(max(2 * classes, count), len(names))  # two of each class at least
    before, after = held_out(names[:count], share, labels[:count]), held_out(names, share, labels)
    for label in range(classes):
        own, members = labels == label, labels[:count] == label
        moved = after[:count] & ~before & members
        # a class whose hashes all lie below the share gave its highest back to training, until it has a higher one
        allowed = before[members].sum() == members.sum() - 1
        assert moved.sum() <= allowed and (own.sum() < 2 or 0 < after[own].sum() < own.sum())


@given(keys, st.randoms(use_true_random=False))
def test_order_and_removal_move_nothing(names, random):
    more = [b"more %d" % i for i in range(200)]  # so that the lowest and the highest hash are among these
    held = lambda names: dict(zip(names, held_out([*names, *more], 0.4), strict=False))
    order = random.sample(names, len(names))
    assert held(order) == held(names)
    assert held(names[1:]).items() <= held(names).items()


def test_the_share_and_the_seed():
    names = [b"%d" % i for i in range(20_000)]
    for share in (0.1, 0.5):
        assert abs(held_out(names, share).mean() - share) < 4 * np.sqrt(share * (1 - share) / len(names))
    assert not held_out(names, 0.0).any()
    both = held_out(names, 0.5) & held_out(names, 0.5, seed=1)
    assert abs(both.mean() - 0.25) < 0.02  # independent


def test_every_class_has_an_example_on_either_side():
    labels = np.repeat(np.arange(200), 2)
    names = [b"%d" % i for i in range(400)]
    for share in (0.01, 0.99):
        held = held_out(names, share, labels)
        assert (np.bincount(labels[held]) == 1).all() and (np.bincount(labels[~held]) == 1).all()
    assert held_out([b"a"], 0.9).tolist() == [False]


def test_equal_images_are_on_one_side(tmp_path):
    """A picture that an array holds twice is not in both splits: arrays are split by content."""
    images = np.random.default_rng(0).integers(0, 256, (40, 3, 3, 1), np.uint8)
    np.savez(tmp_path / "a.npz", image=np.concatenate([images, images]), label=np.tile(np.arange(40) % 2, 2))
    section = dict(train=f"npz:{tmp_path / 'a.npz'}", batch_size=4, holdout=0.3)
    splits = (build("images", section, split=split) for split in ("train", "test"))
    parts = [{image.tobytes() for image in dataset.arrays["image"]} for dataset in splits]
    assert len(parts[0]) + len(parts[1]) == 40 and not parts[0] & parts[1]


@pytest.mark.parametrize("labelled", [False, True])
def test_a_folder_that_grows_keeps_its_test_set(tmp_path, labelled):
    def add(count, start=0):
        for i in range(start, start + count):
            folder = tmp_path / "photos" / (f"class{i % 3}" if labelled else "")
            folder.mkdir(parents=True, exist_ok=True)
            Image.fromarray(np.full((4, 4), i, np.uint8)).save(folder / f"{i}.png")

    def names(split):
        from ssl_jax.data.sources import _load

        _load.cache_clear()  # as another process
        section = dict(train=f"folder:{tmp_path / 'photos'}", batch_size=4, image_size=4, normalize=None)
        dataset = build("images", section, split=split, train=False)
        return {dataset.source.describe(i) for i in range(dataset.size)}

    add(60)
    trained, tested = names("train"), names("test")
    add(40, 60)
    assert not trained & names("test") and tested <= names("test")
    with pytest.raises(UserError, match="data.holdout=0 of .* holds out no test examples"):
        build("images", dict(train=f"folder:{tmp_path / 'photos'}", batch_size=4, image_size=4, holdout=0.0), split="test")


def test_keys_and_digests_of_sources(tmp_path):
    """The default key is the content of an image, whatever its label; other data have another digest."""

    class Plain(Source):
        name = "plain"

        def __init__(self, images, labels):
            self.images, self._labels = images, labels

        def __len__(self):
            return len(self.images)

        def __getitem__(self, index):
            return {"image": self.images[index], "label": self._labels[index]}

        def labels(self):
            return self._labels

    images = np.arange(2 * 4, dtype=np.uint8).reshape(2, 2, 2, 1)
    one, other = Plain(images, np.array([0, 1], np.int32)), Plain(images, np.array([1, 0], np.int32))
    assert list(one.keys()) == list(other.keys()) and len(set(one.keys())) == 2
    assert one.fingerprint() != other.fingerprint()  # a corrected label is another data set
    arrays = lambda images, label: Arrays("a", {"image": images, "label": np.array(label, np.int32)}, ("x", "y"))
    digests = {arrays(i, label).fingerprint() for i in (images, images[::-1], images + 1) for label in ([0, 1], [1, 1])}
    assert len(digests) == 6
