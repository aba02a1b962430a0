"""A small task of ours for every architecture that can be written."""

import json

import jax
import numpy as np
from ml_collections import ConfigDict
from safetensors.numpy import save_file

from ssl_jax.interop.convert import nested, shapes_of, task_class
from ssl_jax.interop.files import numbers
from ssl_jax.task import DataInfo

VIT = dict(name="vit", width=12, depth=2, heads=3, mlp_width=20, patch_size=2, positions="learned")
LANGUAGE = dict(width=12, depth=2, heads=3, mlp_width=20)
BERT = dict(
    **LANGUAGE, norm_position="post", embedding_norm=True, final_norm=False, token_types=2, head_transform=True,
    output_bias=True,
)  # fmt: skip
TOWER = dict(width=12, depth=1, heads=3, patch_size=2, positions="learned", norm_eps=1e-5, activation="quick_gelu")
CLIP = dict(
    image=dict(**TOWER, pooling="cls", pre_norm=True, patch_bias=False), text=dict(**LANGUAGE, activation="quick_gelu"), dim=5
)  # fmt: skip
SIGLIP = dict(
    image=dict(**TOWER, pooling="attention", class_token=False), dim=12, image_projection=False, projection_bias=True,
    text=dict(**LANGUAGE, causal=False, pooling="last"),
)  # fmt: skip
OURS = {  # architecture -> (task, model) of ours
    "ViTMAEForPreTraining": (
        dict(name="masked_image", decoder=dict(width=8, depth=1, heads=2), target="normalized_pixels"),
        VIT | dict(positions="sincos2d"),
    ),
    "ViTModel": (dict(name="image_encoder"), VIT | dict(pooling="cls", pooler=True)),
    "ViTForImageClassification": (dict(name="classification", pooling="cls"), VIT | dict(qkv_bias=False)),
    "Dinov2Model": (
        dict(name="image_encoder"),
        VIT | dict(pooling="cls", layer_scale=0.1, mask_token=True, gated=True, activation="silu", mlp_width=32),
    ),
    "Dinov2WithRegistersModel": (
        dict(name="image_encoder"), VIT | dict(pooling="cls", layer_scale=0.1, mask_token=True, registers=2, mlp_width=24)
    ),
    "Data2VecVisionModel": (
        dict(name="image_encoder"),
        VIT | dict(patch_size=(3, 4), positions="relative", pooling="cls", layer_scale=0.1, mask_token=True, drop_path=0.1),
    ),
    "IJepaModel": (dict(name="image_encoder"), VIT | dict(class_token=False, positions="sincos2d")),
    "GPT2LMHeadModel": (dict(name="next_token"), LANGUAGE | dict(bias=False, qkv_bias=False, norm_bias=False, tied=False)),
    "LlamaForCausalLM": (
        dict(name="next_token"),
        LANGUAGE | dict(
            positions="rope", norm="rms", gated=True, activation="silu", bias=False, qkv_bias=False, kv_heads=1,
            rope_scaling=("llama3", 8.0, 1.0, 4.0, 8.0),
        ),
    ),
    "BertForPreTraining": (dict(name="masked_token", next_sentence=True), BERT | dict(pooler=True)),
    "BertForMaskedLM": (dict(name="masked_token"), BERT | dict(tied=False)),
    "BertModel": (dict(name="masked_token"), BERT | dict(head_transform=False, output_bias=False, pooler=True)),
    "RobertaForMaskedLM": (dict(name="masked_token"), BERT | dict(position_offset=2, token_types=1)),
    "Data2VecTextModel": (
        dict(name="masked_token"),
        BERT | dict(position_offset=2, token_types=1, head_transform=False, output_bias=False, pooler=True),
    ),
    "ModernBertForMaskedLM": (
        dict(name="masked_token"),
        LANGUAGE | dict(
            positions="rope", gated=True, embedding_norm=True, first_attention_norm=False, head_transform=True, bias=False,
            qkv_bias=False, norm_bias=False, window=2, global_every=2, local_rope_theta=100.0, output_bias=True,
        ),
    ),
    "CLIPModel": (dict(name="image_text"), CLIP),
    "SiglipModel": (dict(name="image_text", loss="sigmoid", max_scale=None), SIGLIP),
}  # fmt: skip


def task_of(architecture, **changes):
    """A task of ours that the architecture can hold; `changes` are made to its model."""
    task, model = OURS[architecture]
    special = dict(pad_token_id=0, mask_token_id=3, cls_token_id=1, sep_token_id=2, eos_token_id=22)
    if model.get("position_offset"):  # behind the padding token's
        special |= dict(pad_token_id=1, cls_token_id=0)
    shapes = {
        "image": jax.ShapeDtypeStruct((6, 8, 3), np.float32), "tokens": jax.ShapeDtypeStruct((9,), np.int32),
        "token_types": jax.ShapeDtypeStruct((9,), np.int32), "is_random": jax.ShapeDtypeStruct((), np.int32),
    }  # fmt: skip
    info = DataInfo(shapes, classes=("a", "b"), mean=(0.5,), std=(0.2,), tokenizer=numbers(23, special))
    config = ConfigDict(dict(task=task, model=model | changes, data={}, training={}))
    return task_class(config).from_config(config, info)


def params_of(task, seed=0):
    generator = np.random.default_rng(seed)
    return nested({path: generator.standard_normal(shape, np.float32) for path, shape in shapes_of(task).items()})


def write(folder, theirs, tensors, info=None):
    folder.mkdir(exist_ok=True)
    (folder / "config.json").write_text(json.dumps(theirs))
    save_file({k: np.asarray(v, order="C") for k, v in tensors.items()}, folder / "model.safetensors")
    if info is not None:
        info.tokenizer.save(folder)
    return folder
