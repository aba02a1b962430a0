"""Every reference class in a few odd shapes."""

import jax
import jax.numpy as jnp
import torch
import transformers as t
from transformers.models.vit_mae.modeling_vit_mae import build_2d_sinusoidal_position_embedding

from ssl_jax.models.cross_entropy import cross_entropy
from ssl_jax.pretext.patch_masking import from_noise
from ssl_jax.pretext.text_features import rename_tokenizer_outputs
from tests.parity.reference import Case


def random(*shape):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(len(shape) + sum(shape)))


def images(batch, channels, height, width):
    return lambda: {"image": random(batch, channels, height, width)}


def weighed(outputs):
    """What to differentiate where there is no loss: the outputs times fixed numbers, in both frameworks."""
    total = 0.0
    for value in outputs.values():
        size = int(value.numel() if isinstance(value, torch.Tensor) else value.size)
        weight = random(size)
        total = total + (value.reshape(-1) * (weight if isinstance(value, torch.Tensor) else weight.numpy())).sum() / size
    return total


def with_objective(outputs):
    return {**outputs, "objective": weighed(outputs)}


# Masked autoencoders ---------------------------------------------------------------------------------------------------


def mae(height, width, patch, channels, *, sincos=False, **settings):
    side = height if height == width else [height, width]
    grid = (height // patch, width // patch)
    config = t.ViTMAEConfig(
        hidden_size=12, num_attention_heads=3, intermediate_size=20, decoder_hidden_size=8, decoder_num_attention_heads=2,
        decoder_intermediate_size=11, image_size=side, patch_size=patch, num_channels=channels, **settings,
    )  # fmt: skip

    def positions(model):
        """The published tables, for this grid: column first."""
        for table in (model.vit.embeddings.position_embeddings, model.decoder.decoder_pos_embed):
            made = build_2d_sinusoidal_position_embedding(*grid, table.shape[-1], cls_token=True)
            half = made.shape[-1] // 2
            table.copy_(torch.cat([made[:, half:], made[:, :half]], dim=-1)[None])

    def inputs():
        return {"image": random(3, channels, height, width), "noise": torch.rand(3, grid[0] * grid[1])}

    def theirs(model, inputs):
        reference = type(model).patchify  # it refuses what is not square without this flag, which else changes positions
        model.patchify = lambda pixels, interpolate_pos_encoding=False: reference(model, pixels, True)
        out = model(inputs["image"], noise=inputs["noise"])
        tokens = model.vit(inputs["image"], noise=inputs["noise"]).last_hidden_state
        return {"loss": out.loss, "pred": out.logits, "mask": out.mask, "tokens": tokens}

    def ours(task, params, batch):
        mask = from_noise(batch["noise"], task.config.mask.kept(task.encoder.grid))
        return {**task.forward(params, batch), "tokens": task._encode(params, batch["image"], mask, None)}

    rename = lambda name: name.replace("decoder_encoder.layer.", "decoder_layers.")
    prepare = positions if sincos else lambda model: None
    return Case(t.ViTMAEForPreTraining, config, inputs, theirs, ours, prepare, rename)


# Encoders --------------------------------------------------------------------------------------------------------------


def encoder(cls, config, channels, height, width):
    def theirs(model, inputs):
        out = model(inputs["image"])
        return with_objective({"tokens": out.last_hidden_state, "pooled": out.pooler_output})

    def ours(task, params, batch):
        out = task.forward(params, batch)
        return with_objective({name: out[name] for name in ("tokens", "pooled")})

    return Case(cls, config, images(3, channels, height, width), theirs, ours)


def tokens_only(cls, config, height, width):
    def theirs(model, inputs):
        return with_objective({"tokens": model(inputs["image"]).last_hidden_state})

    def ours(task, params, batch):
        return with_objective({"tokens": task.forward(params, batch)["tokens"]})

    return Case(cls, config, images(3, 3, height, width), theirs, ours)


def classifier(config, height, width):
    def theirs(model, inputs):
        return with_objective({"logits": model(inputs["image"]).logits})

    def ours(task, params, batch):
        return with_objective({"logits": task.forward(params, batch)["logits"]})

    return Case(t.ViTForImageClassification, config, images(3, 3, height, width), theirs, ours)


def vit(**settings):
    return t.ViTConfig(hidden_size=12, num_attention_heads=3, intermediate_size=20, **settings)


def data2vec(**settings):
    shape = dict(hidden_size=12, num_attention_heads=3, intermediate_size=20, image_size=9, patch_size=3)
    return t.Data2VecVisionConfig(**shape | dict(use_shared_relative_position_bias=True, use_mean_pooling=False) | settings)


def dinov2(**settings):
    return t.Dinov2Config(hidden_size=12, num_attention_heads=3, image_size=9, patch_size=3, **settings)


# Tokens ----------------------------------------------------------------------------------------------------------------

SHAPE = dict(vocab_size=23, hidden_size=12, intermediate_size=20, num_attention_heads=3, max_position_embeddings=9)


def ids(batch=3, time=7, low=4, high=23):
    return torch.randint(low, high, (batch, time), generator=torch.Generator().manual_seed(5))


def causal(cls, config):
    def theirs(model, inputs):
        out = model(inputs["tokens"], labels=inputs["tokens"])
        return {"logits": out.logits, "loss": out.loss}

    def ours(task, params, batch):
        loss, _ = task.loss(params, {**batch, "position": jnp.arange(3)}, jax.random.key(0), train=False)
        return {**task.forward(params, batch), "loss": loss}

    return Case(cls, config, lambda: {"tokens": ids()}, theirs, ours)


def llama(**settings):
    return t.LlamaConfig(**{**SHAPE, "num_hidden_layers": 2, "bos_token_id": 1, "eos_token_id": 2, **settings})


REAL = (7, 5, 6)  # tokens of each row; the others are padding


def masked(cls, config, *, types=False, next_sentence=False):
    real = torch.arange(7)[None] < torch.tensor(REAL)[:, None]
    labels = torch.where(real & (torch.arange(7) % 3 == 1), ids() % 7 + 4, -100)

    def inputs():
        batch = {"tokens": torch.where(real, ids(), config.pad_token_id), "attention_mask": real.long()}
        return batch | ({"token_type_ids": (torch.arange(7)[None] > 3).long().expand(3, 7)} if types else {})

    def theirs(model, inputs):
        given = {k: v for k, v in inputs.items() if k != "tokens"}
        more = {"next_sentence_label": torch.tensor([1, 0, 1])} if next_sentence else {}
        out = model(inputs["tokens"], **given, labels=labels, output_hidden_states=True, **more)
        found = {"logits": out.prediction_logits if next_sentence else out.logits, "tokens": out.hidden_states[-1]}
        found |= {f"block{i:02d}": value for i, value in enumerate(out.hidden_states[1:-1])}
        found |= {"next_sentence": out.seq_relationship_logits} if next_sentence else {}
        return found | {"loss": out.loss}

    def ours(task, params, batch):
        out, named = task.forward(params, batch), rename_tokenizer_outputs(batch)
        tokens = named.pop("tokens")
        hidden, inner = task.model.apply({"params": params["transformer"]}, tokens, **named)
        features, weight, bias = task.output(params, hidden)
        wanted = jnp.asarray(labels.numpy())
        weights = (wanted >= 0).astype(jnp.float32)
        loss, _ = cross_entropy(features, weight, jnp.maximum(wanted, 0), bias, label_weights=weights)
        if next_sentence:
            log_p = jax.nn.log_softmax(out["next_sentence"])
            loss = loss - jnp.mean(log_p[jnp.arange(3), jnp.array([1, 0, 1])])
        blocks = {name: inner[name] for name in inner if name.startswith("block")}
        return {**out, **blocks, "tokens": hidden, "loss": loss}

    return Case(cls, config, inputs, theirs, ours)


def sentence_encoder(config, cls=t.BertModel):
    def theirs(model, inputs):
        out = model(inputs["tokens"])
        return with_objective({"tokens": out.last_hidden_state, "pooled": out.pooler_output})

    def ours(task, params, batch):
        out = task.features(params, batch)
        return with_objective({name: out[name] for name in ("tokens", "pooled")})

    return Case(cls, config, lambda: {"tokens": ids()}, theirs, ours)


def bert(cls=t.BertConfig, **settings):
    return cls(**{**SHAPE, "num_hidden_layers": 2, "pad_token_id": 0, **settings})


def modernbert(**settings):
    special = dict(pad_token_id=0, bos_token_id=1, eos_token_id=2, cls_token_id=1, sep_token_id=2)
    return t.ModernBertConfig(**{**SHAPE, "num_hidden_layers": 4, "local_attention": 4, **special, **settings})


# Images and text -------------------------------------------------------------------------------------------------------


def image_text(cls, config, end, *, mask):
    def inputs():
        tokens = ids(4, 7, 3, 20)
        tokens[torch.arange(4), torch.tensor([6, 3, 4, 5])] = end
        batch = {"image": random(4, 3, 9, 9), "tokens": tokens}
        return batch | (
            {"attention_mask": (torch.arange(7)[None] <= torch.tensor([6, 3, 4, 5])[:, None]).long()} if mask else {}
        )

    def theirs(model, inputs):
        given = {"attention_mask": inputs["attention_mask"]} if mask else {}
        out = model(input_ids=inputs["tokens"], pixel_values=inputs["image"], return_loss=True, **given)
        return {
            "image_embedding": out.image_embeds, "text_embedding": out.text_embeds, "logits_per_image": out.logits_per_image,
            "loss": out.loss,
        }  # fmt: skip

    return Case(cls, config, inputs, theirs, lambda task, params, batch: task.forward(params, batch))


def towers(**text):
    shape = dict(hidden_size=12, num_attention_heads=3, intermediate_size=20, num_hidden_layers=2)
    vision = {**shape, "image_size": 9, "patch_size": 3}
    text = {**shape, "vocab_size": 23, "max_position_embeddings": 7, "bos_token_id": 1, "pad_token_id": 0, **text}
    return {"text_config": text, "vision_config": vision}


CASES = {
    "ViTMAE": mae(15, 15, 5, 1, num_hidden_layers=2, decoder_num_hidden_layers=1, mask_ratio=0.6, qkv_bias=False),
    "ViTMAE, not square, fixed positions, norm_pix_loss": mae(
        4, 16, 2, 3, sincos=True, num_hidden_layers=1, decoder_num_hidden_layers=2, norm_pix_loss=True
    ),
    "ViT, not square": encoder(t.ViTModel, vit(image_size=[6, 8], patch_size=2, num_hidden_layers=2), 3, 6, 8),
    "ViT, patches not square": encoder(
        t.ViTModel, vit(image_size=[6, 10], patch_size=[3, 2], num_hidden_layers=1, num_channels=2, qkv_bias=False), 2, 6, 10
    ),
    "ViT classifier": classifier(vit(image_size=[7, 14], patch_size=7, num_hidden_layers=1, num_labels=5), 7, 14),
    "DINOv2": encoder(t.Dinov2Model, dinov2(num_hidden_layers=2), 3, 9, 9),
    "DINOv2, gated, without mask token": encoder(
        t.Dinov2Model, dinov2(num_hidden_layers=1, use_swiglu_ffn=True, use_mask_token=False, mlp_ratio=3), 3, 9, 9
    ),
    "DINOv2 with registers": encoder(
        t.Dinov2WithRegistersModel,
        t.Dinov2WithRegistersConfig(
            hidden_size=12, num_attention_heads=3, image_size=9, patch_size=3, num_hidden_layers=2, num_register_tokens=3
        ), 3, 9, 9
    ),
    "I-JEPA": tokens_only(
        t.IJepaModel,
        t.IJepaConfig(
            hidden_size=12, num_attention_heads=3, intermediate_size=20, image_size=9, patch_size=3, num_hidden_layers=2
        ), 9, 9,
    ),
    "data2vec, images": tokens_only(t.Data2VecVisionModel, data2vec(num_hidden_layers=2, use_mask_token=True), 9, 9),
    "data2vec, images, no layer scale, larger grid": tokens_only(
        t.Data2VecVisionModel, data2vec(num_hidden_layers=1, layer_scale_init_value=0.0, image_size=12), 12, 12
    ),
    "GPT-2": causal(t.GPT2LMHeadModel, t.GPT2Config(vocab_size=23, n_positions=9, n_embd=12, n_layer=2, n_head=3)),
    "GPT-2, untied": causal(
        t.GPT2LMHeadModel,
        t.GPT2Config(vocab_size=23, n_positions=9, n_embd=12, n_layer=1, n_head=3, n_inner=17, tie_word_embeddings=False),
    ),
    "LLaMA, grouped queries": causal(t.LlamaForCausalLM, llama(num_key_value_heads=1)),
    "LLaMA, tied, llama3 positions, wider heads, biases": causal(
        t.LlamaForCausalLM,
        llama(
            num_hidden_layers=1, tie_word_embeddings=True, head_dim=8, attention_bias=True, mlp_bias=True,
            rope_parameters=dict(
                rope_type="llama3", rope_theta=10000.0, factor=4.0, low_freq_factor=1.0, high_freq_factor=4.0,
                original_max_position_embeddings=32,
            ),
        ),
    ),
    "BERT": masked(t.BertForPreTraining, bert(), types=True, next_sentence=True),
    "BERT, masked language model, untied": masked(
        t.BertForMaskedLM, bert(num_hidden_layers=1, tie_word_embeddings=False)
    ),
    "BERT, encoder": sentence_encoder(bert(num_hidden_layers=1)),
    "RoBERTa": masked(t.RobertaForMaskedLM, bert(t.RobertaConfig, pad_token_id=1, type_vocab_size=1)),
    "data2vec, text": sentence_encoder(bert(t.Data2VecTextConfig, pad_token_id=1, type_vocab_size=1), t.Data2VecTextModel),
    "ModernBERT": masked(t.ModernBertForMaskedLM, modernbert()),
    "ModernBERT, untied, every other block global": masked(
        t.ModernBertForMaskedLM,
        modernbert(
            num_hidden_layers=3, tie_word_embeddings=False, norm_bias=True, decoder_bias=False, global_attn_every_n_layers=2
        ),
    ),
    "CLIP": image_text(t.CLIPModel, t.CLIPConfig(**towers(eos_token_id=22), projection_dim=5), 22, mask=True),
    "SigLIP": image_text(t.SiglipModel, t.SiglipConfig(**towers(eos_token_id=22)), 22, mask=False),
}  # fmt: skip
