"""Transformers over tokens: causality, packing, caches, output layer; parity with transformers' GPT-2 and BERT."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from ssl_jax import target
from ssl_jax.errors import UserError
from ssl_jax.models.cross_entropy import chunks_of, cross_entropy, logits, token_losses
from ssl_jax.models.language import Head, LanguageSettings, Transformer, pooled
from tests.keys import toy_key

SMALL = dict(width=16, depth=2, heads=4, context_length=24, init_std=0.3)
VARIANTS = {
    "gpt2": LanguageSettings(**SMALL),
    "modern": LanguageSettings(
        **SMALL,
        positions="rope",
        norm="rms",
        gated=True,
        activation="silu",
        kv_heads=2,
        qk_norm=True,
        bias=False,
        qkv_bias=False,
    ),
    "window": LanguageSettings(**SMALL, positions="rope", window=3, global_every=2, first_attention_norm=False),
    "sincos": LanguageSettings(**SMALL, positions="sincos", embedding_norm=True),
    "scan": LanguageSettings(**SMALL, scan=True, remat="full"),
}


def make(config, causal=True, vocabulary=11):
    model = Transformer(config, vocabulary, causal)
    tokens = jax.random.randint(jax.random.key(1), (2, 12), 0, vocabulary)
    return model, jax.jit(model.init)(toy_key(0), tokens), tokens


@pytest.mark.parametrize("name", VARIANTS)
def test_no_output_depends_on_a_later_token(name):
    """Changing token j changes no hidden state before j, and does change the one at j."""
    model, params, tokens = make(VARIANTS[name])
    apply = jax.jit(model.apply)
    before = apply(params, tokens)[0]
    after = apply(params, tokens.at[:, 7].set((tokens[:, 7] + 1) % 11))[0]
    np.testing.assert_array_equal(before[:, :7], after[:, :7])
    assert (jnp.abs(before[:, 7] - after[:, 7]).max(-1) > 1e-3).all()


@pytest.mark.parametrize("name", VARIANTS)
@pytest.mark.parametrize("causal", [True, False])
def test_attention_does_not_cross_packed_documents(name, causal):
    """With segments, a document's hidden states do not depend on its neighbours in the window."""
    model, params, tokens = make(VARIANTS[name], causal)
    segments = jnp.array([[1] * 5 + [2] * 7] * 2)
    apply = jax.jit(model.apply)
    before = apply(params, tokens, segments=segments)[0]
    after = apply(params, tokens.at[:, 2].set((tokens[:, 2] + 1) % 11), segments=segments)[0]
    np.testing.assert_array_equal(before[:, 5:], after[:, 5:])
    assert jnp.abs(before[:, 2] - after[:, 2]).max() > 1e-3


@pytest.mark.parametrize("name", ["gpt2", "modern", "window", "sincos"])
def test_incremental_decoding_equals_the_whole_sequence(name):
    """One token at a time through the caches gives the hidden states of one pass."""
    model, params, tokens = make(VARIANTS[name])
    apply = jax.jit(model.apply)
    whole = apply(params, tokens)[0]
    caches, parts = model.empty_caches(2, 16), []
    for start, stop in [(0, 4), *((i, i + 1) for i in range(4, 12))]:
        out, inner = apply(params, tokens[:, start:stop], positions=np.arange(start, stop)[None], caches=caches)
        caches = inner["caches"]
        parts.append(out)
    np.testing.assert_allclose(np.concatenate(parts, 1), whole, atol=2e-5)


@pytest.mark.parametrize("chunks", [2, 3, 12])
@pytest.mark.parametrize("bias", [False, True])
def test_chunked_cross_entropy_equals_the_plain_one(chunks, bias):
    """Value, metrics and all gradients, with label weights and the z loss."""
    keys = jax.random.split(jax.random.key(0), 5)
    hidden, weight = jax.random.normal(keys[0], (3, 12, 8)), jax.random.normal(keys[1], (37, 8))
    labels = jax.random.randint(keys[2], (3, 12), 0, 37)
    offset = jax.random.normal(keys[3], (37,)) if bias else jnp.zeros(37)
    weights = jax.random.bernoulli(keys[4], 0.6, (3, 12)).astype(jnp.float32)

    def run(hidden, weight, offset, chunks):
        return cross_entropy(hidden, weight, labels, offset, label_weights=weights, z_loss=1e-2, chunks=chunks)

    gradient = jax.jit(jax.value_and_grad(run, (0, 1, 2), has_aux=True), static_argnums=3)
    plain, chunked = gradient(hidden, weight, offset, 1), gradient(hidden, weight, offset, chunks)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=2e-5, atol=1e-6), plain, chunked)


def test_cross_entropy_is_the_textbook_one():
    """Against log_softmax written out in numpy, weights included."""
    rng = np.random.default_rng(0)
    hidden, weight = rng.normal(size=(2, 5, 4)).astype(np.float32), rng.normal(size=(7, 4)).astype(np.float32)
    labels, weights = rng.integers(0, 7, (2, 5)), rng.random((2, 5)).astype(np.float32)
    scores = (hidden @ weight.T).astype(np.float64)
    log_z = np.log(np.exp(scores).sum(-1))
    nll = log_z - np.take_along_axis(scores, labels[..., None], -1)[..., 0]
    loss, metrics = cross_entropy(
        jnp.array(hidden), jnp.array(weight), jnp.array(labels, jnp.int32), label_weights=jnp.array(weights), z_loss=0.1
    )
    mean = lambda x: (x * weights).sum() / weights.sum()
    np.testing.assert_allclose(loss, mean(nll) + 0.1 * mean(log_z**2), rtol=1e-5)
    np.testing.assert_allclose(metrics["cross_entropy"], mean(nll), rtol=1e-5)
    np.testing.assert_allclose(metrics["accuracy"], mean(scores.argmax(-1) == labels), rtol=1e-6)
    np.testing.assert_allclose(metrics["weight"], weights.sum(), rtol=1e-6)


@pytest.mark.parametrize("dtype, tolerance", [("float32", 1e-6), ("bfloat16", 1e-2)])
def test_the_gradient_written_out_is_that_of_the_formula(dtype, tolerance):
    """Autodiff of the textbook's loss in f32, with a bias, label weights and the z loss; in bf16 to its rounding."""
    keys = jax.random.split(jax.random.key(0), 5)
    hidden, weight = jax.random.normal(keys[0], (3, 12, 8)).astype(dtype), jax.random.normal(keys[1], (37, 8))
    labels, offset = jax.random.randint(keys[2], (3, 12), 0, 37), jax.random.normal(keys[3], (37,))
    weights = jax.random.uniform(keys[4], (3, 12))

    def formula(hidden, weight, offset):
        scores = hidden.astype(jnp.float32) @ weight.astype(dtype).astype(jnp.float32).T + offset
        log_z = jax.nn.logsumexp(scores, axis=-1)
        nll = log_z - jnp.take_along_axis(scores, labels[..., None], -1)[..., 0]
        return 3 * jnp.sum((nll + 0.1 * log_z**2) * weights) / jnp.sum(weights)

    ours = lambda *x: 3 * cross_entropy(x[0], x[1], labels, x[2], label_weights=weights, z_loss=0.1, chunks=5)[0]
    for mine, theirs in zip(*(jax.jit(jax.grad(f, (0, 1, 2)))(hidden, weight, offset) for f in (ours, formula)), strict=True):
        assert mine.dtype == theirs.dtype
        apart = jnp.linalg.norm((mine - theirs).astype(jnp.float32)) / jnp.linalg.norm(theirs.astype(jnp.float32))
        assert apart < tolerance


def test_equal_logits_share_the_accuracy():
    """An output layer of zeros guesses: 1 of 10, not all or none."""
    labels = jnp.arange(10)[None]
    assert cross_entropy(jnp.ones((1, 10, 4)), jnp.zeros((10, 4)), labels)[1]["accuracy"] == pytest.approx(0.1)


@pytest.mark.parametrize("batch, time, vocabulary, chunks", [
    (4, 64, 128, 1), (4, 1024, 50304, 4), (32, 1000, 50304, 25), (8, 41, 2**21, 11), (1, 7, 2**29, 7),
])  # fmt: skip
def test_chunks_divide_the_sequence_where_they_can(batch, time, vocabulary, chunks):
    assert chunks_of(batch, time, vocabulary) == chunks


@pytest.mark.parametrize("platform, kind, chunks", [
    ("gpu", "NVIDIA H100 80GB HBM3", 4), ("tpu", "TPU v5 lite", 16), ("gpu", "a card that no table knows", 32),
])  # fmt: skip
def test_chunks_are_larger_where_there_is_memory(platform, kind, chunks):
    """f32 logits of at most a 32nd of 80 GB or 16 GiB, of GPT-2's 32 x 1,024 tokens."""
    with target.told(target.Target(platform, kind)):
        assert chunks_of(32, 1024, 50304) == chunks


def test_logits_of_a_large_vocabulary_are_never_whole():
    """The compiled gradient of the chunked loss needs far less memory than one f32[batch, time, vocabulary]."""
    hidden, weight = jax.ShapeDtypeStruct((4, 256, 8), jnp.float32), jax.ShapeDtypeStruct((20_000, 8), jnp.float32)
    labels = jax.ShapeDtypeStruct((4, 256), jnp.int32)
    whole = 4 * 256 * 20_000 * 4

    def memory(chunks):
        run = lambda h, w, y: cross_entropy(h, w, y, chunks=chunks)[0]
        return jax.jit(jax.grad(run, (0, 1))).lower(hidden, weight, labels).compile().memory_analysis().temp_size_in_bytes

    assert memory(1) > whole
    assert memory(16) < whole / 4


def test_padded_vocabulary_and_tying():
    """The embedding has a multiple of `vocabulary_multiple` rows; an untied head has a matrix of its own."""
    config = LanguageSettings(**SMALL, vocabulary_multiple=8)
    _, params, tokens = make(config)
    assert params["params"]["token_embedding"].shape == (16, 16)
    hidden, table = jnp.ones((2, 3, 16)), params["params"]["token_embedding"]
    assert "params" not in Head(config, 11).init(jax.random.key(0), hidden, table)
    untied = dataclasses.replace(config, tied=False, output_bias=True, head_transform=True)
    names = Head(untied, 11).init(jax.random.key(0), hidden, table)["params"]
    assert set(names) == {"weight", "bias", "transform", "transform_norm"}


def test_a_sequence_beyond_the_learned_positions_is_refused():
    """Its positions would otherwise silently be NaN."""
    model, params, _ = make(VARIANTS["gpt2"])
    with pytest.raises(UserError, match="a sequence of 25 is longer than the model's context of 24"):
        model.apply(params, jnp.zeros((1, 25), jnp.int32))


def test_pooling_ignores_padding():
    hidden = jnp.arange(24.0).reshape(2, 4, 3)
    segments = jnp.array([[1, 1, 1, 0], [1, 2, 2, 2]])
    out = pooled(hidden, segments)
    np.testing.assert_allclose(out["mean"][0], hidden[0, :3].mean(0))
    np.testing.assert_allclose(out["last"], jnp.stack([hidden[0, 2], hidden[1, 3]]))
    np.testing.assert_allclose(out["cls"], hidden[:, 0])


@pytest.mark.parametrize(
    ("setting", "says"),
    [
        (dict(positions="alibi"), "positions='alibi': must be one of"),
        (dict(context_length=0), "context_length=0: must be at least 1"),
        (dict(token_types=-1), "token_types=-1: must not be negative"),
        (dict(vocabulary_multiple=0), "vocabulary_multiple=0: must be at least 1"),
    ],
)
def test_wrong_settings_are_named(setting, says):
    with pytest.raises(UserError, match=says):
        LanguageSettings(**setting)


def copy_block(ours, theirs, names):
    """PyTorch tensors into one of our blocks; `names` maps our path to (weight, bias, transpose)."""
    for path, (weight, bias) in names.items():
        node = ours
        for part in path.split("/"):
            node = node[part]
        leaf = "scale" if "norm" in path else "kernel"
        node[leaf] = jnp.array(theirs[weight].numpy().T if leaf == "kernel" else theirs[weight].numpy())
        node["bias"] = jnp.array(theirs[bias].numpy())


@pytest.mark.parity
def test_gpt2_equals_transformers():
    """Same weights, same logits as GPT2LMHeadModel with exact GELU."""
    import torch
    from transformers import GPT2Config, GPT2LMHeadModel

    torch.manual_seed(0)
    reference = GPT2LMHeadModel(
        GPT2Config(
            vocab_size=31, n_positions=24, n_embd=16, n_layer=2, n_head=4, activation_function="gelu", initializer_range=0.3
        )
    ).eval()
    w = {k: v.detach() for k, v in reference.state_dict().items()}
    config = LanguageSettings(**SMALL)
    model = Transformer(config, 31, causal=True)
    tokens = np.random.default_rng(0).integers(0, 31, (3, 20))
    params = jax.jit(model.init)(toy_key(0), jnp.array(tokens))["params"]
    params["token_embedding"], params["position_embedding"] = (
        jnp.array(w[f"transformer.{n}.weight"].numpy()) for n in ("wte", "wpe")
    )
    for i in range(2):
        h = f"transformer.h.{i}."
        qkv, bias = w[h + "attn.c_attn.weight"], w[h + "attn.c_attn.bias"]
        for j, name in enumerate(("query", "key", "value")):  # Conv1D keeps [in, out]
            w[h + name + ".weight"], w[h + name + ".bias"] = qkv[:, 16 * j : 16 * (j + 1)].T, bias[16 * j : 16 * (j + 1)]
        for name in ("attn.c_proj", "mlp.c_fc", "mlp.c_proj"):
            w[h + name + ".weight"] = w[h + name + ".weight"].T
        names = {
            "attention_norm": "ln_1", "mlp_norm": "ln_2", "attention/query": "query", "attention/key": "key",
            "attention/value": "value", "attention/out": "attn.c_proj", "mlp/up": "mlp.c_fc", "mlp/down": "mlp.c_proj",
        }  # fmt: skip
        block = params["stack"][f"block{i:02d}"]
        copy_block(block, w, {ours: (h + name + ".weight", h + name + ".bias") for ours, name in names.items()})
    copy_block(params, w, {"final_norm": ("transformer.ln_f.weight", "transformer.ln_f.bias")})
    hidden, _ = jax.jit(model.apply)({"params": params}, jnp.array(tokens))
    expected = reference(torch.tensor(tokens)).logits.detach().numpy()
    np.testing.assert_allclose(logits(hidden, params["token_embedding"]), expected, atol=2e-4, rtol=1e-4)


@pytest.mark.parity
def test_bert_equals_transformers():
    """Same weights, same MLM logits as BertForMaskedLM, padding and token types included."""
    import torch
    from transformers import BertConfig, BertForMaskedLM

    torch.manual_seed(0)
    reference = BertForMaskedLM(
        BertConfig(
            vocab_size=31, hidden_size=16, num_hidden_layers=2, num_attention_heads=4, intermediate_size=64,
            max_position_embeddings=24, initializer_range=0.3,
        )
    ).eval()  # fmt: skip
    w = {k: v.detach() for k, v in reference.state_dict().items()}
    config = LanguageSettings(
        **(SMALL | dict(norm_position="post", embedding_norm=True, final_norm=False, token_types=2, norm_eps=1e-12)),
        head_transform=True,
        output_bias=True,
    )
    model, head = Transformer(config, 31), Head(config, 31)
    rng = np.random.default_rng(0)
    tokens, kinds = rng.integers(0, 31, (3, 20)), rng.integers(0, 2, (3, 20))
    segments = (np.arange(20) < np.array([[20], [13], [7]])).astype(int)
    params = jax.jit(model.init)(toy_key(0), jnp.array(tokens))["params"]
    e = "bert.embeddings."
    for ours, theirs in (("token", "word"), ("position", "position"), ("type", "token_type")):
        params[f"{ours}_embedding"] = jnp.array(w[f"{e}{theirs}_embeddings.weight"].numpy())
    copy_block(params, w, {"embedding_norm": (e + "LayerNorm.weight", e + "LayerNorm.bias")})
    for i in range(2):
        names = {
            "attention/query": "attention.self.query", "attention/key": "attention.self.key",
            "attention/value": "attention.self.value", "attention/out": "attention.output.dense",
            "attention_norm": "attention.output.LayerNorm", "mlp/up": "intermediate.dense", "mlp/down": "output.dense",
            "mlp_norm": "output.LayerNorm",
        }  # fmt: skip
        h = f"bert.encoder.layer.{i}."
        block = params["stack"][f"block{i:02d}"]
        copy_block(block, w, {ours: (h + name + ".weight", h + name + ".bias") for ours, name in names.items()})
    hidden, _ = jax.jit(model.apply)(
        {"params": params}, jnp.array(tokens), segments=jnp.array(segments), token_types=jnp.array(kinds)
    )
    top = jax.jit(head.init)(toy_key(0), hidden, params["token_embedding"])["params"]
    t = "cls.predictions.transform."
    copy_block(
        top,
        w,
        {"transform": (t + "dense.weight", t + "dense.bias"), "transform_norm": (t + "LayerNorm.weight", t + "LayerNorm.bias")},
    )
    top["bias"] = jnp.array(w["cls.predictions.bias"].numpy())
    features, weight, bias = head.apply({"params": top}, hidden, params["token_embedding"])
    expected = reference(torch.tensor(tokens), torch.tensor(segments), torch.tensor(kinds)).logits.detach().numpy()
    real = segments == 1
    np.testing.assert_allclose(np.asarray(logits(features, weight, bias))[real], expected[real], atol=2e-4, rtol=1e-4)


def test_token_losses_predicts_the_likeliest_token():
    hidden, weight = jnp.eye(4)[None], jnp.eye(4)
    _, _, predicted = token_losses(hidden, weight, jnp.zeros((1, 4), jnp.int32))
    np.testing.assert_array_equal(predicted[0], jnp.arange(4))
