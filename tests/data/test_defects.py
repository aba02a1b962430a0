"""Every labelled source with every defect: a class missing, added, in another order, an unreadable example, an empty label.

Each picture is of its class's grey level, so that what a label should be is read off the pixels. Whatever the source and the
defect, either each label is that of its picture and labels are as many as features, or one line says what is wrong.
"""

import csv
import json
import os
import tarfile

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from PIL import Image

from ssl_jax.data import build
from ssl_jax.data.pipeline import eval_batches, subset
from ssl_jax.errors import UserError

LEVELS = {"ant": 0, "bee": 60, "cat": 120, "dog": 180}
KINDS = ("folder", "npz", "csv", "tsv", "jsonl", "tar", "parquet")


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))


def picture(level: int, number: int) -> np.ndarray:
    image = np.full((4, 4, 3), level, np.uint8)
    image[0, 0] = number % 50  # no two pictures are equal
    return image


def write(kind: str, root, examples, classes=None) -> str:
    """A source of (class, state) in this order; state is "good", "bad" (unreadable) or "unlabelled". Returns its URI."""
    root.mkdir(parents=True)
    names, labels = [], []
    for number, (name, state) in enumerate(examples):
        labels.append("" if state == "unlabelled" else name)
        file = root / name / f"{number:03d}.png" if kind == "folder" else root / f"{number:03d}.png"
        file.parent.mkdir(exist_ok=True)
        names.append(file.name)
        if kind != "npz":
            Image.fromarray(picture(LEVELS[name], number)).save(file)
        if state == "bad":
            file.write_bytes(b"no image")
    if kind == "folder":
        return f"folder:{root}"
    if kind == "npz":
        images = np.stack([picture(LEVELS[name], number) for number, (name, _) in enumerate(examples)])
        if classes is None:
            np.savez(root / "a.npz", image=images, label=np.array(labels))
        else:
            numbers = [classes.index(label) if label else -1 for label in labels]
            np.savez(root / "a.npz", image=images, label=np.array(numbers), classes=np.array(classes))
        return f"npz:{root / 'a.npz'}"
    if kind == "tar":
        with tarfile.open(root / "a.tar", "w") as archive:
            for name, label in zip(names, labels, strict=True):
                (root / name).with_suffix(".cls").write_text(label)
                archive.add(root / name, name)
                if label:
                    archive.add((root / name).with_suffix(".cls"), f"{name.removesuffix('.png')}.cls")
        return f"tar:{root / 'a.tar'}"
    if kind == "parquet":
        parquet = pytest.importorskip("pyarrow.parquet")
        images = [{"bytes": (root / name).read_bytes(), "path": name} for name in names]
        numbers = [label or None for label in labels]
        metadata = None
        if classes is not None:
            numbers = [classes.index(label) if label else None for label in labels]
            features = {"label": {"names": classes, "_type": "ClassLabel"}}
            metadata = {"huggingface": json.dumps({"info": {"features": features}})}
        table = pytest.importorskip("pyarrow").table({"image": images, "label": numbers})
        parquet.write_table(table.replace_schema_metadata(metadata), root / "a.parquet")
        return f"parquet:{root / 'a.parquet'}"
    path = root / f"table.{kind}"
    rows = [dict(file=name, label=label) for name, label in zip(names, labels, strict=True)]
    if kind == "jsonl":
        path.write_text("".join(json.dumps(row | {"label": row["label"] or None}) + "\n" for row in rows))
    else:
        with path.open("w", newline="") as file:
            writer = csv.DictWriter(file, ["file", "label"], delimiter="\t" if kind == "tsv" else ",")
            writer.writeheader()
            writer.writerows(rows)
    return f"{kind}:{path}"


def good(*names, each=2):
    return [(name, "good") for name in names for _ in range(each)]


def data(train, test=None, *, split="test", augmented=False, **keys):
    section = dict(train=train, test=test, batch_size=4, image_size=4, eval_crop=1.0, normalize=None) | keys
    return build("images", section, split=split, train=augmented)


def classes_seen(dataset) -> list[str]:
    """The class of every example by its pixels, in order; raises unless labels are as many and say the same."""
    levels, seen = {level: name for name, level in LEVELS.items()}, []
    for batch, mask in eval_batches(dataset, 3):
        images = np.asarray(dataset.on_device(batch, None)["image"])[mask]
        seen += [levels[round(float(image[3, 3, 0]) * 255)] for image in images]
    labels = dataset.labels()
    assert len(labels) == len(seen) == dataset.size
    assert [dataset.info.classes[label] for label in labels] == seen
    return seen


def error_of(call) -> str:
    with pytest.raises(UserError) as caught:
        call()
    assert "\n" not in str(caught.value)
    return str(caught.value)


@pytest.mark.parametrize("kind", KINDS)
def test_a_class_that_the_test_set_lacks_moves_no_label(kind, tmp_path):
    train = write(kind, tmp_path / "train", good("ant", "bee", "cat"))
    test = write(kind, tmp_path / "test", good("bee", "cat"))
    assert classes_seen(data(train, test)) == ["bee", "bee", "cat", "cat"]
    assert data(train, test).info.classes == data(train, test, split="train").info.classes == ("ant", "bee", "cat")


@pytest.mark.parametrize("kind", KINDS)
def test_an_added_class_is_named_or_left_out_and_counted(kind, tmp_path):
    train = write(kind, tmp_path / "train", good("ant", "cat"))
    test = write(kind, tmp_path / "test", good("ant", "bee", "cat"))
    message = error_of(lambda: data(train, test))
    assert "class bee does not occur in the training data" in message and test in message and train in message
    kept = data(train, test, unknown_classes="skip")
    assert classes_seen(kept) == ["ant", "ant", "cat", "cat"] and kept.skipped() == 2
    assert any("2 examples of classes that training does not have" in line for line in kept.notes())


@pytest.mark.parametrize("kind", ["npz", "csv", "jsonl", "parquet"])
def test_classes_in_another_order_are_matched_by_name(kind, tmp_path):
    train = write(kind, tmp_path / "train", good("ant", "bee", "cat"), classes=["ant", "bee", "cat"])
    test = write(kind, tmp_path / "test", good("cat", "ant", "bee"), classes=["cat", "bee", "ant"])
    assert classes_seen(data(train, test)) == ["cat", "cat", "ant", "ant", "bee", "bee"]
    order = data(train, test, classes=("bee", "cat", "ant"))
    assert classes_seen(order) == classes_seen(data(train, test)) and order.info.classes == ("bee", "cat", "ant")


@pytest.mark.parametrize("kind", [kind for kind in KINDS if kind != "npz"])
def test_an_unreadable_example_is_named_or_left_out_of_everything(kind, tmp_path):
    examples = good("ant", "bee", each=3)
    examples[1] = ("ant", "bad")
    uri = write(kind, tmp_path / "train", examples)
    message = error_of(lambda: classes_seen(data(uri, uri)))
    assert "is not an image" in message and 'data.on_bad_example="skip"' in message
    test = data(uri, uri, on_bad_example="skip")
    assert classes_seen(test) == ["ant"] * 2 + ["bee"] * 3 and test.skipped() == 1
    assert test.places().tolist() == [0, 2, 3, 4, 5] and subset(test, [4, 0]).places().tolist() == [5, 0]
    part = subset(test, [4, 0])
    assert classes_seen(part) == ["bee", "ant"]
    train = data(uri, uri, split="train", augmented=True, on_bad_example="skip")  # what is fine-tuned has the same indices
    np.testing.assert_array_equal(train.labels(), test.labels())
    assert [train.source.describe(i) for i in range(5)] == [test.source.describe(i) for i in range(5)]


@pytest.mark.parametrize("kind", [kind for kind in KINDS if kind != "folder"])
def test_an_empty_label_is_no_class(kind, tmp_path):
    classes = ["ant", "bee"] if kind == "npz" else None
    uri = write(kind, tmp_path / "train", [*good("ant", "bee"), ("bee", "unlabelled")], classes=classes)
    message = error_of(lambda: data(uri, uri))
    assert "has no label (1 of 5 have none)" in message and uri.partition(":")[2] in message
    kept = data(uri, uri, on_bad_example="skip")
    assert kept.info.classes == ("ant", "bee") and classes_seen(kept) == ["ant", "ant", "bee", "bee"] and kept.skipped() == 1


def test_a_source_without_any_label_is_unlabelled(tmp_path):
    uri = write("csv", tmp_path / "train", [("ant", "unlabelled"), ("bee", "unlabelled")])
    dataset = data(uri, uri)
    assert dataset.labels() is None and dataset.info.classes == () and dataset.size == 2
    labelled = write("csv", tmp_path / "labelled", good("ant", "bee"))
    assert data(labelled, labelled, columns=dict(label=None)).labels() is None


def test_a_folder_of_images_that_are_not_sorted_into_classes_is_named(tmp_path):
    train = write("folder", tmp_path / "train", good("ant", "bee"))
    os.rename(write("folder", tmp_path / "val", good("cat")).removeprefix("folder:") + "/cat", tmp_path / "val" / "images")
    message = error_of(lambda: data(train, f"folder:{tmp_path / 'val'}"))
    assert f"folder:{tmp_path / 'val'}: none of its classes occurs in the training data" in message
    assert "images" in message and "not sorted into class folders?" in message
    assert f"folder:{tmp_path / 'val'}/images to read it without labels" in message
    assert data(train, f"folder:{tmp_path / 'val' / 'images'}").labels() is None


@pytest.mark.parametrize("kind", ["folder", "csv"])
@settings(max_examples=25, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    states=st.lists(
        st.tuples(st.sampled_from(list(LEVELS)), st.sampled_from(["good", "good", "bad", "unlabelled"])), max_size=12
    ),
    holdout=st.booleans(),
)
def test_labels_are_those_of_the_pictures_whatever_is_damaged(kind, states, holdout, tmp_path_factory):
    """Features and labels of random data with random defects agree, in both splits."""
    examples = good("ant", "bee", "cat", "dog") + [
        (n, "good" if kind == "folder" and s == "unlabelled" else s) for n, s in states
    ]
    uri = write(kind, tmp_path_factory.mktemp("random") / "train", examples)
    readable = sorted(name for name, state in examples if state == "good")
    keys = dict(on_bad_example="skip", holdout=0.3)
    parts = [data(uri, None if holdout else uri, split=split, **keys) for split in ("train", "test")]
    seen = [classes_seen(part) for part in parts]
    if holdout:
        assert sorted(seen[0] + seen[1]) == readable
        assert sum(part.skipped() for part in parts) == len(examples) - len(readable)
    else:
        assert sorted(seen[0]) == sorted(seen[1]) == readable and parts[1].skipped() == len(examples) - len(readable)


def test_what_was_found_of_a_large_source_is_stored(tmp_path, monkeypatch):
    """Another process reads what was bad again, and nothing that was good, until a file changes."""
    from ssl_jax.data import existing as module
    from ssl_jax.data import sources

    monkeypatch.setattr(module, "LARGE", 4)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    uri = write("folder", tmp_path / "train", [("ant", "bad"), *good("ant", "bee")])
    assert data(uri, uri, on_bad_example="skip").size == 4

    def another_process():
        sources._load.cache_clear()
        read = []
        monkeypatch.setattr(sources.folder.Folder, "__getitem__", lambda self, i, get=GET: read.append(i) or get(self, i))
        dataset = data(uri, uri, on_bad_example="skip")
        return read, dataset

    GET = sources.folder.Folder.__getitem__
    read, dataset = another_process()
    assert read == [0] and dataset.size == 4
    Image.fromarray(picture(LEVELS["ant"], 0)).save(tmp_path / "train" / "ant" / "000.png")
    read, dataset = another_process()
    assert sorted(read) == [0, 1, 2, 3, 4] and dataset.size == 5 and dataset.skipped() == 0
