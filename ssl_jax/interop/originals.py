"""Files in their projects' own layouts: facebookresearch/mae's .pth and OpenAI CLIP's state dict.

They hold tensors and no settings: settings that shapes do not determine are the project's (see `_HEADS` and the docstrings).
"""

import pathlib

from ssl_jax.errors import UserError
from ssl_jax.interop import files
from ssl_jax.interop.family import Family, Preprocessing, Sections, image_info
from ssl_jax.interop.image_encoder import ImageEncoder
from ssl_jax.interop.image_text import CLIP
from ssl_jax.interop.mapping import SAME, Row, blocks, convolution, dense, fused, leading, norm, row
from ssl_jax.interop.vision import _positions, decoder_positions, kind_of_positions
from ssl_jax.models import BLOCK
from ssl_jax.models.vit import SIZES
from ssl_jax.pretext.masked_image import MaskedImage

SUFFIXES = (".pth", ".pt", ".bin", ".safetensors")
IMAGENET = {"mean": (0.485, 0.456, 0.406), "std": (0.229, 0.224, 0.225)}
CLIP_IMAGES = {"mean": (0.48145466, 0.4578275, 0.40821073), "std": (0.26862954, 0.26130258, 0.27577711)}
_HEADS = {shape["width"]: shape["heads"] for shape in SIZES.values()} | {1280: 16}


def read(file: pathlib.Path) -> tuple[Family, Sections, dict]:
    """Return (architecture, sections of a config, tensors) of a file, whose layout its names determine."""
    tensors, options = (files.read_safetensors(file), {}) if file.suffix == ".safetensors" else files.read_pickle(file)
    if "visual.conv1.weight" in tensors:
        family = OpenAICLIP()
        tokenizer = files.read_tokenizer(file.parent, _clip_text(tensors))
        return family, family.read({}, tensors, Preprocessing(str(file), tokenizer, **CLIP_IMAGES)), tensors
    if "patch_embed.proj.weight" in tensors:
        family = OriginalMAE()
        options = vars(options["args"]) if hasattr(options.get("args"), "__dict__") else {}
        return family, family.read(options, tensors, Preprocessing(str(file), None, **IMAGENET)), tensors
    raise UserError(f"{file}: has neither the tensors of facebookresearch/mae nor those of OpenAI's CLIP; use one of the two")


def depth_of(tensors, prefix: str) -> int:
    return 1 + max((int(name[len(prefix) :].split(".")[0]) for name in tensors if name.startswith(prefix)), default=-1)


class OriginalMAE(Family):
    """github.com/facebookresearch/mae: an autoencoder or its encoder alone.

    It has 12 (ViT-B) or 16 (ViT-L, ViT-H) heads, 16 in the decoder, and norms with eps 1e-6. "args", if present, says whether
    target patches were normalised; the default is that they were, as in the published recipe.
    """

    architecture, model_type = "facebookresearch/mae", "mae"

    def can_hold(self, task):
        return False

    def read(self, theirs, tensors, preprocessing):
        embedding, table = tensors["patch_embed.proj.weight"], tensors.get("pos_embed")
        if table is None or embedding.ndim != 4 or table.ndim != 3:
            raise UserError(
                f"{preprocessing.source}: lacks pos_embed, or patch_embed.proj.weight is not a convolution's kernel"
            )
        width, channels, p, q = embedding.shape
        side = round((table.shape[1] - 1) ** 0.5)
        if side * side != table.shape[1] - 1:
            raise UserError(f"{preprocessing.source}: pos_embed holds {table.shape[1] - 1} patches; expected a square number")

        def stack(prefix, width, heads):
            inner = tensors.get(f"{prefix}0.mlp.fc1.weight")
            if inner is None:
                raise UserError(f"{preprocessing.source}: lacks {prefix}0.mlp.fc1.weight")
            return {
                "width": width, "depth": depth_of(tensors, prefix), "heads": heads, "mlp_width": inner.shape[0],
                "norm_eps": 1e-6,
            }  # fmt: skip

        model = stack("blocks.", width, _HEADS.get(width, max(width // 64, 1))) | {
            "name": "vit", "patch_size": p if p == q else (p, q), "pooling": "cls",
            "positions": kind_of_positions(table, width, (side, side)),
        }  # fmt: skip
        info = image_info((side * p, side * q), channels, preprocessing)
        if "decoder_embed.weight" not in tensors:
            return Sections({"name": "image_encoder"}, model, info)
        model.pop("pooling")
        decoder_width = tensors["decoder_embed.weight"].shape[0]
        decoder = stack("decoder_blocks.", decoder_width, 16 if decoder_width % 16 == 0 else 1)
        decoder["positions"] = kind_of_positions(tensors["decoder_pos_embed"], decoder_width, (side, side))
        task = {
            "name": "masked_image", "mask": {"kind": "random", "ratio": float(theirs.get("mask_ratio", 0.75))},
            "target": "normalized_pixels" if theirs.get("norm_pix_loss", True) else "pixels", "decoder": decoder,
        }  # fmt: skip
        return Sections(task, model, info)

    def rows(self, task: MaskedImage | ImageEncoder) -> list[Row]:
        def block(ours, theirs):
            o, t, qkv = f"{ours}/stack/{BLOCK}", f"{theirs}.{{i}}", ("query", "key", "value")
            return [
                row([f"{o}/attention/{n}/kernel" for n in qkv], f"{t}.attn.qkv.weight", fused(3)),
                row([f"{o}/attention/{n}/bias" for n in qkv], f"{t}.attn.qkv.bias", fused(3)),
                *dense(f"{o}/attention/out", f"{t}.attn.proj"),
                *dense(f"{o}/mlp/up", f"{t}.mlp.fc1"),
                *dense(f"{o}/mlp/down", f"{t}.mlp.fc2"),
                *norm(f"{o}/attention_norm", f"{t}.norm1"),
                *norm(f"{o}/mlp_norm", f"{t}.norm2"),
            ]

        c = task.encoder.config
        rows = [
            row("encoder/class_token", "cls_token", leading(1)),
            *dense("encoder/patch_embedding", "patch_embed.proj", weight=convolution(c.patch)),
            _positions("encoder/positions", "pos_embed", task.encoder),
            *blocks(c.depth, block("encoder", "blocks")),
            *norm("encoder/final_norm", "norm"),
        ]
        if isinstance(task, ImageEncoder):
            return rows
        return rows + [
            *dense("decoder/embedding", "decoder_embed"),
            row("decoder/mask_token", "mask_token", leading(2)),
            *blocks(task.decoder.config.depth, block("decoder", "decoder_blocks")),
            *norm("decoder/final_norm", "decoder_norm"),
            *dense("decoder/prediction", "decoder_pred"),
            decoder_positions(task, "decoder_pos_embed"),
        ]


def _clip_text(tensors) -> dict:
    size = tensors["token_embedding.weight"].shape[0] if "token_embedding.weight" in tensors else 49408
    return {"model_type": "clip_text_model", "vocab_size": size, "eos_token_id": size - 1}


class OpenAICLIP(CLIP):
    """github.com/openai/CLIP, its vision transformers: heads of width 64, quick GELU; the last token ends a text."""

    architecture = "openai/CLIP"
    ignored = ("input_resolution", "context_length", "vocab_size")

    def can_hold(self, task):
        return False

    def read(self, theirs, tensors, preprocessing):
        for name in ("visual.proj", "visual.positional_embedding", "token_embedding.weight", "positional_embedding"):
            if name not in tensors:
                raise UserError(
                    f"{preprocessing.source}: lacks {name}; only CLIP's vision transformers are supported, not its ResNets"
                )
        width, channels, p, _ = tensors["visual.conv1.weight"].shape
        side = round((tensors["visual.positional_embedding"].shape[0] - 1) ** 0.5)
        text = tensors["token_embedding.weight"].shape[1]

        def tower(prefix, width):
            return {
                "hidden_size": width, "num_attention_heads": max(width // 64, 1), "intermediate_size": 4 * width,
                "num_hidden_layers": depth_of(tensors, f"{prefix}transformer.resblocks."),
            }  # fmt: skip

        length, vocabulary = tensors["positional_embedding"].shape[0], tensors["token_embedding.weight"].shape[0]
        words = {"max_position_embeddings": length, "vocab_size": vocabulary, "eos_token_id": vocabulary - 1}
        images = {"image_size": side * p, "patch_size": p, "num_channels": channels}
        settings = {
            "projection_dim": tensors["visual.proj"].shape[1], "text_config": tower("", text) | words,
            "vision_config": tower("visual.", width) | images,
        }  # fmt: skip
        return super().read(settings, tensors, preprocessing)

    def rows(self, task):
        def block(ours, theirs):
            o, t, qkv = f"{ours}/stack/{BLOCK}", f"{theirs}transformer.resblocks.{{i}}", ("query", "key", "value")
            return [
                row([f"{o}/attention/{n}/kernel" for n in qkv], f"{t}.attn.in_proj_weight", fused(3)),
                row([f"{o}/attention/{n}/bias" for n in qkv], f"{t}.attn.in_proj_bias", fused(3)),
                *dense(f"{o}/attention/out", f"{t}.attn.out_proj"),
                *dense(f"{o}/mlp/up", f"{t}.mlp.c_fc"),
                *dense(f"{o}/mlp/down", f"{t}.mlp.c_proj"),
                *norm(f"{o}/attention_norm", f"{t}.ln_1"),
                *norm(f"{o}/mlp_norm", f"{t}.ln_2"),
            ]

        c = task.model.config
        return [
            row("logit_scale", "logit_scale"),
            row("image/class_token", "visual.class_embedding", leading(-1)),
            row("image/patch_embedding/kernel", "visual.conv1.weight", convolution(c.image.patch)),
            row("image/positions", "visual.positional_embedding"),
            *norm("image/pre_norm", "visual.ln_pre"),
            *blocks(c.image.depth, block("image", "visual.")),
            *norm("image/final_norm", "visual.ln_post"),
            row("image_projection/kernel", "visual.proj", SAME),
            row("text/token_embedding", "token_embedding.weight"),
            row("text/position_embedding", "positional_embedding"),
            *blocks(c.text.depth, block("text", "")),
            *norm("text/final_norm", "ln_final"),
            row("text_projection/kernel", "text_projection", SAME),
        ]
