"""Retrieval: ranks against a plain loop, ties, chance, and the command's functions on a tiny model."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from ssl_jax.data.text.tokenizers import CharacterTokenizer
from ssl_jax.downstream.evaluators import retrieval
from ssl_jax.downstream.evaluators.cross_modal import hit_chance
from ssl_jax.downstream.evaluators.retrieval import Retrieval, chance, recalls, retrieve
from ssl_jax.errors import UserError
from ssl_jax.reports.records import flat
from ssl_jax.task import DataInfo


def vectors(seed, images=9, texts=9, dim=4):
    """Small whole numbers: similarities are exact and tie often."""
    random = np.random.default_rng(seed)
    return [random.integers(-1, 2, (n, dim)).astype(np.float32) for n in (images, texts)]


def by_trial(scores, right, k, trials=4000):
    """How often a right candidate is among the first k of a random order among ties, by trying."""
    random, hits = np.random.default_rng(0), 0
    for _ in range(trials):
        order = np.lexsort((random.random(len(scores)), -scores))[:k]
        hits += bool(set(order) & set(right))
    return hits / trials


@given(st.integers(0, 2**31 - 1), st.sampled_from([1, 2, 5]))
@settings(deadline=None, max_examples=10)
def test_recall_with_ties_is_the_mean_over_random_orders(seed, k):
    images, texts = vectors(seed, texts=12)
    owner = np.array([0, 1, 2, 3, 4, 5, 6, 7, 8, 0, 0, 3], np.int32)
    found = flat(recalls(images, texts, owner, (k,)))
    scores = texts @ images.T
    wanted = np.mean([by_trial(scores[j], [owner[j]], k, 800) for j in range(12)])
    assert abs(found[f"text_to_image/R@{k}"] - wanted) < 0.03
    wanted = np.mean([by_trial(scores[:, i], np.flatnonzero(owner == i), k, 800) for i in range(9)])
    assert abs(found[f"image_to_text/R@{k}"] - wanted) < 0.03


def test_a_model_that_tells_nothing_apart_is_at_chance():
    """All scores equal: no tie counts as a hit, in either direction; so do an image's several captions."""
    owner = np.repeat(np.arange(10, dtype=np.int32), 5)
    found = flat(recalls(np.ones((10, 3), np.float32), np.ones((50, 3), np.float32), owner, (1, 5, 10)))
    expected = flat(chance(10, owner, (1, 5, 10)))
    for name in (n for n in found if "R@" in n):
        assert found[name] == pytest.approx(expected[f"chance/{name}"]), name
    assert found["text_to_image/median_rank"] == 1 + 9 / 2 == expected["chance/text_to_image/median_rank"]


def test_a_perfect_model_and_a_known_rank():
    eye = np.eye(6, dtype=np.float32)
    found = flat(recalls(eye, eye, np.arange(6, dtype=np.int32), (1,)))
    assert found == {
        "text_to_image/R@1": 1.0, "text_to_image/median_rank": 1.0, "image_to_text/R@1": 1.0, "image_to_text/median_rank": 1.0
    }  # fmt: skip
    # every text is nearest to the next image and second nearest to its own
    found = flat(recalls(eye, np.roll(eye, 1, axis=1) + 0.5 * eye, np.arange(6, dtype=np.int32), (1, 2)))
    assert found["text_to_image/R@1"] == 0 and found["text_to_image/R@2"] == 1 and found["text_to_image/median_rank"] == 2


@pytest.mark.parametrize("side", ["image", "text"])
@pytest.mark.parametrize("bad", [np.nan, np.inf])
def test_vectors_that_are_not_finite_are_refused(side, bad):
    images, texts = vectors(3)
    (images if side == "image" else texts)[4, 1] = bad
    with pytest.raises(UserError, match=f"{side} embeddings of 1 of 9 examples are NaN or infinite"):
        recalls(images, texts, np.arange(9, dtype=np.int32), (1,))


def test_blocks_change_nothing(monkeypatch):
    images, texts = vectors(1, images=40, texts=40)
    owner = np.arange(40, dtype=np.int32)
    whole = recalls(images, texts, owner, (1, 5))
    monkeypatch.setattr(retrieval, "BLOCK", 7 * 40)
    assert recalls(images, texts, owner, (1, 5)) == whole


def test_hit_chance_by_hand():
    """Two wrong ones tie with the right one behind one better: places 2, 3 and 4 are equally likely."""
    numbers = [np.array([n]) for n in (1, 2, 1)]
    assert [float(hit_chance(*numbers, k)[0]) for k in (1, 2, 3, 4)] == pytest.approx([0, 1 / 3, 2 / 3, 1])


# The command ------------------------------------------------------------------------------------------------------------


@dataclasses.dataclass(frozen=True)
class Colours:
    """An image's vector is its mean colour, a text's that of the word."""

    name = "image_text"

    def features(self, params, batch):
        found = {}
        unit = lambda x: x / jnp.linalg.norm(x, axis=1, keepdims=True)
        if "image" in batch:
            found["image_embedding"] = unit(batch["image"].mean((1, 2)) + 1e-3)
        if "tokens" in batch:
            found["text_embedding"] = jnp.eye(3)[jnp.clip(batch["tokens"][:, 0], 0, 2)]
        return found


INFO = DataInfo(
    {"image": jax.ShapeDtypeStruct((8, 8, 3), jnp.float32), "tokens": jax.ShapeDtypeStruct((4,), jnp.int32)},
    mean=(0.0,) * 3, std=(1.0,) * 3, tokenizer=CharacterTokenizer("rgb", ("[PAD]", "[EOS]", "[UNK]")),
)  # fmt: skip


def folder(tmp_path):
    for name, colour in {"a": (0, 200, 0), "b": (220, 10, 10), "c": (0, 0, 255), "d": (150, 100, 0)}.items():
        Image.new("RGB", (10, 12), colour).save(tmp_path / f"{name}.png")
    (tmp_path / "e.png").write_bytes(b"broken")
    return f"folder:{tmp_path}"


def test_the_images_of_a_text(tmp_path):
    found = retrieve(Colours(), {}, INFO, text="r", images=folder(tmp_path), top=2, to=tmp_path / "out.png", batch_size=3)
    assert [name[-5:] for name, _ in found[:2]] == ["b.png", "d.png"] and found[0][1] > found[1][1]
    assert found[2][0] == "1 of 5 images could not be read"
    with Image.open(tmp_path / "out.png") as sheet:
        assert sheet.format == "PNG" and sheet.getpixel((60, 90)) == (220, 10, 10)


def test_the_captions_of_an_image(tmp_path):
    folder(tmp_path)
    (tmp_path / "texts").write_text("g\n\nr\nb\n")
    found = retrieve(Colours(), {}, INFO, image=str(tmp_path / "b.png"), texts=str(tmp_path / "texts"), top=2)
    assert found[0][0] == "r" and found[0][1] > 0.99 and len(found) == 2


@pytest.mark.parametrize(
    ("given", "message"),
    [
        (dict(text="r"), "retrieve: give --text=... with --images=URI"),
        (dict(text=" ", images="bundled:emoji/test"), "--text is empty"),
        (dict(image="none.png", texts="{}/texts"), "--image=none.png: there is no such file"),
        (dict(image="{}/bad.png", texts="{}/texts"), "--image="),
        (dict(image="{}/bad.png", texts="{}/nothing"), "--texts="),
        (dict(image="{}/bad.png", texts="{}/empty"), "--texts="),
        (dict(text="r", images="folder:{}/none"), "folder:"),
        (dict(text="r", images="bundled:emoji/test", top=0), "--top=0: must be at least 1"),
    ],
)
def test_mistakes_are_told_in_one_line(tmp_path, given, message):
    (tmp_path / "texts").write_text("r\n")
    (tmp_path / "empty").write_text("\n\n")
    (tmp_path / "bad.png").write_bytes(b"broken")
    given = {name: value.format(tmp_path) if isinstance(value, str) else value for name, value in given.items()}
    with pytest.raises(UserError) as caught:
        retrieve(Colours(), {}, INFO, **given)
    assert str(caught.value).startswith(message) and "\n" not in str(caught.value)


def test_settings_are_checked():
    with pytest.raises(UserError, match=r"ks=\(0,\): must be positive"):
        Retrieval(ks=(0,))
    with pytest.raises(UserError, match="captions='each'"):
        Retrieval(captions="each")
