"""Pairs: the emoji and their split, tables, tar shards, drawing captions by (seed, step), and bad input."""

import csv
import io
import json
import tarfile

import jax
import numpy as np
import pytest
from ml_collections import ConfigDict
from PIL import Image

from ssl_jax.data import build, pairs
from ssl_jax.data.pipeline import BadExample, Stream, eval_batches
from ssl_jax.data.sources import emoji, load_source, tar_shards
from ssl_jax.errors import UserError

TONES = {0x1F3FB, 0x1F3FC, 0x1F3FD, 0x1F3FE, 0x1F3FF}


def section(**changes) -> ConfigDict:
    tokenizer = dict(name="characters", special_tokens=("[PAD]", "[EOS]", "[UNK]"))
    given = dict(train="bundled:emoji/train", test="bundled:emoji/test", batch_size=8, context_length=16, tokenizer=tokenizer)
    return ConfigDict(given | changes)


def png(seed=0, size=(12, 10), suffix="PNG") -> bytes:
    pixels = np.random.default_rng(seed).integers(0, 256, (*size, 3), np.uint8)
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, suffix)
    return buffer.getvalue()


# Emoji ----------------------------------------------------------------------------------------------------------------


def bases(record) -> set[tuple]:
    """The code points of an emoji and of its tones without skin tones, in order: twins share one."""
    codes = [[int(code, 16) for code in holder["hexcode"].split("-")] for holder in [record, *record["tones"]]]
    return {tuple(code for code in row if code not in TONES and code != 0xFE0F) for row in codes}


def test_no_twin_of_a_test_emoji_is_in_training():
    """Neither another skin tone, nor another gender, nor an emoji with the same picture or the same name."""
    train, test = (load_source(f"bundled:emoji/{split}").records for split in ("train", "test"))
    assert not {base for r in train for base in bases(r)} & {base for r in test for base in bases(r)}
    assert not {r["family"] for r in train} & {r["family"] for r in test}
    names = lambda records: {holder["name"].lower() for r in records for holder in [r, *r["tones"]]}
    assert not names(train) & names(test)
    gendered = lambda records: {n.replace("woman", "man").replace("women", "men") for n in names(records)}
    assert not gendered(train) & gendered(test)
    pictures = emoji.pictures()
    bytes_of = lambda records: {pictures[h["image"]].tobytes() for r in records for h in [r, *r["tones"]]}
    assert not bytes_of(train) & bytes_of(test)
    assert any(r["tones"] for r in test) and any(r["tones"] for r in train)


def test_the_split_is_stratified_and_complete():
    records = emoji.records()
    assert len({r["hexcode"] for r in records}) == len(records)
    for group in {r["group"] for r in records}:
        share = np.mean([r["split"] == "test" for r in records if r["group"] == group])
        assert 0.12 < share < 0.18, group
    assert not {"flags", "component"} & {r["group"] for r in records}
    numbers = sorted(holder["image"] for r in records for holder in [r, *r["tones"]])
    assert numbers == list(range(len(numbers))) and len(numbers) <= len(emoji.pictures())


def test_training_falls_into_two_parts_to_choose_settings_by():
    """By families, all groups in both: what is chosen on "validation" has seen no twin of it, and no test emoji."""
    records = {split: load_source(f"bundled:emoji/{split}").records for split in ("train", "fit", "validation")}
    of = lambda split, key: {record[key] for record in records[split]}
    assert of("fit", "hexcode") | of("validation", "hexcode") == of("train", "hexcode")
    assert not of("fit", "family") & of("validation", "family")
    assert of("fit", "group") == of("validation", "group") == of("train", "group")
    assert 0.1 < len(records["validation"]) / len(records["train"]) < 0.2


def test_pictures_stand_over_white_and_match_their_names():
    pictures = emoji.pictures()
    by_name = {r["name"]: pictures[r["image"]] for r in emoji.records()}
    assert np.mean(by_name["red heart"][0, 0]) == 255
    middle = by_name["red heart"][28:36, 28:36].reshape(-1, 3).mean(0)
    assert middle[0] > 200 and middle[1] < 90
    green = by_name["green heart"][28:36, 28:36].reshape(-1, 3).mean(0)
    assert green[1] > green[0] and green[1] > green[2]


def test_captions_and_pictures_are_drawn_by_seed_and_step():
    """A pure function: the same in any order, another for another seed; evaluation takes the name and the plain emoji."""
    dataset = pairs.build(section(augment=dict(affine=dict())), split="train", train=True)
    first, again = Stream(dataset, batch_size=8, seed=1), Stream(dataset, batch_size=8, seed=1)
    seventh = again.host_batch(7)
    wanted = [first.host_batch(step) for step in range(8)][7]
    for name, value in wanted.items():
        np.testing.assert_array_equal(seventh[name], value)
    index = next(i for i, r in enumerate(dataset.source.records) if r["tones"])
    drawn = [dataset.example(index, np.random.default_rng(i)) for i in range(60)]
    assert len({row["tokens"].tobytes() for row in drawn}) > 3 and len({row["image"].tobytes() for row in drawn}) == 60
    drawn = [dataset.source.draw(index, np.random.default_rng(i)) for i in range(100)]
    assert len({row["captions"][0] for row in drawn}) == 1 + len(dataset.source.records[index]["tones"])
    plain = pairs.build(section(), split="train", train=False).example(index, None)
    name = dataset.source.records[index]["name"]
    np.testing.assert_array_equal(plain["tokens"], pairs.Encode(dataset.info.tokenizer, 16)(name)[0])
    np.testing.assert_array_equal(plain["image"], emoji.pictures()[dataset.source.records[index]["image"]])


def test_every_test_emoji_comes_once():
    dataset = pairs.build(section(), split="test", train=False)
    seen = np.concatenate([batch["index"][mask] for batch, mask in eval_batches(dataset, 100)])
    np.testing.assert_array_equal(seen, np.arange(dataset.size))
    batch = dataset.on_device(next(iter(eval_batches(dataset, 4)))[0], None)
    assert batch["image"].shape == (4, 64, 64, 3) and batch["tokens"].shape == (4, 16)
    assert set(dataset.info.extra["class_texts"]) == set(dataset.info.classes) and len(dataset.info.classes) == 8


def test_colours_are_jittered_on_the_device():
    stream = Stream(
        pairs.build(section(augment=dict(solarize=1.0), normalize=None), split="train", train=True), batch_size=4, seed=0
    )
    raw = stream.host_batch(0)
    image = jax.jit(stream.on_device)({}, raw, jax.random.key(0))["image"]
    pixels = raw["image"] / np.float32(255)
    np.testing.assert_allclose(image, np.where(pixels >= 0.5, 1 - pixels, pixels), atol=1e-6)


def test_no_augmentation_is_the_identity():
    """A turn by 0 degrees, zoom 1 and shift 0 give back the image: no half pixel is lost."""
    image = Image.fromarray(emoji.pictures()[5])
    same = pairs.Affine(rotate=0.0, zoom=(1.0, 1.0), shift=0.0)(image, np.random.default_rng(0))
    np.testing.assert_array_equal(np.asarray(same), np.asarray(image))
    moved = np.asarray(pairs.Affine(rotate=180.0, fill=7)(image, np.random.default_rng(3)))
    assert (moved == 7).any() and moved.shape == (64, 64, 3)


# Tokens ---------------------------------------------------------------------------------------------------------------


def test_a_caption_that_is_too_long_keeps_its_end_and_is_counted():
    dataset = pairs.build(section(), split="test", train=False)
    encode, end = pairs.Encode(dataset.info.tokenizer, 16), dataset.info.tokenizer.eos_id
    short, cut = encode("a cat")
    assert short[5] == end and not cut and np.all(short[6:] == dataset.info.tokenizer.pad_id)
    long, cut = encode("a" * 16)
    assert cut and long[15] == end and end not in long[:15]
    batch = next(iter(eval_batches(dataset, 200)))[0]
    names = [record["name"] for record in dataset.source.records[:200]]
    np.testing.assert_array_equal(batch["truncated"], [len(name) > 15 for name in names])


# Tables ---------------------------------------------------------------------------------------------------------------


def table(tmp_path, rows, name="pairs.jsonl"):
    for i in range(3):
        (tmp_path / f"{i}.png").write_bytes(png(i))
    path = tmp_path / name
    if name.endswith(".jsonl"):
        path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    else:
        with path.open("w", newline="") as file:
            writer = csv.DictWriter(file, list(rows[0]), delimiter="\t" if name.endswith("tsv") else ",")
            writer.writeheader()
            writer.writerows(rows)
    return f"{name.rpartition('.')[2]}:{path}"


ROWS = [
    {"image": "0.png", "caption": "one, with a comma"},
    {"image": "1.png", "caption": "two"},
    {"image": "0.png", "caption": "one again"},
]


@pytest.mark.parametrize("name", ["pairs.jsonl", "pairs.csv", "pairs.tsv"])
def test_rows_of_one_image_are_one_example(tmp_path, name):
    source = load_source(table(tmp_path, ROWS, name))
    assert [source[i]["captions"] for i in range(len(source))] == [("one, with a comma", "one again"), ("two",)]
    assert source[1]["image"] == png(1) and source.labels() is None


def test_columns_are_named_and_labels_read(tmp_path):
    rows = [{"where": f"{i}.png", "what": ["a", " b "], "kind": kind} for i, kind in enumerate("yxy")]
    uri = table(tmp_path, rows)
    with pytest.raises(UserError, match="the column of images is unknown .columns: 'where', 'what', 'kind'.; set data.col"):
        pairs.build(section(train=uri, test=uri, image_size=8), split="train", train=True)
    columns = dict(image="where", text="what", label="kind")
    dataset = pairs.build(section(train=uri, test=uri, image_size=8, columns=columns), split="train", train=True)
    assert dataset.info.classes == ("x", "y") and dataset.source[0]["captions"] == ("a", "b")
    np.testing.assert_array_equal(dataset.labels(), [1, 0, 1])
    assert dataset.example(0, np.random.default_rng(0))["image"].shape == (8, 8, 3)


@pytest.mark.parametrize(
    ("row", "message"),
    [
        ({"image": "7.png", "caption": "x"}, "pairs.jsonl: line 4 names an image that does not exist: "),
        ({"image": "2.png", "caption": "  "}, "pairs.jsonl: line 4 has an empty caption"),
        ({"image": "broken.png", "caption": "x"}, "pairs.jsonl: line 4 is truncated"),
    ],
)
def test_a_bad_example_is_named_or_skipped_and_counted(tmp_path, row, message):
    (tmp_path / "broken.png").write_bytes(png()[:60])
    uri = table(tmp_path, [*ROWS, row])
    with pytest.raises(BadExample) as caught:
        pairs.build(section(train=uri, test=uri, image_size=8), split="train", train=True).rows(np.arange(3))
    assert message in str(caught.value) and "\n" not in str(caught.value) and "data.on_bad_example" in str(caught.value)
    settings = section(train=uri, test=uri, image_size=8, on_bad_example="skip")
    dataset = pairs.build(settings, split="train", train=False)
    assert len(dataset.rows(np.arange(3))["tokens"]) == 3 and dataset.skipped() == 1


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "is empty; expected rows of image paths"),
        ('{"image": "a.png"', "line 1 is not JSON"),
        ("[1, 2]", "line 1 is '[1, 2]', expected an object"),
        ('{"image": 3, "caption": "x"}', "line 1: image is '3', expected the path of an image"),
        ('{"image": "a.png"}', "the column of captions is unknown; set data.columns.text"),
    ],
)
def test_a_damaged_table_is_told_in_one_line(tmp_path, text, message):
    path = tmp_path / "pairs.jsonl"
    path.write_text(text)
    with pytest.raises(UserError) as caught:
        pairs.build(section(train=f"jsonl:{path}", test=f"jsonl:{path}", image_size=8), split="train", train=True)
    assert message in str(caught.value) and "\n" not in str(caught.value)


def test_without_a_test_table_a_share_is_held_out_by_path(tmp_path):
    uri = table(tmp_path, [{"image": f"{i}.png", "caption": f"number {i}"} for i in range(30)])
    splits = [
        pairs.build(section(train=uri, test=None, holdout=0.3, image_size=8), split=s, train=False) for s in ("train", "test")
    ]
    captions = [{d.source.captions(i)[0] for i in range(d.size)} for d in splits]
    assert captions[0] | captions[1] == {f"number {i}" for i in range(30)} and not captions[0] & captions[1]
    with pytest.raises(UserError, match="data.holdout=0 of .* holds out no test examples"):
        pairs.build(section(train=uri, test=None, holdout=0.0, image_size=8), split="test", train=False)


# Tar shards -----------------------------------------------------------------------------------------------------------


def shards(tmp_path, count=2, each=3):
    for shard in range(count):
        with tarfile.open(tmp_path / f"{shard:05d}.tar", "w") as archive:
            for i in range(each):
                key = f"{shard:05d}{i:04d}"
                members = {"png": png(10 * shard + i), "txt": f" caption {key} ".encode(), "json": b"{}"}
                if i == 1:
                    members |= {"txt": b"", "json": json.dumps({"caption": "from json"}).encode()}
                if i == 2 and shard == 1:
                    del members["png"]
                for suffix, data in members.items():
                    member = tarfile.TarInfo(f"{key}.{suffix}")
                    member.size = len(data)
                    archive.addfile(member, io.BytesIO(data))


def test_tar_shards_are_random_access(tmp_path, monkeypatch):
    shards(tmp_path)
    source = load_source(f"tar:{tmp_path}/{{00000..00001}}.tar")
    assert len(source) == 5 and source.without_image == 1
    assert source[3] == {"image": png(10), "captions": ("caption 000010000",)}
    assert source[1]["captions"] == ("from json",) and source.describe(4).endswith("00001.tar: 000010001")
    monkeypatch.setattr(tar_shards, "_scan", None)  # the index is kept, and not built twice
    again = tar_shards.TarShards(str(tmp_path))
    assert [again[i]["captions"] for i in (4, 0)] == [("from json",), ("caption 000000000",)]
    dataset = pairs.build(section(train=f"tar:{tmp_path}", test=f"tar:{tmp_path}", image_size=8), split="train", train=True)
    assert Stream(dataset, batch_size=4, seed=0).host_batch(0)["image"].shape == (4, 8, 8, 3)


def test_shards_with_classes_are_labelled_images(tmp_path):
    """WebDataset's layout for classification: KEY.png and KEY.cls, and keys that end at the first dot."""
    with tarfile.open(tmp_path / "a.tar", "w") as archive:
        for i, label in enumerate(["10", "9", "10", ""]):
            members = {"png": png(i, (8, 8))} | ({"cls": label.encode()} if label else {}) | {"seg.png": b"a mask"}
            for suffix, data in members.items():
                member = tarfile.TarInfo(f"train/{i}.{suffix}")
                member.size = len(data)
                archive.addfile(member, io.BytesIO(data))
    source = load_source(f"tar:{tmp_path / 'a.tar'}")
    assert source.classes == ("9", "10") and source.labels().tolist() == [1, 0, 1, -1] and source[1]["label"] == 0
    keys = dict(batch_size=2, image_size=8, normalize=None, on_bad_example="skip")
    dataset = build("images", dict(train=f"tar:{tmp_path / 'a.tar'}", holdout=0.0, **keys))
    assert dataset.labels().tolist() == [1, 0, 1] and dataset.skipped() == 1


def test_a_name_that_occurs_twice_in_a_shard_is_counted(tmp_path):
    shards(tmp_path, count=1)
    with tarfile.open(tmp_path / "00000.tar", "a") as archive:
        archive.addfile(tarfile.TarInfo("000000000.png"), io.BytesIO())
    assert "1 members whose name occurs twice in a shard" in load_source(f"tar:{tmp_path}").remarks()


def test_a_changed_shard_is_indexed_again(tmp_path):
    shards(tmp_path, count=1)
    assert len(tar_shards.TarShards(str(tmp_path))) == 3
    shards(tmp_path, count=1, each=5)
    assert len(tar_shards.TarShards(str(tmp_path))) == 5


def test_missing_and_damaged_shards(tmp_path):
    shards(tmp_path)
    with pytest.raises(UserError, match="2 of its 4 shards do not exist, the first is .*00002.tar"):
        tar_shards.TarShards(f"{tmp_path}/{{00000..00003}}.tar")
    with pytest.raises(UserError, match="there is no such file; expected a .tar"):
        tar_shards.TarShards(f"{tmp_path}/none/*.tar")
    (tmp_path / "00002.tar").write_bytes(b"not a tar" * 100)
    with pytest.raises(UserError, match="00002.tar: is not a readable tar archive"):
        tar_shards.TarShards(str(tmp_path))


# TFDS -----------------------------------------------------------------------------------------------------------------


def test_captions_in_every_form_that_sources_give():
    assert pairs.captions_of({"captions": {"text": np.array([b"a", b" b "], object), "id": np.arange(2)}}) == ("a", "b")
    assert pairs.captions_of({"caption": b"x"}) == ("x",) and pairs.captions_of({"text": ""}) == ()
    assert pairs.captions_of({"captions": np.array(["p", "q"])}) == ("p", "q") and pairs.captions_of({"image": 1}) == ()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (dict(context_length=1), "data.context_length=1: must be at least 2"),
        (dict(normalize="clips"), "data.normalize='clips'"),
        (dict(normalize=((0.5,),)), "data.normalize="),
        (dict(placement="device"), "data.placement='device'"),
        (dict(columns=dict(images="x")), "data.columns.images: unknown"),
        (dict(augment=dict(affine=dict(rotate=500.0))), "data.augment.affine.rotate=500"),
        (dict(train="bundled:emoji/dev"), "bundled:emoji/dev: there is no split 'dev'"),
    ],
)
def test_wrong_settings_are_told_in_one_line(change, message):
    with pytest.raises(UserError) as caught:
        pairs.build(section(**change), split="train", train=True)
    assert str(caught.value).startswith(message) and "\n" not in str(caught.value)


def test_the_task_batch_is_normalised():
    dataset = pairs.build(section(normalize="dataset"), split="train", train=False)
    raw = {"image": emoji.pictures()[:300], "tokens": np.zeros((300, 16), np.int32)}
    image = np.asarray(jax.jit(dataset.on_device, static_argnums=1)(raw, None)["image"])
    assert abs(image.mean()) < 0.2 and abs(image.std() - 1) < 0.2
