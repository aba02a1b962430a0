"""Dual encoders of image and text: CLIPModel and SiglipModel."""

import dataclasses
import math
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp

from ssl_jax.errors import UserError
from ssl_jax.interop.family import (
    Family,
    Preprocessing,
    Sections,
    image_info,
    number,
    one_or_two,
    pair,
    patches,
    read_ids,
    section,
    vocabulary,
    write_ids,
)
from ssl_jax.interop.mapping import Row, blocks, convolution, dense, fused, leading, norm, row
from ssl_jax.interop.settings import Settings
from ssl_jax.models import BLOCK
from ssl_jax.pretext.image_text import ImageText

TOWER = {
    "width": "hidden_size", "depth": "num_hidden_layers", "heads": "num_attention_heads", "mlp_width": "intermediate_size",
    "activation": "hidden_act", "norm_eps": "layer_norm_eps", "attention_dropout": "attention_dropout",
}  # fmt: skip
BASE = {
    "hidden_size": 768,
    "num_hidden_layers": 12,
    "num_attention_heads": 12,
    "intermediate_size": 3072,
    "attention_dropout": 0.0,
}
CLIP_DEFAULTS = {**BASE, "hidden_act": "quick_gelu", "layer_norm_eps": 1e-5}
SIGLIP_DEFAULTS = {**BASE, "hidden_act": "gelu_pytorch_tanh", "layer_norm_eps": 1e-6}
TEXT = ("context_length",)
IMAGE = ("patch_size", "crop")


def tower(ours: str, theirs: str, depth: int) -> list[Row]:
    """Return the rows of the blocks, whose names are the same in both towers of both models."""
    o, t = f"{ours}/stack/{BLOCK}", f"{theirs}.encoder.layers.{{i}}"
    names = (("query", "q_proj"), ("key", "k_proj"), ("value", "v_proj"), ("out", "out_proj"))
    return blocks(depth, [
        *(r for mine, other in names for r in dense(f"{o}/attention/{mine}", f"{t}.self_attn.{other}")),
        *dense(f"{o}/mlp/up", f"{t}.mlp.fc1"), *dense(f"{o}/mlp/down", f"{t}.mlp.fc2"),
        *norm(f"{o}/attention_norm", f"{t}.layer_norm1"), *norm(f"{o}/mlp_norm", f"{t}.layer_norm2"),
    ])  # fmt: skip


def text_rows(depth: int) -> list[Row]:
    return [
        row("text/token_embedding", "text_model.embeddings.token_embedding.weight"),
        row("text/position_embedding", "text_model.embeddings.position_embedding.weight"),
        *tower("text", "text_model", depth),
        *norm("text/final_norm", "text_model.final_layer_norm"),
    ]


class _ImageText(Family):
    ignored = (r"(text|vision)_model\.embeddings\.position_ids",)
    image: Settings
    text: Settings
    text_length, patch_default, vocabulary = 77, 32, 49408

    def can_hold(self, task):
        return isinstance(task, ImageText) and (task.config.loss == "sigmoid") == (self.model_type == "siglip")

    @staticmethod
    def parts(theirs: Mapping[str, Any], source: str) -> tuple[Mapping[str, Any], Mapping[str, Any]]:
        """Return the text and vision sections; in older files the valid ones are named "..._dict"."""
        both = lambda name: {**section(theirs, f"{name}_config", source), **section(theirs, f"{name}_config_dict", source)}
        return both("text"), both("vision")

    def sections(self, theirs: Mapping[str, Any], preprocessing: Preprocessing, task: dict) -> Sections:
        source = preprocessing.source
        text, vision = self.parts(theirs, source)
        length = number(text, "max_position_embeddings", self.text_length, source)
        size = pair(vision.get("image_size", 224), "vision_config.image_size", source)
        image = self.image.read(vision, source)
        image |= patches(vision, self.patch_default, size, "vision_config.patch_size", source)
        words = self.text.read(text, source) | {"context_length": length, **vocabulary(text, self.vocabulary, preprocessing)}
        text_info = dict(tokenizer=preprocessing.tokenizer, extra=read_ids(text))
        info = image_info(size, number(vision, "num_channels", 3, source), preprocessing, **text_info)
        shapes = {**info.shapes, "tokens": jax.ShapeDtypeStruct((length,), jnp.int32)}
        model = {"name": "dual_encoder", "image": image, "text": words, **self.space(theirs, text, image, source)}
        return Sections({"name": "image_text", **task}, model, dataclasses.replace(info, shapes=shapes))

    def space(self, theirs, text, image, source) -> dict:
        raise NotImplementedError

    def write_towers(self, task: ImageText) -> tuple[dict, dict]:
        model, name = task.model, self.architecture
        vision = self.image.write(model.config.image, "model.image", name, checked=IMAGE)
        vision |= {
            "image_size": one_or_two(model.image_size), "patch_size": one_or_two(model.config.image.patch),
            "num_channels": model.channels,
        }  # fmt: skip
        text = self.text.write(model.config.text, "model.text", name, checked=(*TEXT, "vocabulary", "vocabulary_multiple"))
        text["vocab_size"] = model.config.text.padded(model.vocabulary)
        text["max_position_embeddings"] = model.config.text.context_length or model.context_length
        return text | write_ids(task) | {"eos_token_id": model.end_id}, vision


class CLIP(_ImageText):
    architecture, model_type = "CLIPModel", "clip"
    image = Settings(TOWER, CLIP_DEFAULTS, {
        "class_token": True, "positions": "learned", "pooling": "cls", "pre_norm": True, "patch_bias": False,
    })  # fmt: skip
    text = Settings(
        TOWER, {**CLIP_DEFAULTS, "hidden_size": 512, "num_attention_heads": 8, "intermediate_size": 2048}
    )  # the defaults of TextSettings are CLIP's

    def read(self, theirs, tensors, preprocessing):
        text, _ = self.parts(theirs, preprocessing.source)
        end, size = text.get("eos_token_id", 49407), text.get("vocab_size", self.vocabulary)
        end = size - 1 if end == 2 else end  # the first config.json had a wrong id for the largest one
        if preprocessing.tokenizer.separator_id != end:
            mine = preprocessing.tokenizer.separator_id
            raise UserError(
                f"{preprocessing.source}: the tokenizer ends a text with token {mine}, but config.json says eos_token_id={end}"
            )
        return self.sections(theirs, preprocessing, {"loss": "infonce"})

    def space(self, theirs, text, image, source):
        return {"dim": number(theirs, "projection_dim", 512, source)}

    def write(self, task):
        c = task.model.config
        if not (c.image_projection and c.text_projection) or c.projection_bias:
            raise UserError("model: CLIPModel projects both towers, without bias; it cannot hold this model")
        text, vision = self.write_towers(task)
        if text["eos_token_id"] == 2:
            raise UserError("data.tokenizer: CLIPModel gives the end-of-text id 2 another meaning; use another vocabulary")
        scale = math.log(1 / 0.07)
        both = {"projection_dim": c.dim}
        return {"text_config": text | both, "vision_config": vision | both, **both, "logit_scale_init_value": scale}

    def rows(self, task):
        c = task.model.config
        e = "vision_model.embeddings"
        return [
            row("logit_scale", "logit_scale"),
            row("image/class_token", f"{e}.class_embedding", leading(-1)),
            *dense("image/patch_embedding", f"{e}.patch_embedding", bias=False, weight=convolution(c.image.patch)),
            row("image/positions", f"{e}.position_embedding.weight"),
            *norm("image/pre_norm", "vision_model.pre_layrnorm"),
            *tower("image", "vision_model", c.image.depth),
            *norm("image/final_norm", "vision_model.post_layernorm"),
            *text_rows(c.text.depth),
            *dense("image_projection", "visual_projection", bias=False),
            *dense("text_projection", "text_projection", bias=False),
        ]


class SigLIP(_ImageText):
    architecture, model_type = "SiglipModel", "siglip"
    text_length, patch_default, vocabulary = 64, 16, 32000
    image = Settings(TOWER, SIGLIP_DEFAULTS, {"class_token": False, "positions": "learned", "pooling": "attention"})
    text = Settings(TOWER, SIGLIP_DEFAULTS, {"causal": False, "pooling": "last"})

    def read(self, theirs, tensors, preprocessing):
        return self.sections(theirs, preprocessing, {"loss": "sigmoid", "max_scale": None})

    def space(self, theirs, text, image, source):
        dim = number(text, "projection_size", text.get("hidden_size", 768), source)
        if dim != image["width"]:
            raise UserError(f"{source}: text_config.projection_size={dim}: must be vision_config.hidden_size={image['width']}")
        if not self.parts(theirs, source)[1].get("vision_use_head", True):
            raise UserError(f"{source}: vision_use_head=False is not supported; expected True")
        return {"dim": dim, "image_projection": False, "projection_bias": True}

    def write(self, task):
        c = task.model.config
        if c.image_projection or not c.text_projection or not c.projection_bias:
            raise UserError("model: SiglipModel projects the text only, with a bias; it cannot hold this model")
        text, vision = self.write_towers(task)
        return {"text_config": text | {"projection_size": c.dim}, "vision_config": vision | {"vision_use_head": True}}

    def rows(self, task):
        c = task.model.config
        e, h, o = "vision_model.embeddings", "vision_model.head", "image/pooling"
        qkv = ("query", "key", "value")
        return [
            row("logit_scale", "logit_scale", leading(1)),
            row("logit_bias", "logit_bias", leading(1)),
            *dense("image/patch_embedding", f"{e}.patch_embedding", weight=convolution(c.image.patch)),
            row("image/positions", f"{e}.position_embedding.weight"),
            *tower("image", "vision_model", c.image.depth),
            *norm("image/final_norm", "vision_model.post_layernorm"),
            row(f"{o}/probe", f"{h}.probe", leading(1)),
            row([f"{o}/attention/{n}/kernel" for n in qkv], f"{h}.attention.in_proj_weight", fused(3)),
            row([f"{o}/attention/{n}/bias" for n in qkv], f"{h}.attention.in_proj_bias", fused(3)),
            *dense(f"{o}/attention/out", f"{h}.attention.out_proj"),
            *norm(f"{o}/norm", f"{h}.layernorm"),
            *dense(f"{o}/mlp/up", f"{h}.mlp.fc1"),
            *dense(f"{o}/mlp/down", f"{h}.mlp.fc2"),
            *text_rows(c.text.depth),
            *dense("text_projection", "text_model.head"),
        ]


FAMILIES = (CLIP(), SigLIP())
