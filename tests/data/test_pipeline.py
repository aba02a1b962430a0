"""(seed, step) -> the global batch: pure, complete, and the same whoever reads it."""

import itertools

import jax
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from ssl_jax import randomness
from ssl_jax.data import build
from ssl_jax.data.pipeline import Stream, balanced_subset, eval_batches, subset
from ssl_jax.errors import UserError

AUGMENT = dict(crop=dict(padding=1), flip=True)


@pytest.fixture(scope="module")
def npz(tmp_path_factory):
    path = tmp_path_factory.mktemp("npz") / "train.npz"
    images = np.random.default_rng(0).integers(0, 256, (53, 6, 5, 3), np.uint8)
    np.savez(path, image=images, label=np.arange(53) % 4)
    return f"npz:{path}"


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    root = tmp_path_factory.mktemp("folder")
    generator = np.random.default_rng(0)
    for i in range(23):
        (root / f"class{i % 3}").mkdir(exist_ok=True)
        size = generator.integers(8, 20, 2)
        Image.fromarray(generator.integers(0, 256, (*size, 3), np.uint8)).save(root / f"class{i % 3}" / f"{i}.png")
    return f"folder:{root}"


def images(uri, **keys):
    section = dict(train=uri, batch_size=8, holdout=0.0, augment=AUGMENT) | keys
    return build("images", section, split="train", train=True)


def folder_images(uri, **keys):
    crop = dict(crop=dict(scale=(0.3, 1.0)), flip=True, randaugment=dict())
    return images(uri, **dict(image_size=7, augment=crop) | keys)


def assert_equal(one, other):
    assert one.keys() == other.keys()
    for name in one:
        np.testing.assert_array_equal(one[name], other[name], err_msg=name)


@settings(max_examples=40, deadline=None)
@given(st.integers(1, 60), st.integers(1, 70), st.integers(0, 3))
def test_every_epoch_holds_every_example_once(size, batch_size, seed):
    """Also where the batch does not divide the epoch: nothing is dropped, epochs follow each other without a gap."""
    stream = Stream(toy(size), batch_size=batch_size, seed=seed)
    steps = -(-3 * size // batch_size)
    order = np.concatenate([stream.indices(step) for step in range(steps)])
    for epoch in range(3):
        assert sorted(order[epoch * size : (epoch + 1) * size]) == list(range(size))


def toy(size):
    from ssl_jax.data.pipeline import Dataset
    from ssl_jax.data.sources.arrays import Arrays
    from ssl_jax.task import DataInfo

    arrays = {"x": np.arange(size)}
    return Dataset(DataInfo({}), size, lambda i, g: {"x": np.asarray(i)}, Arrays("toy", arrays), arrays=arrays)


def test_epochs_and_seeds_have_orders_of_their_own():
    """Seed 1 must not begin where seed 0 goes on: three seeds are three samples."""
    size = 50
    orders = [tuple(Stream(toy(size), batch_size=size, seed=s).indices(e)) for s in range(4) for e in range(4)]
    assert len(set(orders)) == len(orders)
    assert tuple(Stream(toy(size), batch_size=size, seed=0, shuffle=False).indices(1)) == tuple(range(size))


def datasets(npz, folder):
    return {"device": images(npz), "host": images(npz, placement="host"), "folder": folder_images(folder)}


@pytest.mark.parametrize("kind", ["device", "host", "folder"])
@pytest.mark.parametrize("processes", [2, 4])
def test_batches_do_not_depend_on_the_number_of_processes(npz, folder, kind, processes):
    dataset = datasets(npz, folder)[kind]
    stream = Stream(dataset, batch_size=8, seed=3)
    rows = [slice(p * 8 // processes, (p + 1) * 8 // processes) for p in range(processes)]
    readers = [Stream(dataset, batch_size=8, seed=3).iterate(0, r) for r in rows]
    for step in range(51):
        parts = [next(reader) for reader in readers]
        whole = {name: np.concatenate([part[name] for part in parts]) for name in parts[0]}
        assert_equal(whole, stream.host_batch(step))


@pytest.mark.parametrize("kind", ["device", "host", "folder"])
def test_a_restart_at_any_step_gives_the_same_batches(npz, folder, kind):
    stream = Stream(datasets(npz, folder)[kind], batch_size=8, seed=3)
    straight = list(itertools.islice(stream.iterate(0), 51))
    for start in (1, 2, 3, 7, 49):
        for step, batch in zip(range(start, 51), stream.iterate(start), strict=False):
            assert_equal(batch, straight[step])
            if step > start + 5:
                break


@pytest.mark.parametrize("workers", [2, pytest.param(3, marks=pytest.mark.slow)])
def test_worker_processes_change_no_value(folder, workers):
    dataset = folder_images(folder)
    stream = Stream(dataset, batch_size=8, seed=3, workers=workers)
    for step, batch in zip(range(2, 53), stream.iterate(2), strict=False):
        assert_equal(batch, stream.host_batch(step))


def test_placement_changes_no_value(npz):
    """Host and device placement give bit-equal task batches, augmentation included."""
    results = []
    for placement in ("host", "device"):
        stream = Stream(images(npz, placement=placement), batch_size=8, seed=1)
        assert bool(stream.resident) == (placement == "device")
        batch = stream.host_batch(4)
        results.append(stream.on_device(stream.resident, batch, randomness.stream(1, "augment", 4)))
    assert_equal(*results)


def test_augmentation_follows_the_position_not_the_shard(npz):
    """A shard of the batch, augmented by itself, equals these rows of the whole batch."""
    stream = Stream(images(npz), batch_size=8, seed=1)
    key = randomness.stream(1, "augment", 0)
    on_device = jax.jit(stream.on_device)
    whole = on_device(stream.resident, stream.host_batch(0), key)
    part = on_device(stream.resident, stream.host_batch(0, slice(3, 6)), key)
    assert_equal(part, {name: value[3:6] for name, value in whole.items()})
    other = on_device(stream.resident, stream.host_batch(0), randomness.stream(1, "augment", 1))
    assert not np.array_equal(other["image"], whole["image"])


@pytest.mark.parametrize("batch_size", [7, 23, 40])
def test_evaluation_counts_each_example_once(npz, folder, batch_size):
    for dataset in (images(npz), folder_images(folder)):
        seen = []
        for batch, mask in eval_batches(dataset, batch_size):
            assert mask.shape == (batch_size,) and all(len(value) == batch_size for value in batch.values())
            seen.extend(batch["index"][mask])
        assert seen == list(range(dataset.size))


def test_evaluation_reads_what_was_stored(npz):
    dataset = images(npz, normalize=None)
    (batch, mask) = next(iter(eval_batches(dataset, 53)))
    task_batch = dataset.on_device(batch, None)
    np.testing.assert_allclose(task_batch["image"] * 255, dataset.source.arrays["image"], atol=1e-4)
    np.testing.assert_array_equal(task_batch["label"], dataset.labels())


def test_subsets_keep_labels_sources_and_order(npz, folder):
    chosen = [5, 2, 2, 11]
    for dataset in (images(npz), folder_images(folder)):
        part = subset(subset(dataset, range(1, 20)), [i - 1 for i in chosen])
        np.testing.assert_array_equal(part.labels(), dataset.labels()[chosen])
        for i, j in enumerate(chosen):
            assert_equal(part.example(i, None), dataset.example(j, None))
            assert part.source.describe(i) == dataset.source.describe(j)
        assert_equal(part.rows(np.arange(4)), dataset.rows(np.array(chosen)))


def test_subset_of_resident_arrays_gathers_its_own_rows(npz):
    dataset = images(npz, normalize=None)
    part = subset(dataset, [5, 2])
    batch = {"index": np.array([1, 0], np.int32), "position": np.array([0, 1], np.int32)}
    result = Stream(part, batch_size=2, seed=0).on_device(part.resident, batch, None)
    np.testing.assert_allclose(result["image"] * 255, dataset.source.arrays["image"][[2, 5]], atol=1e-4)


@given(st.integers(0, 5), st.integers(1, 9))
@settings(max_examples=20, deadline=None)
def test_balanced_subsets_are_balanced_and_nested(seed, per_class):
    labels = np.random.default_rng(seed).permutation(np.repeat([0, 1, 2], [40, 20, 9]))
    small = balanced_subset(labels, per_class=per_class, seed=seed)
    large = balanced_subset(labels, per_class=per_class + 3, seed=seed)
    assert np.bincount(labels[small]).tolist() == [per_class] * 3
    assert np.bincount(labels[large]).tolist() == [min(per_class + 3, n) for n in (40, 20, 9)]
    assert set(small) <= set(large) and len(set(large)) == len(large)


def test_balanced_fraction():
    labels = np.repeat(np.arange(10), 6000)
    assert np.bincount(labels[balanced_subset(labels, fraction=0.01, seed=1)]).tolist() == [60] * 10
    assert np.bincount(labels[balanced_subset(labels, fraction=1e-9)]).tolist() == [1] * 10


def test_holdout_is_disjoint_complete_and_mixed(npz):
    section = dict(train=npz, batch_size=8, holdout=0.25)
    train, test = (build("images", section, split=split) for split in ("train", "test"))
    assert train.size + test.size == 53 and 4 <= test.size <= 22  # binomial, within four standard deviations
    everything = np.concatenate([d.arrays["image"] for d in (train, test)])
    assert len(np.unique(everything.reshape(53, -1), axis=0)) == 53
    assert len(set(test.labels())) == 4
    with pytest.raises(UserError, match="holdout=0"):
        build("images", section | dict(holdout=0.0), split="test")


def test_placement_device_needs_arrays(folder):
    with pytest.raises(UserError, match='placement="device"'):
        folder_images(folder, placement="device")
    with pytest.raises(UserError, match="batch_size"):
        images(folder, image_size=7, batch_size=0)
