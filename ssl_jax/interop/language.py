"""Transformers over tokens: GPT2LMHeadModel, LlamaForCausalLM, the BERT family, ModernBertForMaskedLM."""

import jax
import jax.numpy as jnp
import numpy as np

from ssl_jax.errors import UserError
from ssl_jax.interop.family import Family, Sections, number, read_ids, section, vocabulary, write_ids
from ssl_jax.interop.mapping import SAME, Row, blocks, constant, dense, fused, norm, row
from ssl_jax.interop.settings import Settings
from ssl_jax.models import BLOCK
from ssl_jax.models.language import LanguageSettings
from ssl_jax.pretext.masked_token import MaskedToken
from ssl_jax.pretext.next_token import NextToken
from ssl_jax.task import DataInfo

STACK = f"transformer/stack/{BLOCK}"
SHAPE = {"width": "hidden_size", "depth": "num_hidden_layers", "heads": "num_attention_heads"}
TIED, POSITIONS = "tie_word_embeddings", "max_position_embeddings"


class _Language(Family):
    settings: Settings

    def sections(self, task: dict, model: dict, theirs: dict, preprocessing, *, one_more: int, **shapes) -> Sections:
        model |= vocabulary(theirs, None, preprocessing)
        shape = lambda *n: jax.ShapeDtypeStruct(n, jnp.int32)
        length = model["context_length"]
        shapes = {"tokens": shape(length + one_more)} | {n: shape(*((length,) if wide else ())) for n, wide in shapes.items()}
        info = DataInfo(shapes, tokenizer=preprocessing.tokenizer, extra=read_ids(theirs))
        return Sections(task, {"name": "transformer", **model}, info)

    def write_shape(self, task) -> dict:
        """Return the settings with the context length and the vocabulary."""
        c = task.model.config
        checked = ("context_length", "vocabulary", "vocabulary_multiple", *self.checked)
        theirs = self.settings.write(c, "model", self.architecture, checked=checked)
        theirs["vocab_size"] = c.padded(task.model.vocabulary)
        return theirs | write_ids(task, *self.ids)

    checked: tuple[str, ...] = ()
    ids: tuple[str, ...] = ()  # special tokens that config.json names besides pad, bos and eos


def zeros(theirs: str, shape: tuple[int, ...]) -> Row:
    """Return the row of a bias that our model does not have: zeros."""
    return constant(theirs, np.zeros(shape, np.float32), "zeros")


# Causal --------------------------------------------------------------------------------------------------------------


class GPT2(_Language):
    architecture, model_type, base = "GPT2LMHeadModel", "gpt2", "transformer"
    ignored = (r"(transformer\.)?h\.\d+\.attn\.(bias|masked_bias)",)
    settings = Settings(
        keys={
            "width": "n_embd", "depth": "n_layer", "heads": "n_head", "mlp_width": "n_inner", "norm_eps": "layer_norm_epsilon",
            "activation": "activation_function", "dropout": "resid_pdrop", "attention_dropout": "attn_pdrop",
            "tied": TIED, "init_std": "initializer_range",
        },
        defaults={
            "n_embd": 768, "n_layer": 12, "n_head": 12, "n_inner": None, "layer_norm_epsilon": 1e-5,
            "activation_function": "gelu_new", "resid_pdrop": 0.1, "attn_pdrop": 0.1, TIED: True, "initializer_range": 0.02,
        },
        demands={
            "scale_attn_weights": True, "scale_attn_by_inverse_layer_idx": False, "add_cross_attention": False,
        },
    )  # fmt: skip
    checked = ("bias", "qkv_bias", "norm_bias")  # exported as zeros if we have none

    def can_hold(self, task):
        return isinstance(task, NextToken) and task.model.config.positions != "rope"

    def read(self, theirs, tensors, preprocessing):
        model = self.settings.read(theirs, preprocessing.source)
        model["context_length"] = number(theirs, "n_positions", 1024, preprocessing.source)
        return self.sections({"name": "next_token"}, model, theirs, preprocessing, one_more=1)

    def write(self, task):
        theirs = self.write_shape(task)
        return theirs | {"n_positions": task.model.context, "embd_pdrop": task.model.config.dropout}

    def rows(self, task):
        c, t, o = task.model.config, "transformer.h.{i}", STACK
        hidden, inner = (c.width,), (c.width_of_mlp,)

        def layer(ours, theirs, has, shape):
            return dense(ours, theirs, bias=has, weight=SAME) + ([] if has else [zeros(f"{theirs}.bias", shape)])

        def norm_(ours, theirs):
            return norm(ours, theirs, bias=c.norm_bias) + ([] if c.norm_bias else [zeros(f"{theirs}.bias", hidden)])

        parts = ("kernel", "bias") if c.qkv_bias else ("kernel",)
        block = [
            *(
                row([f"{o}/attention/{n}/{part}" for n in ("query", "key", "value")],
                    f"{t}.attn.c_attn.{'weight' if part == 'kernel' else 'bias'}", fused(3, transposed=False))
                for part in parts
            ),
            *([] if c.qkv_bias else [zeros(f"{t}.attn.c_attn.bias", (3 * c.width,))]),
            *layer(f"{o}/attention/out", f"{t}.attn.c_proj", c.bias, hidden),
            *layer(f"{o}/mlp/up", f"{t}.mlp.c_fc", c.bias, inner),
            *layer(f"{o}/mlp/down", f"{t}.mlp.c_proj", c.bias, hidden),
            *norm_(f"{o}/attention_norm", f"{t}.ln_1"),
            *norm_(f"{o}/mlp_norm", f"{t}.ln_2"),
        ]  # fmt: skip
        rows = [
            row("transformer/token_embedding", "transformer.wte.weight"),
            row("transformer/position_embedding", "transformer.wpe.weight"),
            *blocks(c.depth, block),
            *norm_("transformer/final_norm", "transformer.ln_f"),
        ]
        return rows if c.tied else [*rows, row("head/weight", "lm_head.weight")]

    def tied(self, task):
        return {"lm_head.weight": "transformer.wte.weight"} if task.model.config.tied else {}


class Llama(_Language):
    architecture, model_type, base = "LlamaForCausalLM", "llama", "model"
    ignored = (r"model\.(layers\.\d+\.self_attn\.)?rotary_emb\.inv_freq",)
    settings = Settings(
        keys={
            **SHAPE, "mlp_width": "intermediate_size", "norm_eps": "rms_norm_eps", "activation": "hidden_act",
            "kv_heads": "num_key_value_heads", "head_width": "head_dim", "attention_dropout": "attention_dropout",
            "tied": TIED, "init_std": "initializer_range",
        },
        defaults={
            "num_key_value_heads": None, "head_dim": None, "rms_norm_eps": 1e-6, "hidden_act": "silu", TIED: False,
            "attention_dropout": 0.0, "initializer_range": 0.02,
        },
        fixed={"norm": "rms", "positions": "rope", "gated": True},
    )  # fmt: skip
    checked = ("rope_theta", "rope_scaling", "bias", "qkv_bias", "norm_bias")

    def can_hold(self, task):
        return isinstance(task, NextToken) and task.model.config.positions == "rope"

    def read(self, theirs, tensors, preprocessing):
        model = self.settings.read(theirs, preprocessing.source)
        bias = bool(theirs.get("attention_bias", False))
        if bias != bool(theirs.get("mlp_bias", False)):
            raise UserError(f"{preprocessing.source}: attention_bias and mlp_bias differ, which is not supported")
        rope = {
            **section(theirs, "rope_scaling", preprocessing.source),
            **section(theirs, "rope_parameters", preprocessing.source),
        }
        model |= {
            "bias": bias, "qkv_bias": bias, "context_length": number(theirs, POSITIONS, 2048, preprocessing.source),
            "rope_theta": theta({**theirs, **rope}, "rope_theta", 10_000.0, preprocessing.source),
        }  # fmt: skip
        model |= rope_scaling(rope, preprocessing.source)
        return self.sections({"name": "next_token"}, model, theirs, preprocessing, one_more=1)

    def write(self, task):
        c = task.model.config
        if c.bias != c.qkv_bias:
            raise UserError(
                f"model.bias={c.bias}, qkv_bias={c.qkv_bias}: LlamaForCausalLM has one setting for all biases of its "
                "attention; it cannot hold this model"
            )
        theirs = self.write_shape(task)
        rope = {"rope_theta": c.rope_theta, "rope_type": "default"}
        if c.rope_scaling:
            kind, *values = c.rope_scaling
            rope |= {"rope_type": kind, **dict(zip(ROPE[kind], values, strict=True))}
        # both spellings: transformers 5's, and that of other programs
        older = {"rope_theta": c.rope_theta, "rope_scaling": None if not c.rope_scaling else rope}
        biases = {"attention_bias": c.bias, "mlp_bias": c.bias}
        return theirs | biases | older | {POSITIONS: task.model.context, "rope_parameters": rope}

    def rows(self, task):
        c, o, t = task.model.config, STACK, "model.layers.{i}"
        block = [
            *(
                r
                for ours, theirs in (("query", "q_proj"), ("key", "k_proj"), ("value", "v_proj"), ("out", "o_proj"))
                for r in dense(f"{o}/attention/{ours}", f"{t}.self_attn.{theirs}", bias=c.bias)
            ),
            *(r for n in ("gate", "up", "down") for r in dense(f"{o}/mlp/{n}", f"{t}.mlp.{n}_proj", bias=c.bias)),
            *norm(f"{o}/attention_norm", f"{t}.input_layernorm", bias=False),
            *norm(f"{o}/mlp_norm", f"{t}.post_attention_layernorm", bias=False),
        ]
        rows = [
            row("transformer/token_embedding", "model.embed_tokens.weight"),
            *blocks(c.depth, block),
            *norm("transformer/final_norm", "model.norm", bias=False),
        ]
        return rows if c.tied else [*rows, row("head/weight", "lm_head.weight")]

    def tied(self, task):
        return {"lm_head.weight": "model.embed_tokens.weight"} if task.model.config.tied else {}


ROPE = {  # rope_type -> its settings, in the order of our rope_scaling
    "linear": ("factor",),
    "llama3": ("factor", "low_freq_factor", "high_freq_factor", "original_max_position_embeddings"),
}


def theta(settings, key: str, default: float, source: str) -> float:
    """Return the base of rotary positions."""
    return float(number(settings, key, default, source, kind=float))


def rope_scaling(rope: dict, source: str) -> dict:
    kind = rope.get("rope_type", rope.get("type", "default"))
    if rope.get("partial_rotary_factor") not in (None, 1):
        value = rope["partial_rotary_factor"]
        raise UserError(f"{source}: partial_rotary_factor={value!r} is not supported; expected 1.0")
    if kind == "default":
        return {}
    if not isinstance(kind, str) or kind not in ROPE:
        raise UserError(f"{source}: rope_type={kind!r}: must be one of default, {', '.join(ROPE)}")
    missing = [key for key in ROPE[kind] if key not in rope]
    if missing:
        raise UserError(f"{source}: rope_parameters lack {', '.join(missing)}")
    return {"rope_scaling": (kind, *(float(number(rope, key, None, source, least=0, kind=float)) for key in ROPE[kind]))}


# Masked --------------------------------------------------------------------------------------------------------------


class Bert(_Language):
    """BertForMaskedLM; its subclasses have other heads."""

    architecture, model_type, base = "BertForMaskedLM", "bert", "bert"
    ignored = (r"(\w+\.)?embeddings\.(position_ids|token_type_ids)",)
    settings = Settings(
        keys={
            **SHAPE, "mlp_width": "intermediate_size", "norm_eps": "layer_norm_eps", "activation": "hidden_act",
            "dropout": "hidden_dropout_prob", "attention_dropout": "attention_probs_dropout_prob",
            "token_types": "type_vocab_size", "init_std": "initializer_range",
        },
        defaults={
            "hidden_size": 768, "num_hidden_layers": 12, "num_attention_heads": 12, "intermediate_size": 3072,
            "layer_norm_eps": 1e-12, "hidden_act": "gelu", "hidden_dropout_prob": 0.1, "attention_probs_dropout_prob": 0.1,
            "type_vocab_size": 2, "initializer_range": 0.02,
        },
        fixed={"norm_position": "post", "embedding_norm": True, "final_norm": False},
        demands={"position_embedding_type": "absolute", "is_decoder": False, "add_cross_attention": False},
    )  # fmt: skip
    checked = ("position_offset", "tied", "head_transform", "output_bias", "pooler")
    marks = ("cls.predictions.transform.dense.weight",)
    head, next_sentence = True, False

    def can_hold(self, task):
        if not isinstance(task, MaskedToken) or task.model.config.position_offset or task.model.config.positions == "rope":
            return False
        return (task.model.config.head_transform, task.settings.next_sentence) == (self.head, self.next_sentence)

    def read(self, theirs, tensors, preprocessing):
        offset = self.offset(theirs, preprocessing.source)
        model = self.settings.read(theirs, preprocessing.source) | {
            "context_length": number(theirs, POSITIONS, 512, preprocessing.source, least=offset + 1) - offset,
            "head_transform": self.head, "output_bias": self.head, "tied": theirs.get(TIED, True) or not self.head,
            "pooler": self.next_sentence or any(name.endswith("pooler.dense.weight") for name in tensors),
            "position_offset": offset,
        }  # fmt: skip
        task = {"name": "masked_token", "next_sentence": self.next_sentence}
        shapes = {"token_types": True, "is_random": False} if self.next_sentence else {}
        return self.sections(task, model, theirs, preprocessing, one_more=0, **shapes)

    def offset(self, theirs, source) -> int:
        return 0

    def write(self, task):
        c, theirs = task.model.config, self.write_shape(task)
        for field, wanted in (("head_transform", self.head), ("output_bias", self.head)):
            if getattr(c, field) != wanted:
                raise UserError(f"model.{field}={not wanted}: {self.architecture} has {wanted}; it cannot hold this model")
        if not c.token_types:
            raise UserError(f"model.token_types=0: {self.architecture} has at least 1; it cannot hold this model")
        theirs = {k: v for k, v in theirs.items() if k != "position_embedding_type"}
        return theirs | {POSITIONS: task.model.context + c.position_offset, TIED: c.tied}

    def rows(self, task):
        c = task.model.config
        prefix = f"{self.base}." if self.head else ""
        o, t = STACK, f"{prefix}encoder.layer.{{i}}"
        block = [
            *(r for n in ("query", "key", "value") for r in dense(f"{o}/attention/{n}", f"{t}.attention.self.{n}")),
            *dense(f"{o}/attention/out", f"{t}.attention.output.dense"),
            *norm(f"{o}/attention_norm", f"{t}.attention.output.LayerNorm"),
            *dense(f"{o}/mlp/up", f"{t}.intermediate.dense"),
            *dense(f"{o}/mlp/down", f"{t}.output.dense"),
            *norm(f"{o}/mlp_norm", f"{t}.output.LayerNorm"),
        ]
        e = f"{prefix}embeddings"
        rows = [
            row("transformer/token_embedding", f"{e}.word_embeddings.weight"),
            row("transformer/position_embedding", f"{e}.position_embeddings.weight"),
            row("transformer/type_embedding", f"{e}.token_type_embeddings.weight"),
            *norm("transformer/embedding_norm", f"{e}.LayerNorm"),
            *blocks(c.depth, block),
        ]
        if c.pooler:
            ours = "next_sentence/pooler/dense" if self.next_sentence else "pooler/dense"
            rows += dense(ours, f"{prefix}pooler.dense")
        if self.next_sentence:
            rows += dense("next_sentence/classifier", "cls.seq_relationship")
        return rows + (self.head_rows(c) if self.head else [])

    def head_rows(self, c: LanguageSettings) -> list[Row]:
        return self._head_rows(c, "cls.predictions.transform.dense", "cls.predictions.transform.LayerNorm", "cls.predictions")

    def _head_rows(self, c, transform, layer_norm, output):
        rows = [*dense("head/transform", transform), *norm("head/transform_norm", layer_norm)]
        if c.tied:
            return [*rows, row("head/bias", f"{output}.bias")]
        # the reference then uses the decoder's own bias; the other is in its files but unused
        rows += [row("head/weight", f"{output}.decoder.weight"), row("head/bias", f"{output}.decoder.bias")]
        return [*rows, row("head/unread_bias", f"{output}.bias")]

    def carried(self, task):
        return {"head/unread_bias": "head/bias"} if self.head and not task.model.config.tied else {}

    def tied(self, task):
        if not self.head or not task.model.config.tied:
            return {}
        embedding = f"{self.base}.embeddings.word_embeddings.weight"
        output = "lm_head" if self.base == "roberta" else "cls.predictions"
        return {f"{output}.decoder.weight": embedding, f"{output}.decoder.bias": f"{output}.bias"}


class BertForPreTraining(Bert):
    architecture = "BertForPreTraining"
    marks = (*Bert.marks, "cls.seq_relationship.weight")
    next_sentence = True


class BertModel(Bert):
    """The encoder alone, such as a sentence encoder; here its output layer is the embedding, which was not trained for it."""

    architecture, marks = "BertModel", ()
    head = False


class Roberta(Bert):
    architecture, model_type, base, marks = "RobertaForMaskedLM", "roberta", "roberta", ()

    def can_hold(self, task):
        return isinstance(task, MaskedToken) and task.model.config.position_offset > 0

    def offset(self, theirs, source):
        return number(theirs, "pad_token_id", 1, source, least=0) + 1  # positions start after the padding token's id

    def write(self, task):
        return super().write(task) | {"pad_token_id": task.model.config.position_offset - 1}

    def head_rows(self, c):
        return self._head_rows(c, "lm_head.dense", "lm_head.layer_norm", "lm_head")


class Data2VecText(Roberta):
    """data2vec's text encoder (Baevski et al. 2022): RoBERTa's, without an output layer."""

    architecture, model_type, base, head = "Data2VecTextModel", "data2vec-text", "data2vec_text", False

    def can_hold(self, task):
        return super().can_hold(task) and not task.model.config.head_transform


class ModernBert(_Language):
    architecture, model_type, base = "ModernBertForMaskedLM", "modernbert", "model"
    settings = Settings(
        keys={
            **SHAPE, "mlp_width": "intermediate_size", "norm_eps": "norm_eps", "activation": "hidden_activation",
            "norm_bias": "norm_bias", "bias": "attention_bias", "qkv_bias": "attention_bias", "output_bias": "decoder_bias",
            "dropout": "embedding_dropout", "attention_dropout": "attention_dropout", "tied": TIED,
            "init_std": "initializer_range",
        },
        defaults={
            "hidden_activation": "gelu", "norm_eps": 1e-5, "norm_bias": False, "attention_bias": False, "decoder_bias": True,
            "embedding_dropout": 0.0, "attention_dropout": 0.0, TIED: True, "initializer_range": 0.02,
        },
        fixed={
            "positions": "rope", "gated": True, "embedding_norm": True, "first_attention_norm": False, "head_transform": True,
        },
    )  # fmt: skip
    checked = ("rope_theta", "local_rope_theta", "window", "global_every")
    ids = ("cls_token_id", "sep_token_id")

    def can_hold(self, task):
        return isinstance(task, MaskedToken) and task.model.config.positions == "rope"

    def read(self, theirs, tensors, preprocessing):
        source, model = preprocessing.source, self.settings.read(theirs, preprocessing.source)
        for key in ("mlp_bias", "classifier_bias"):
            if bool(theirs.get(key, False)) != model["bias"]:
                raise UserError(f"{source}: {key} and attention_bias differ, which is not supported")
        if theirs.get("classifier_activation", "gelu") != theirs.get("hidden_activation", "gelu"):
            raise UserError(f"{source}: classifier_activation and hidden_activation differ, which is not supported")
        every = self._every(theirs, number(model, "depth", None, source), source)
        rope = section(theirs, "rope_parameters", source)
        for kind in rope.values():
            if isinstance(kind, dict) and rope_scaling(kind, source):
                raise UserError(f"{source}: rope_type={kind['rope_type']!r} is not supported; expected 'default'")

        def base(kind, older, default):
            return theta({"rope_theta": theirs.get(older), **section(rope, kind, source)}, "rope_theta", default, source)

        model |= {
            "context_length": number(theirs, POSITIONS, 8192, source), "global_every": every,
            "window": number(theirs, "local_attention", 128, source, least=2) // 2,
            "rope_theta": base("full_attention", "global_rope_theta", 160_000.0),
            "local_rope_theta": base("sliding_attention", "local_rope_theta", 10_000.0),
        }  # fmt: skip
        return self.sections({"name": "masked_token"}, model, theirs, preprocessing, one_more=0)

    def _every(self, theirs, depth: int, source: str) -> int:
        """Return n such that block 0 and every n-th block attend globally."""
        kinds, told = theirs.get("layer_types"), number(theirs, "global_attn_every_n_layers", 3, source)
        if kinds is None:
            return told
        if not isinstance(kinds, list) or len(kinds) != depth:
            raise UserError(f"{source}: layer_types={kinds!r:.60}: expected one for each of num_hidden_layers={depth}")
        for every in (told, *range(2, max(depth, 2) + 1)):
            if kinds == _kinds(depth, every):
                return every
        raise UserError(f"{source}: layer_types: expected full_attention in block 0 and every n-th block only")

    def write(self, task):
        c, theirs = task.model.config, self.write_shape(task)
        if c.bias != c.qkv_bias:
            raise UserError(
                f"model.bias={c.bias}, qkv_bias={c.qkv_bias}: {self.architecture} has one setting for both; it cannot hold "
                "this model"
            )
        if c.window is None or c.global_every < 2:
            raise UserError(
                f"model.window={c.window}, global_every={c.global_every}: {self.architecture} has local and global blocks; it "
                "cannot hold this model"
            )
        local = c.local_rope_theta or c.rope_theta
        return theirs | {
            "mlp_bias": c.bias, "classifier_bias": c.bias, "classifier_activation": theirs["hidden_activation"],
            POSITIONS: task.model.context, "local_attention": 2 * c.window, "global_attn_every_n_layers": c.global_every,
            "layer_types": _kinds(c.depth, c.global_every), "global_rope_theta": c.rope_theta, "local_rope_theta": local,
            "rope_parameters": {
                "full_attention": {"rope_theta": c.rope_theta, "rope_type": "default"},
                "sliding_attention": {"rope_theta": local, "rope_type": "default"},
            },
        }  # fmt: skip

    def rows(self, task):
        c, o, t = task.model.config, STACK, "model.layers.{i}"
        parts = (("kernel", "weight"), ("bias", "bias")) if c.bias else (("kernel", "weight"),)
        join = lambda ours, theirs: [
            row([f"{name}/{part}" for name in ours], f"{theirs}.{their}", fused(len(ours))) for part, their in parts
        ]
        block = [
            *join([f"{o}/attention/{n}" for n in ("query", "key", "value")], f"{t}.attn.Wqkv"),
            *dense(f"{o}/attention/out", f"{t}.attn.Wo", bias=c.bias),
            *join([f"{o}/mlp/gate", f"{o}/mlp/up"], f"{t}.mlp.Wi"),
            *dense(f"{o}/mlp/down", f"{t}.mlp.Wo", bias=c.bias),
            *norm(f"{o}/attention_norm", f"{t}.attn_norm", bias=c.norm_bias),
            *norm(f"{o}/mlp_norm", f"{t}.mlp_norm", bias=c.norm_bias),
        ]
        rows = [
            row("transformer/token_embedding", "model.embeddings.tok_embeddings.weight"),
            *norm("transformer/embedding_norm", "model.embeddings.norm", bias=c.norm_bias),
            *(r for r in blocks(c.depth, block) if not r.theirs[0].startswith("model.layers.0.attn_norm")),
            *norm("transformer/final_norm", "model.final_norm", bias=c.norm_bias),
            *dense("head/transform", "head.dense", bias=c.bias),
            *norm("head/transform_norm", "head.norm", bias=c.norm_bias),
        ]
        if c.output_bias:
            rows.append(row("head/bias", "decoder.bias"))
        return rows if c.tied else [*rows, row("head/weight", "decoder.weight")]

    def tied(self, task):
        return {"decoder.weight": "model.embeddings.tok_embeddings.weight"} if task.model.config.tied else {}


def _kinds(depth: int, every: int) -> list[str]:
    return ["sliding_attention" if i % every else "full_attention" for i in range(depth)]


FAMILIES = (GPT2(), Llama(), BertForPreTraining(), Bert(), BertModel(), Data2VecText(), Roberta(), ModernBert())
