"""The FLOP formulas agree with XLA's count; the bench says what it measured and what it could not; the peer is our model."""

import itertools
import json
import math
import time
import types

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from ml_collections import ConfigDict

from ssl_jax import bench, bench_peer, devices
from ssl_jax.errors import UserError
from ssl_jax.pretext.image_text import ImageText
from ssl_jax.pretext.masked_image import MaskedImage
from ssl_jax.pretext.masked_token import MaskedToken
from ssl_jax.pretext.next_token import NextToken
from ssl_jax.task import DataInfo

WIDE = dict(width=256, depth=2, heads=4)
BERT = dict(norm_position="post", embedding_norm=True, final_norm=False, head_transform=True, output_bias=True, token_types=2)
CLIP_IMAGE = dict(
    patch_size=8, positions="learned", pooling="cls", pre_norm=True, patch_bias=False, activation="quick_gelu", norm_eps=1e-5
)


class Words:
    """A tokenizer's numbers, without its words."""

    size, pad_id, separator_id, mask_id = 128, 0, 1, 3
    cls_id, sep_id, special_ids = 2, 1, (0, 1, 2, 3)

    def require(self, name):
        pass


def make(name, batch=4, model=WIDE):
    """(task, shapes of a batch) of the pretext task `name`."""
    config = ConfigDict(dict(training=dict(dtype="float32"), data=dict(batch_size=batch)))
    shape = lambda *s, dtype=jnp.float32: jax.ShapeDtypeStruct(s, dtype)
    shapes = {"image": shape(32, 32, 3), "tokens": shape(32, dtype=jnp.int32)}
    if name == "masked_image":
        config.task = dict(mask=dict(ratio=0.75), decoder=dict(width=128, depth=2, heads=4))
        config.model = dict(patch_size=4, **model)
        cls, shapes = MaskedImage, {"image": shapes["image"]}
    elif name == "next_token":
        config.task, config.model, cls, shapes = {}, dict(model), NextToken, {"tokens": shape(33, dtype=jnp.int32)}
    elif name == "masked_token":
        config.task, config.model, cls, shapes = {}, dict(BERT, **model), MaskedToken, {"tokens": shapes["tokens"]}
    else:
        config.task, cls = {}, ImageText
        text = dict(model, activation="quick_gelu")
        config.model = dict(image=dict(CLIP_IMAGE, **model), text=text, dim=64)
    task = cls.from_config(config, DataInfo(shapes, tokenizer=Words()))
    shapes = {name: shape(batch, *s.shape, dtype=s.dtype) for name, s in shapes.items()}
    return task, {**shapes, "position": shape(batch, dtype=jnp.int32)}, config


TASKS = ("masked_image", "next_token", "masked_token", "image_text")


@pytest.mark.parametrize("name", TASKS)
def test_the_flop_formula_agrees_with_xlas_count(name):
    """Forward and backward within 4 %.

    XLA counts causal attention whole, where the formula counts half; it also counts elementwise work (norms, softmax,
    activations: about 2 % at this width), and no gradient of the first layer's input (1 % here, counted by the formula).
    """
    task, batch, _ = make(name)
    params = jax.eval_shape(task.init, jax.random.key(0), batch)
    gradient = jax.value_and_grad(lambda p, b: task.loss(p, b, jax.random.key(0), train=True)[0])
    counted = bench._flops(jax.jit(gradient).lower(params, batch).cost_analysis())
    expected = task.flops() * 4
    causal = {"next_token": 32, "image_text": 32}.get(name, 0)
    expected += 3 * 4 * WIDE["depth"] * 2 * causal**2 * WIDE["width"]
    assert counted == pytest.approx(expected, rel=0.04)


def config_of(tmp_path, **training):
    """A run of a second or two."""
    images = np.random.default_rng(0).integers(0, 256, (64, 8, 8, 1), np.uint8)
    np.savez(tmp_path / "train.npz", image=images)
    return ConfigDict(
        dict(
            seed=0,
            data=dict(train=f"npz:{tmp_path / 'train.npz'}", batch_size=8),
            task=dict(name="masked_image", mask=dict(ratio=0.5), decoder=dict(width=8, depth=1, heads=2)),
            model=dict(name="vit", patch_size=4, width=8, depth=1, heads=2),
            training=dict(duration="5 steps", **training),
            optimizer=dict(name="adamw", lr=1e-3, schedule="constant"),
        )
    )


def test_what_is_measured_is_said_and_written(tmp_path, monkeypatch):
    monkeypatch.setattr(devices, "measured_peak", lambda dtype: 1e13)
    said = []
    found = bench.bench(config_of(tmp_path), steps=12, json_out=str(tmp_path / "out.json"), say=said.append)
    assert json.loads((tmp_path / "out.json").read_text()) == found
    step = found["step_ms"]
    assert 0 < step["p10"] <= step["median"] <= step["p90"] and step["steps"] == 12
    assert found["examples_per_s"] == pytest.approx(8e3 / step["median"])
    assert found["mfu"] == pytest.approx(found["model_flops_per_step"] * 1e3 / step["median"] / 1e13)
    assert 0 < found["data_wait"] < 1 and found["compile_s"] > 0 and math.isfinite(found["loss"])
    text = "\n".join(said)
    for word in (
        "compile",
        "median",
        "p90",
        "examples/s",
        "causal attention counts half",
        "MFU",
        "resident memory",
        "data wait",
    ):
        assert word in text


def test_an_unknown_peak_and_a_wrong_one_are_called_unknown(tmp_path, monkeypatch):
    """Never a utilisation over 100 %, nor a number made from no peak."""
    monkeypatch.setattr(devices, "peak", lambda device, dtype: devices.Peak(1.0, "a busy machine"))
    found = bench.bench(config_of(tmp_path), steps=1, say=lambda line: None)
    assert found["mfu"] is None and found["hfu"] is None and found["peak_flops"] is None
    said = {line.split()[0]: line.split()[1] for line in bench.lines(found)}
    assert said["MFU"] == said["peak"] == "unknown"


def test_mistakes_cost_nothing(tmp_path):
    config = config_of(tmp_path)
    for options, message in (
        (dict(steps=0), "--steps=0"),
        (dict(json_out=str(tmp_path / "no" / "out.json")), "its folder does not exist"),
    ):
        with pytest.raises(UserError, match=message):
            bench.bench(config, **options)
    config.task.mask_tokens_in_encoder = True
    with pytest.raises(UserError, match="--peer: the reference class has no mask tokens in the encoder"):
        bench.bench(config, peer=True)
    with pytest.raises(UserError, match="no reference class for the task translation"):
        bench_peer.reference(types.SimpleNamespace(name="translation"), config)


@pytest.mark.parametrize("class_token", [True, False])
def test_a_peer_that_cannot_be_made_the_same_says_so(class_token):
    task, _, config = make("masked_image", model=dict(class_token=class_token))
    spec = bench_peer.reference(task, config)
    assert ("class token" in spec.get("differs", "")) == (not class_token)


def test_the_table_has_a_line_a_measurement():
    peer = {"examples_per_s": {"ours": 300.0, "eager": 100.0, "compiled": 150.0}, "ratio": 2.0}
    both = {"examples_per_s": 300.0, "tokens_per_s": 3000.0, "mfu": 0.31, "peer": peer}
    alone = {"examples_per_s": 1234.0, "tokens_per_s": None, "mfu": None}
    assert bench.table([("a", both), ("b", alone)]).splitlines()[2:] == [
        "| a | tokens/s | 3,000 | 1,000 | 1,500 | 2.00 | 31.0 % |",
        "| b | images/s | 1,234 |  |  |  | unknown |",
    ]


@pytest.mark.parity
@pytest.mark.parametrize("name", TASKS)
def test_the_peer_is_the_same_model(name):
    """It has our number of parameters (but for biases that we were told to leave out) and its loss is that of chance."""
    transformers = pytest.importorskip("transformers")
    torch = pytest.importorskip("torch")
    task, batch, config = make(name, model=dict(width=32, depth=2, heads=4))
    spec = bench_peer.reference(task, config)
    ours = sum(math.prod(x.shape) for x in jax.tree.leaves(jax.eval_shape(task.init, jax.random.key(0), batch)))
    options = dict(lr=1e-3, b1=0.9, b2=0.999, eps=1e-8, weight_decay=0.1, clip=1.0)
    model, step = bench_peer._training(
        torch, transformers, {**spec, "compiled": False, "dtype": "float32", "device": "cpu", "optimizer": options}
    )
    assert sum(p.numel() for p in model.parameters() if p.requires_grad) == ours
    before = [p.detach().clone() for p in model.parameters() if p.requires_grad]
    step(0)
    after = [p for p in model.parameters() if p.requires_grad]
    assert sum(not torch.equal(a, b) for a, b in zip(before, after, strict=True)) > 0.9 * len(after)


def test_a_step_is_timed_over_several_calls():
    """A runtime may hand back two calls at once, so that one seems to take no time and the other twice its own."""
    calls = itertools.count()

    class Batches(itertools.repeat):
        waited = 0.0

    def program(state, batch, resident):
        time.sleep(0.02 * (next(calls) % 2))
        return state, {"loss": np.zeros(())}

    ours = bench.Ours.__new__(bench.Ours)
    ours.count, ours.program, ours.state, ours.resident, ours._batches = 1, program, None, None, Batches(None)
    times = ours.run(12)
    assert len(times) == 12 and 0.009 < min(times) and max(times) < 2 * min(times)


@pytest.mark.parity
@pytest.mark.slow
def test_beside_the_peer(tmp_path):
    """Blocks in turn, eager and compiled, and a ratio to the faster of the two."""
    pytest.importorskip("transformers")
    said = []
    found = bench.bench(config_of(tmp_path), steps=3, peer=True, say=said.append)["peer"]
    assert all(len(values) == bench.ALTERNATIONS for values in found["step_ms"].values())
    assert set(found["step_ms"]) == {"ours", "eager", "compiled"}
    assert found["ratio"] == pytest.approx(np.median(np.divide(found["step_ms"][found["faster"]], found["step_ms"]["ours"])))
    assert any("ViTMAEForPreTraining, compiled" in line for line in said)
