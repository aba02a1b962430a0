"""Vision transformers: ViTMAEForPreTraining, ViTModel, ViTForImageClassification, IJepaModel, Dinov2Model, registers."""

import dataclasses
import math

import jax
import jax.numpy as jnp
import numpy as np

from ssl_jax.downstream.supervised.classification import Classification
from ssl_jax.errors import UserError
from ssl_jax.interop.family import (
    Family,
    Preprocessing,
    Sections,
    image_info,
    look_up,
    number,
    one_or_two,
    pair,
    patches,
    section,
)
from ssl_jax.interop.image_encoder import ImageEncoder
from ssl_jax.interop.mapping import Row, Transform, blocks, constant, convolution, dense, fused, leading, norm, row
from ssl_jax.interop.settings import Settings
from ssl_jax.models import BLOCK
from ssl_jax.models.patches import sincos2d
from ssl_jax.models.vit import ViT
from ssl_jax.pretext.masked_image import MaskedImage

ENCODER = Settings(
    keys={
        "width": "hidden_size", "depth": "num_hidden_layers", "heads": "num_attention_heads", "mlp_width": "intermediate_size",
        "activation": "hidden_act", "norm_eps": "layer_norm_eps", "qkv_bias": "qkv_bias", "dropout": "hidden_dropout_prob",
        "attention_dropout": "attention_probs_dropout_prob",
    },
    defaults={
        "hidden_size": 768, "num_hidden_layers": 12, "num_attention_heads": 12, "intermediate_size": 3072,
        "hidden_act": "gelu", "layer_norm_eps": 1e-12, "qkv_bias": True, "hidden_dropout_prob": 0.0,
        "attention_probs_dropout_prob": 0.0,
    },
    fixed={"class_token": True},
)  # fmt: skip
DECODER = Settings(
    keys={
        "width": "decoder_hidden_size", "depth": "decoder_num_hidden_layers", "heads": "decoder_num_attention_heads",
        "mlp_width": "decoder_intermediate_size",
    },
    defaults={
        "decoder_hidden_size": 512, "decoder_num_hidden_layers": 8, "decoder_num_attention_heads": 16,
        "decoder_intermediate_size": 2048,
    },
)  # fmt: skip
SHARED = ("activation", "norm_eps", "qkv_bias", "dropout", "attention_dropout")  # one key for encoder and decoder
LOOKED_AFTER = ("patch_size", "crop", "positions", "pooling", "pooler", "mask_token")


def _block(ours: str, theirs: str) -> list[Row]:
    """Return the rows of one block under ViT's names."""
    o, t = f"{ours}/stack/{BLOCK}", f"{theirs}.{{i}}"
    return [
        *(r for n in ("query", "key", "value") for r in dense(f"{o}/attention/{n}", f"{t}.attention.attention.{n}")),
        *dense(f"{o}/attention/out", f"{t}.attention.output.dense"),
        *dense(f"{o}/mlp/up", f"{t}.intermediate.dense"),
        *dense(f"{o}/mlp/down", f"{t}.output.dense"),
        *norm(f"{o}/attention_norm", f"{t}.layernorm_before"),
        *norm(f"{o}/mlp_norm", f"{t}.layernorm_after"),
    ]


def _without_qkv_bias(rows: list[Row], qkv_bias: bool) -> list[Row]:
    drop = tuple(f"attention/{n}/bias" for n in ("query", "key", "value"))
    return rows if qkv_bias else [r for r in rows if not r.ours[0].endswith(drop)]


def _embeddings(vit: ViT, theirs: str) -> list[Row]:
    c = vit.config
    absolute = c.positions != "relative"  # relative ones belong to the attention
    return [
        *([row("encoder/class_token", f"{theirs}.cls_token", leading(1))] if c.class_token else []),
        *([row("encoder/registers", f"{theirs}.register_tokens", leading(1))] if c.registers else []),
        *dense("encoder/patch_embedding", f"{theirs}.patch_embeddings.projection", weight=convolution(c.patch)),
        *([_positions("encoder/positions", f"{theirs}.position_embeddings", vit)] if absolute else []),
    ]


def _positions(ours: str, theirs: str, vit: ViT) -> Row:
    kind = vit.config.positions
    if kind == "learned":
        return row(ours, theirs, leading(1))
    if kind != "sincos2d":
        raise UserError(f"model.positions={kind!r}: the architecture has absolute positions; it cannot hold this model")
    table = sincos2d(vit.config.width, vit.grid)
    return constant(theirs, (with_class(table) if vit.config.class_token else table)[None], "2-D sine-cosine positions")


def with_class(table: np.ndarray) -> np.ndarray:
    """Prepend a row of zeros, the class token's position, to positions of patches."""
    return np.concatenate([np.zeros((1, table.shape[1]), np.float32), table])


def kind_of_positions(table: np.ndarray, width: int, grid: tuple[int, int], *, class_token: bool = True) -> str:
    """Return "sincos2d" if a table [1, (1 +) patches, width] equals those positions exactly, else "learned"."""
    if width % 4 == 0 and table.shape == (1, int(class_token) + math.prod(grid), width):
        fixed = sincos2d(width, grid)
        if np.array_equal(table[0], with_class(fixed) if class_token else fixed):
            return "sincos2d"
    return "learned"


class _Vision(Family):
    base = "vit"
    settings = ENCODER
    patch_default = 16

    def encoder(self, theirs, tensors, preprocessing: Preprocessing) -> tuple[dict, tuple[int, int], int]:
        """Return (the section `model`, image size, channels)."""
        source = preprocessing.source
        model = self.settings.read(theirs, source)
        size = pair(theirs.get("image_size", 224), "image_size", source)
        cut = patches(theirs, self.patch_default, size, "patch_size", source)
        patch = pair(cut["patch_size"], "patch_size", source)
        table = look_up(tensors, "embeddings.position_embeddings", self.base, source)
        grid = (size[0] // patch[0], size[1] // patch[1])
        width, class_token = number(model, "width", None, source), self.settings.fixed["class_token"]
        model |= {
            **cut, "name": "vit", "pooling": "cls" if class_token else "mean",
            "positions": kind_of_positions(table, width, grid, class_token=class_token),
        }  # fmt: skip
        return model, size, number(theirs, "num_channels", 3, source)

    def write_encoder(self, vit: ViT, path: str = "model") -> dict:
        theirs = self.settings.write(vit.config, path, self.architecture, checked=LOOKED_AFTER)
        sizes = {"image_size": one_or_two(vit.image_size), "patch_size": one_or_two(vit.config.patch)}
        return theirs | sizes | {"num_channels": vit.channels}


class ViTMAE(_Vision):
    architecture, model_type = "ViTMAEForPreTraining", "vit_mae"

    def can_hold(self, task):
        return isinstance(task, MaskedImage)

    def read(self, theirs, tensors, preprocessing):
        model, size, channels = self.encoder(theirs, tensors, preprocessing)
        model.pop("crop", None)  # the loss is over whole images
        model.pop("pooling")  # ViTMAE has none: "pooled" is our default for masked autoencoders
        decoder = DECODER.read(theirs, preprocessing.source) | {name: model[name] for name in SHARED}
        patch = pair(model["patch_size"], "patch_size", preprocessing.source)
        table = look_up(tensors, "decoder.decoder_pos_embed", "", preprocessing.source)
        width = number(decoder, "width", None, preprocessing.source)
        decoder["positions"] = kind_of_positions(table, width, (size[0] // patch[0], size[1] // patch[1]))
        ratio = number(theirs, "mask_ratio", 0.75, preprocessing.source, least=0, kind=float)
        task = {
            "name": "masked_image", "decoder": decoder, "mask": {"kind": "random", "ratio": float(ratio)},
            "target": "normalized_pixels" if theirs.get("norm_pix_loss", False) else "pixels",
        }  # fmt: skip
        return Sections(task, model, image_info(size, channels, preprocessing))

    def write(self, task):
        c, name = task.config, self.architecture
        for field, value, wanted in (
            ("mask_tokens_in_encoder", c.mask_tokens_in_encoder, False), ("loss", c.loss, "l2"),
            ("loss_on", c.loss_on, "masked"), ("mask.kind", c.mask.kind, "random"), ("mask.unit", c.mask.unit, 1),
        ):  # fmt: skip
            if value != wanted:
                raise UserError(f"task.{field}={value!r}: {name} has {wanted!r}; it cannot hold this model")
        if c.target == "pca":
            raise UserError(f'task.target="pca": {name} predicts pixels; it cannot hold this model')
        encoder, decoder = task.encoder.config, c.decoder
        if encoder.pooler:
            raise UserError(f"model.pooler=True: {name} has no pooler; it cannot hold this model")
        for field in ("activation", "norm_eps", "qkv_bias"):
            if getattr(encoder, field) != getattr(decoder, field):
                a, b = getattr(encoder, field), getattr(decoder, field)
                raise UserError(
                    f"task.decoder.{field}={b!r}, but model.{field}={a!r}: {name} has one setting for both; it cannot hold "
                    "this model"
                )
        theirs = self.write_encoder(task.encoder)
        theirs |= DECODER.write(decoder, "task.decoder", name, checked=(*SHARED, "positions"))
        return theirs | {"mask_ratio": c.mask.ratio, "norm_pix_loss": c.target == "normalized_pixels"}

    def rows(self, task):
        encoder, decoder = task.encoder.config, task.decoder.config
        rows = [
            *_embeddings(task.encoder, "vit.embeddings"),
            *blocks(encoder.depth, _block("encoder", "vit.encoder.layer")),
            *norm("encoder/final_norm", "vit.layernorm"),
            *dense("decoder/embedding", "decoder.decoder_embed"),
            row("decoder/mask_token", "decoder.mask_token", leading(2)),
            *blocks(decoder.depth, _block("decoder", "decoder.decoder_layers")),
            *norm("decoder/final_norm", "decoder.decoder_norm"),
            *dense("decoder/prediction", "decoder.decoder_pred"),
            decoder_positions(task, "decoder.decoder_pos_embed"),
        ]
        return _without_qkv_bias(rows, encoder.qkv_bias)

    def names(self, task, tensors, source):
        newer = "decoder.decoder_encoder.layer."  # written by transformers 5, which reads both
        tensors = {n.replace(newer, "decoder.decoder_layers."): x for n, x in tensors.items()}
        return super().names(task, tensors, source)


def decoder_positions(task: MaskedImage, theirs: str) -> Row:
    if task.decoder.config.positions == "learned":
        return row("decoder/positions", theirs, leading(1))
    table = with_class(sincos2d(task.decoder.config.width, task.decoder.grid))
    return constant(theirs, table[None], "2-D sine-cosine positions")


class ViTEncoder(_Vision):
    architecture, model_type = "ViTModel", "vit"
    settings = dataclasses.replace(ENCODER, demands={"pooler_act": "tanh"})

    def can_hold(self, task):
        c = task.encoder.config if isinstance(task, ImageEncoder) else None
        return c is not None and c.class_token and c.layer_scale is None and c.positions != "relative"

    def read(self, theirs, tensors, preprocessing):
        model, size, channels = self.encoder(theirs, tensors, preprocessing)
        if theirs.get("pooler_output_size") not in (None, model["width"]):
            raise UserError(
                f"{preprocessing.source}: pooler_output_size={theirs['pooler_output_size']!r}: must equal hidden_size"
            )
        model["pooler"] = any(name.endswith("pooler.dense.weight") for name in tensors)
        model["mask_token"] = any(name.endswith("embeddings.mask_token") for name in tensors)
        return Sections({"name": "image_encoder"}, model, image_info(size, channels, preprocessing))

    def write(self, task):
        if task.encoder.config.pooling != "cls":
            raise UserError(f'model.pooling={task.encoder.config.pooling!r}: ViTModel has "cls"; it cannot hold this model')
        return self.write_encoder(task.encoder)

    def rows(self, task):
        return self.encoder_rows(task.encoder, "")

    def encoder_rows(self, vit: ViT, prefix: str) -> list[Row]:
        c = vit.config
        rows = [
            *_embeddings(vit, f"{prefix}embeddings"),
            *blocks(c.depth, _block("encoder", f"{prefix}encoder.layer")),
            *norm("encoder/final_norm", f"{prefix}layernorm"),
        ]
        if c.mask_token:
            rows.append(row("encoder/mask_token", f"{prefix}embeddings.mask_token", leading(2)))
        if c.pooler:
            rows += dense("encoder/pooler", f"{prefix}pooler.dense")
        return _without_qkv_bias(rows, c.qkv_bias)


SEVERAL = "multi_label_classification"  # problem_type of examples with several classes


class ViTClassifier(ViTEncoder):
    architecture, marks = "ViTForImageClassification", ("classifier.weight",)

    def can_hold(self, task):
        return isinstance(task, Classification)

    def read(self, theirs, tensors, preprocessing):
        model, size, channels = self.encoder(theirs, tensors, preprocessing)
        model.pop("pooling")
        names = dict(section(theirs, "id2label", preprocessing.source))
        if not all(str(key).isdecimal() for key in names):
            raise UserError(f"{preprocessing.source}: id2label: expected class names by number")
        names = names or {str(i): f"LABEL_{i}" for i in range(number(theirs, "num_labels", 2, preprocessing.source))}
        classes = tuple(str(names[key]) for key in sorted(names, key=int))
        task, info = {"name": "classification", "pooling": "cls"}, image_info(size, channels, preprocessing, classes=classes)
        if theirs.get("problem_type") == SEVERAL:
            label = {"label": jax.ShapeDtypeStruct((len(classes),), jnp.int32)}
            info = dataclasses.replace(info, shapes={**info.shapes, **label})
        return Sections(task, model, info)

    def write(self, task):
        if task.settings.pooling != "cls" or task.settings.head_norm != "none":
            field = "pooling" if task.settings.pooling != "cls" else "head_norm"
            value = getattr(task.settings, field)
            wanted = {"pooling": "cls", "head_norm": "none"}[field]
            raise UserError(f"task.{field}={value!r}: {self.architecture} has {wanted!r}; it cannot hold this model")
        names = {str(i): name for i, name in enumerate(task.info.classes)}
        several = {"problem_type": SEVERAL} if task.several_classes else {}
        numbers = {name: int(number) for number, name in names.items()}
        return self.write_encoder(task.encoder) | {"id2label": names, "label2id": numbers, **several}

    def rows(self, task):
        return [*self.encoder_rows(task.encoder, "vit."), *dense("head", "classifier")]


class IJepa(ViTEncoder):
    """A ViT without class token; the representation is the mean of its tokens (Assran et al. 2023)."""

    architecture, model_type, base, patch_default = "IJepaModel", "ijepa", "ijepa", 16
    settings = dataclasses.replace(ENCODER, fixed={"class_token": False}, demands={"pooler_act": "tanh"})

    def can_hold(self, task):
        return isinstance(task, ImageEncoder) and not task.encoder.config.class_token

    def read(self, theirs, tensors, preprocessing):
        sections = super().read(theirs, tensors, preprocessing)
        if sections.model["pooler"]:
            raise UserError(f"{preprocessing.source}: pooler.dense, a layer on the first token, is not supported")
        return sections

    def write(self, task):
        c = task.encoder.config
        if c.pooling != "mean" or c.pooler or c.norm_pooled:
            raise UserError(
                f"model.pooling={c.pooling!r}: IJepaModel's representation is the mean of its tokens; it cannot hold this model"
            )
        return self.write_encoder(task.encoder)


class Dinov2(_Vision):
    architecture, model_type, base, patch_default = "Dinov2Model", "dinov2", "dinov2", 14
    keys = {**ENCODER.keys, "layer_scale": "layerscale_value", "drop_path": "drop_path_rate"}
    keys.pop("mlp_width")
    defaults = {**ENCODER.defaults, "layer_norm_eps": 1e-6, "layerscale_value": 1.0, "drop_path_rate": 0.0}
    settings = Settings(keys, defaults, {"class_token": True})

    def can_hold(self, task):
        c = task.encoder.config if isinstance(task, ImageEncoder) else None
        fits = c is not None and c.class_token and c.layer_scale is not None and c.positions != "relative"
        return fits and ("registers" in self.keys) == (c.registers > 0)

    def read(self, theirs, tensors, preprocessing):
        model, size, channels = self.encoder(theirs, tensors, preprocessing)
        width = number(model, "width", None, preprocessing.source)
        inner = int(width * number(theirs, "mlp_ratio", 4, preprocessing.source, kind=float))
        model["gated"] = bool(theirs.get("use_swiglu_ffn", False))
        if model["gated"]:  # two thirds of the width, rounded up to a multiple of 8
            inner, model["activation"] = (int(inner * 2 / 3) + 7) // 8 * 8, "silu"
        model["mlp_width"] = inner
        model["mask_token"] = "registers" in self.keys or bool(theirs.get("use_mask_token", True))
        return Sections({"name": "image_encoder"}, model, image_info(size, channels, preprocessing))

    def write(self, task):
        c = task.encoder.config
        if c.pooling != "cls" or c.pooler:
            raise UserError(
                f'model.pooling={c.pooling!r}, pooler={c.pooler}: {self.architecture} has pooling="cls" and no '
                "pooler; it cannot hold this model"
            )
        if c.gated and c.activation != "silu":
            raise UserError(
                f"model.activation={c.activation!r}: {self.architecture}'s gated MLP uses silu; it cannot hold this model"
            )
        ratio = next((r for r in range(1, 17) if self._inner(c.width, r, c.gated) == c.width_of_mlp), None)
        if ratio is None:
            raise UserError(
                f"model.mlp_width={c.width_of_mlp}: {self.architecture} needs a multiple of width={c.width}; it cannot hold "
                "this model"
            )
        checked = (*LOOKED_AFTER, "gated", "mlp_width")
        theirs = self.settings.write(c, "model", self.architecture, checked=checked)
        sizes = {"image_size": one_or_two(task.encoder.image_size), "patch_size": one_or_two(c.patch)}
        if c.gated:
            theirs["hidden_act"] = "gelu"  # not read
        theirs |= {"num_channels": task.encoder.channels, "mlp_ratio": ratio, "use_swiglu_ffn": c.gated}
        return theirs | sizes | ({} if "registers" in self.keys else {"use_mask_token": c.mask_token})

    @staticmethod
    def _inner(width: int, ratio: int, gated: bool) -> int:
        return (int(width * ratio * 2 / 3) + 7) // 8 * 8 if gated else width * ratio

    def rows(self, task):
        vit = task.encoder
        c, o, t = vit.config, f"encoder/stack/{BLOCK}", "encoder.layer.{i}"
        if c.gated:
            mlp = [
                row((f"{o}/mlp/gate/{n}", f"{o}/mlp/up/{n}"), f"{t}.mlp.weights_in.{m}", fused(2))
                for n, m in (("kernel", "weight"), ("bias", "bias"))
            ] + dense(f"{o}/mlp/down", f"{t}.mlp.weights_out")
        else:
            mlp = [*dense(f"{o}/mlp/up", f"{t}.mlp.fc1"), *dense(f"{o}/mlp/down", f"{t}.mlp.fc2")]
        block = [
            *(r for n in ("query", "key", "value") for r in dense(f"{o}/attention/{n}", f"{t}.attention.attention.{n}")),
            *dense(f"{o}/attention/out", f"{t}.attention.output.dense"),
            *mlp,
            *norm(f"{o}/attention_norm", f"{t}.norm1"),
            *norm(f"{o}/mlp_norm", f"{t}.norm2"),
            row(f"{o}/attention_scale", f"{t}.layer_scale1.lambda1"),
            row(f"{o}/mlp_scale", f"{t}.layer_scale2.lambda1"),
        ]
        rows = [*_embeddings(vit, "embeddings"), *blocks(c.depth, block), *norm("encoder/final_norm", "layernorm")]
        if c.mask_token:
            rows.append(row("encoder/mask_token", "embeddings.mask_token", leading(1)))
        elif "registers" in self.keys:  # always in the file, but unused in a forward pass
            rows.append(constant("embeddings.mask_token", np.zeros((1, c.width), np.float32), "zeros"))
        return _without_qkv_bias(rows, c.qkv_bias)


class Dinov2WithRegisters(Dinov2):
    """DINOv2 with registers (Darcet et al. 2024)."""

    architecture, model_type, base = "Dinov2WithRegistersModel", "dinov2_with_registers", "dinov2_with_registers"
    keys = {**Dinov2.keys, "registers": "num_register_tokens"}
    settings = Settings(keys, {**Dinov2.defaults, "num_register_tokens": 4}, {"class_token": True})


class Data2VecVision(_Vision):
    """data2vec's image encoder (Baevski et al. 2022): BEiT's, with relative positions shared by all blocks."""

    architecture, model_type, base = "Data2VecVisionModel", "data2vec-vision", "data2vec_vision"
    keys = {k: v for k, v in ENCODER.keys.items() if k != "qkv_bias"}
    keys |= {"layer_scale": "layer_scale_init_value", "drop_path": "drop_path_rate", "mask_token": "use_mask_token"}
    defaults = {**ENCODER.defaults, "layer_scale_init_value": 0.1, "drop_path_rate": 0.1, "use_mask_token": False}
    fixed = {"class_token": True, "qkv_bias": True}
    settings = Settings(keys, defaults, fixed, {"use_relative_position_bias": False})

    def can_hold(self, task):
        return isinstance(task, ImageEncoder) and task.encoder.config.positions == "relative"

    def read(self, theirs, tensors, preprocessing):
        source, model = preprocessing.source, self.settings.read(theirs, preprocessing.source)
        if theirs.get("use_mean_pooling", True):
            raise UserError(f"{source}: use_mean_pooling=True omits the final norm, which is not supported")
        if theirs.get("use_absolute_position_embeddings", False) or not theirs.get("use_shared_relative_position_bias", False):
            raise UserError(
                f"{source}: expected use_shared_relative_position_bias=true and use_absolute_position_embeddings=false, as in "
                "the published pre-trained models"
            )
        if not model["layer_scale"]:
            del model["layer_scale"]
        size = pair(theirs.get("image_size", 224), "image_size", source)
        model |= {**patches(theirs, 16, size, "patch_size", source), "name": "vit", "positions": "relative", "pooling": "cls"}
        patch = pair(theirs.get("patch_size", 16), "patch_size", source)
        self.check_square((size[0] // patch[0], size[1] // patch[1]), f"{source}: image_size={list(size)}")
        return Sections(
            {"name": "image_encoder"}, model, image_info(size, number(theirs, "num_channels", 3, source), preprocessing)
        )

    def check_square(self, grid: tuple[int, int], where: str) -> None:
        """Raise UserError for a grid that is not square, for which transformers exchanges the table's height and width."""
        if grid[0] != grid[1]:
            raise UserError(
                f"{where}: a grid of {grid[0]} x {grid[1]} patches; {self.architecture} reads its relative positions correctly "
                "for square grids only"
            )

    def write(self, task):
        c = task.encoder.config
        if c.pooler or c.norm_pooled or not c.qkv_bias or c.pooling != "cls":
            raise UserError(
                f"model.pooler={c.pooler}, norm_pooled={c.norm_pooled}, qkv_bias={c.qkv_bias}, pooling={c.pooling!r}: "
                f'{self.architecture} has pooler=False, norm_pooled=False, qkv_bias=True and pooling="cls"; '
                "it cannot hold this model"
            )
        self.check_square(task.encoder.grid, f"model.patch_size={c.patch_size}")
        bias = {"use_shared_relative_position_bias": True, "use_absolute_position_embeddings": False}
        more = {"layer_scale_init_value": c.layer_scale or 0.0, "use_mean_pooling": False}
        return self.write_encoder(task.encoder) | bias | more

    def rows(self, task):
        c, o, t = task.encoder.config, f"encoder/stack/{BLOCK}", "encoder.layer.{i}"
        key = row((f"{o}/attention/key/kernel", f"{o}/attention/key/bias"), f"{t}.attention.attention.key.weight", WITHOUT_BIAS)
        block = [r for r in _block("encoder", "encoder.layer") if "/attention/key/" not in r.ours[0]] + [key]
        if c.layer_scale is not None:
            block += [row(f"{o}/attention_scale", f"{t}.lambda_1"), row(f"{o}/mlp_scale", f"{t}.lambda_2")]
        return [
            *_embeddings(task.encoder, "embeddings"),
            *([row("encoder/mask_token", "embeddings.mask_token", leading(2))] if c.mask_token else []),
            row("encoder/relative_positions", "encoder.relative_position_bias.relative_position_bias_table"),
            *blocks(c.depth, block),
            *norm("encoder/final_norm", "layernorm"),
        ]


# A bias of the keys adds the same number to all scores of a query, which leaves the softmax unchanged.
WITHOUT_BIAS = Transform(lambda x: (x.T, np.zeros(len(x), np.float32)), lambda kernel, bias: (kernel.T,))

FAMILIES = (ViTMAE(), ViTEncoder(), ViTClassifier(), IJepa(), Dinov2(), Dinov2WithRegisters(), Data2VecVision())
