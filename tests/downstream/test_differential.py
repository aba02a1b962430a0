"""Fine-tuning, few-shot, label efficiency, retrieval and embed on data with defects agree with NumPy and scikit-learn.

As in `test_defective_data`, the oracle is given the pictures, classes and captions that were written, without the unreadable
and the unlabelled ones.
"""

import dataclasses
import json
import tempfile
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st
from ml_collections import ConfigDict
from PIL import Image
from sklearn.linear_model import LogisticRegression, Ridge

from ssl_jax import data as kinds
from ssl_jax import inference
from ssl_jax.data.pipeline import balanced_subset
from ssl_jax.data.sources import load_source
from ssl_jax.downstream.evaluator import EvaluationData
from ssl_jax.downstream.evaluators.features import Encoder
from ssl_jax.downstream.evaluators.few_shot import FewShot, draw
from ssl_jax.downstream.evaluators.finetune import FineTune, FineTuner, Recipe
from ssl_jax.downstream.evaluators.label_efficiency import LabelEfficiency
from ssl_jax.downstream.evaluators.linear_probe import LinearProbe
from ssl_jax.downstream.evaluators.retrieval import Retrieval
from ssl_jax.downstream.supervised.classification import Classification
from ssl_jax.reports.records import flat
from ssl_jax.task import Task
from tests.data.test_defects import KINDS, LEVELS, picture, write
from tests.downstream.test_defective_data import NAMES, Projected, readable
from tests.keys import toy_key

SECTION = dict(batch_size=4, image_size=4, eval_crop=1.0, normalize=None, on_bad_example="skip")
MODEL = dict(name="vit", patch_size=2, width=8, depth=1, heads=2)
RECIPE = dict(training=dict(duration="2 steps"), optimizer=dict(name="adamw", lr=1e-2), batch_size=8)
SEEDS = st.integers(0, 2**31)  # Hypothesis begins with the simplest value: of examples, those without a defect


def trials(count):
    """`count` seeds, none of them shrunk."""
    suppressed = [HealthCheck.function_scoped_fixture]
    return settings(max_examples=count, deadline=None, phases=(Phase.generate,), suppress_health_check=suppressed)


def random_examples(seed, count=10):
    """Random classes, a third of them unreadable and a sixth unlabelled."""
    random = np.random.default_rng(seed)
    states = random.choice(["good", "good", "good", "bad", "bad", "unlabelled"], count)
    return list(zip(random.choice(NAMES, count).tolist(), states.tolist(), strict=True))


def evaluation(kind, folder, seed):
    """(data, training examples, test examples): every class is trained on four times or more, the test split may lack some."""
    train = random_examples(seed) + [(name, "good") for name in NAMES for _ in range(4)]
    test = [(NAMES[0], "good"), *random_examples(seed + 1), (NAMES[2], "good")]
    uris = {split: write(kind, Path(folder) / split, rows) for split, rows in (("train", train), ("test", test))}
    config = ConfigDict(dict(data=uris | SECTION, model=MODEL, training=dict(dtype="float32")))
    splits = [kinds.build("images", config.data, split=split, train=False) for split in ("train", "test")]
    return EvaluationData(*splits, config=config), train, test


def encoder_of(data):
    """The fixed projection, with a vision transformer's parameters for fine-tuning to start from."""
    task = Classification.from_config(ConfigDict(data.config.to_dict() | dict(task={})), data.train.info)
    return Encoder(Projected(), jax.jit(task.init)(toy_key(0), {"image": jnp.zeros((1, 4, 4, 3))}))


def pictures(kind, examples):
    """The readable pictures as a model reads them, f32[examples, 4, 4, 3], and their classes."""
    order = sorted(range(len(examples)), key=lambda i: examples[i][0]) if kind == "folder" else range(len(examples))
    unread = {"npz": {"unlabelled"}, "folder": {"bad"}}.get(kind, {"bad", "unlabelled"})
    order = [i for i in order if examples[i][1] not in unread]
    images = np.array([picture(LEVELS[examples[i][0]], i) for i in order], np.float32) / 255
    return images, np.array([NAMES.index(examples[i][0]) for i in order])


def accuracy(task, params, images, labels):
    """The accuracy of a returned model on pictures that went through no pipeline."""
    return np.mean(np.asarray(task.forward(params, {"image": jnp.asarray(images)})["logits"]).argmax(1) == labels)


@pytest.fixture
def fits(monkeypatch):
    """What every `FineTuner.fit` was given and returned: (tuner, indices, parameters)."""
    found, fit = [], FineTuner.fit

    def recorded(self, indices, **options):
        params = fit(self, indices, **options)
        found.append((self, indices, params))
        return params

    monkeypatch.setattr(FineTuner, "fit", recorded)
    return found


@pytest.mark.parametrize("kind", ["folder", "npz"])
@trials(1)
@given(seed=SEEDS)
def test_fine_tuning(kind, fits, seed):
    """The reported accuracy is that of the returned model; every training batch holds pictures beside their own classes."""
    with tempfile.TemporaryDirectory() as folder:
        data, train, test = evaluation(kind, folder, seed)
        found = flat(FineTune(**RECIPE, scratch=None)(encoder_of(data), data))
        (images, labels), (tuner, indices, params) = pictures(kind, test), fits[-1]
        assert found["accuracy"] == pytest.approx(accuracy(tuner.task, params, images, labels))
        majority = np.bincount(pictures(kind, train)[1]).argmax()
        assert found["majority/accuracy"] == pytest.approx(np.mean(labels == majority))
        stream, seen = tuner._stream(indices, 0), []
        for step in range(4):
            batch = stream.on_device(stream.resident, stream.host_batch(step), None)
            levels = np.round(np.asarray(batch["image"])[:, 3, 3, 0] * 255).astype(int)
            assert [LEVELS[NAMES[label]] for label in np.asarray(batch["label"])] == levels.tolist()
            seen += np.asarray(batch["index"]).tolist()
        assert len(pictures(kind, train)[1]) == len(indices) == stream.dataset.size and max(seen) < len(indices)


@pytest.mark.parametrize("kind", ["tar"])
@trials(1)
@given(seed=SEEDS)
def test_label_efficiency(kind, fits, seed):
    """On the part of the labels that `balanced_subset` draws of the readable examples: fine-tuned, and by scikit-learn."""
    with tempfile.TemporaryDirectory() as folder:
        data, train, test = evaluation(kind, folder, seed)
        probe = LinearProbe(l2=(1e-1,), held_out=0.2)
        evaluator = LabelEfficiency(
            fractions=(0.5,), seeds=1, finetune=Recipe(**RECIPE), scratch=None, linear_probe=probe, baselines=False
        )
        found = flat(evaluator(encoder_of(data), data))
        (x, y), (xt, yt) = readable(kind, train), readable(kind, test)
        part = balanced_subset(y, fraction=0.5, seed=0)
        tuner, indices, params = fits[-1]
        np.testing.assert_array_equal(indices, part)
        np.testing.assert_array_equal(tuner.train.labels()[indices], y[part])
        assert found["50%/finetune/mean"] == pytest.approx(accuracy(tuner.task, params, *pictures(kind, test)))
        x, xt = x[part, :-1], xt[:, :-1]  # without the constant
        mean, std = x.mean(0), x.std(0)
        reference = LogisticRegression(C=1 / (1e-1 * len(x)), tol=1e-8, max_iter=5000).fit((x - mean) / std, y[part])
        assert abs(found["50%/linear_probe/mean"] - reference.score((xt - mean) / std, yt)) <= 1.01 / len(yt)


@pytest.mark.parametrize("kind", KINDS)
@trials(2)
@given(seed=SEEDS)
def test_few_shot(kind, seed):
    """Ridge regression of scikit-learn on the same draws, its strength chosen on the same other examples."""
    with tempfile.TemporaryDirectory() as folder:
        data, train, test = evaluation(kind, folder, seed)
        evaluator = FewShot(shots=(2,), draws=2, l2=(1e-2, 1e3), held_out=5, baselines=False)
        found = flat(evaluator(encoder_of(data), data))
        (x, y), (xt, yt) = readable(kind, train), readable(kind, test)
        fitted, scores = [], np.zeros(2)
        for seed in range(2):
            drawn = draw(y, len(NAMES), 2, seed)
            assert np.bincount(y[drawn]).tolist() == [2] * len(NAMES)
            rest = np.random.default_rng(seed).permutation(np.setdiff1d(np.arange(len(y)), drawn))[:5]
            targets = np.where(y[drawn, None] == np.arange(len(NAMES)), 1.0, -1.0)
            fitted.append([Ridge(alpha=alpha).fit(x[drawn], targets) for alpha in (1e-2, 1e3)])
            scores += [np.mean(ridge.predict(x[rest]).argmax(1) == y[rest]) for ridge in fitted[-1]]
        chosen = [ridges[int(scores.argmax())] for ridges in fitted]
        wanted = np.mean([np.mean(ridge.predict(xt).argmax(1) == yt) for ridge in chosen])
        assert found["2-shot/accuracy"] == pytest.approx(wanted)


# Pairs ------------------------------------------------------------------------------------------------------------------

WORDS = tuple("abcdefgh")
PAIRS = st.lists(
    st.tuples(st.sampled_from(NAMES), st.lists(st.sampled_from(WORDS), max_size=3), st.sampled_from(["good", "good", "bad"])),
    min_size=4, max_size=9,
)  # fmt: skip
KERNEL = np.random.default_rng(0).integers(-2, 3, (48, 3)).astype(np.float32)
TABLE = np.random.default_rng(1).integers(-2, 3, (len(WORDS), 3)).astype(np.float32)


@dataclasses.dataclass(frozen=True)
class Named(Task):
    """A fixed projection of the pixels; a caption of one letter is a row of TABLE."""

    tokenizer: object

    name, data = "named", "pairs"

    def features(self, params, batch):
        found = {}
        if "image" in batch:
            found["image_embedding"] = batch["image"].reshape(len(batch["image"]), -1) @ jnp.asarray(KERNEL)
        if "tokens" in batch:
            ids = jnp.array([self.tokenizer.encode(word)[0] for word in WORDS])
            place = jnp.argmax(batch["tokens"][:, :1] == ids, axis=1)
            found["text_embedding"] = jnp.asarray(TABLE)[place]
        return found


def recall(queries, candidates, right, k):
    """The mean over the queries of the chance that a right candidate is among the first k, ties broken at random."""
    hits = []
    for query, own in zip(queries, right, strict=True):
        scores = candidates @ query
        best = max(scores[own])
        above, tied = np.sum(scores > best), np.sum(scores == best)
        mine, places = np.sum(scores[own] == best), k - above
        miss = 1.0 if places > 0 else 0.0
        for i in range(max(min(places, tied), 0)):
            miss *= max(tied - mine - i, 0) / (tied - i)
        hits.append(1 - miss if places > 0 else 0.0)
    return np.mean(hits)


@pytest.mark.parametrize("captions", ["first", "all"])
@settings(max_examples=3, deadline=None)
@given(rows=PAIRS)
def test_retrieval(captions, rows):
    """Recall over the images that can be read and have a caption; an image's captions are its own, whatever is skipped."""
    rows = [*rows, ("ant", ["a"], "good"), ("dog", ["h", "b"], "good")]
    with tempfile.TemporaryDirectory() as folder:
        file, lines = Path(folder) / "pairs.jsonl", []
        for i, (name, words, state) in enumerate(rows):
            Image.fromarray(picture(LEVELS[name], i)).save(Path(folder) / f"{i}.png")
            if state == "bad":
                (Path(folder) / f"{i}.png").write_bytes(b"no image")
            lines.append(json.dumps(dict(file=f"{i}.png", captions=words)))
        file.write_text("\n".join(lines))
        section = SECTION | dict(train=f"jsonl:{file}", test=f"jsonl:{file}", context_length=4)
        test = kinds.build(
            "pairs", section | dict(tokenizer=dict(name="bytes", special_tokens=("[PAD]", "[EOS]"))), split="test", train=False
        )
        encoder = Encoder(Named(test.info.tokenizer), {})
        found = flat(Retrieval(ks=(1, 3), captions=captions, batch_size=4)(encoder, EvaluationData(test, test)))
    kept = [(i, name, words) for i, (name, words, state) in enumerate(rows) if state == "good" and words]
    assert test.size == len(kept) and test.skipped() == len(rows) - len(kept)
    images = np.array([picture(LEVELS[name], i) for i, name, _ in kept], np.float32).reshape(len(kept), -1) / 255 @ KERNEL
    owned = [(place, word) for place, (_, _, words) in enumerate(kept) for word in (words if captions == "all" else words[:1])]
    owner = np.array([place for place, _ in owned])
    texts = TABLE[[WORDS.index(word) for _, word in owned]]
    for k in (1, 3):
        assert found[f"text_to_image/R@{k}"] == pytest.approx(recall(texts, images, owner[:, None], k), abs=1e-6)
        mine = [np.flatnonzero(owner == place) for place in range(len(kept))]
        assert found[f"image_to_text/R@{k}"] == pytest.approx(recall(images, texts, mine, k), abs=1e-6)


# embed ------------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", KINDS)
@trials(2)
@given(seed=SEEDS)
def test_embed(kind, monkeypatch, seed):
    """Rows are the readable examples in the source's order, with their number, name and features; the others are named."""
    examples = [("ant", "good"), *random_examples(seed), ("bee", "good")]
    with tempfile.TemporaryDirectory() as folder:
        uri, out = write(kind, Path(folder) / "data", examples), Path(folder) / "out.npz"
        section = SECTION | dict(train=uri, test=uri)
        build = lambda *_: kinds.build("images", section, split="test", train=False, unlabelled=True)
        monkeypatch.setattr(inference, "restore_task", lambda *_: (Projected(), {}, build().info))
        monkeypatch.setattr(inference, "dataset_of", build)
        inference.embed("run", data=uri, features=("mean",), to=str(out))
        found, (x, y) = np.load(out), readable(kind, [(name, state.replace("unlabelled", "good")) for name, state in examples])
        np.testing.assert_allclose(found["mean"], x, rtol=1e-4, atol=1e-4)
        states = [state for _, state in examples if state != "bad" or kind == "npz"]
        unlabelled = np.array([kind != "folder" and state == "unlabelled" for state in states])
        assert (found["label"][unlabelled] == -1).all()
        named = [found["classes"][label] for label in found["label"][~unlabelled]]
        assert named == [NAMES[label] for label in y[~unlabelled]]
        source = load_source(uri)
        names = [source.describe(i).removeprefix(f"{uri}: ") for i in range(len(examples))]
        places = [i for i, name in enumerate(names) if name in found["name"]]
        assert places == found["index"].tolist() and [names[i] for i in places] == found["name"].tolist()
        assert found["skipped"].tolist() == [name for name in names if name not in found["name"]]
