"""Flax linen modules. They know no loss, no label and no data set."""

import re
from collections.abc import Mapping
from typing import Any

import jax.numpy as jnp
from ml_collections import ConfigDict

from ssl_jax.config import look_up
from ssl_jax.errors import UserError

# By what a model reads: its name in a config (`model.name`) -> the function that builds it, called as
# function(section, info, dtype, path, **settings that the task decides). The first name is the default.
# A new model is its file and its line here.
MODELS: dict[str, dict[str, str]] = {
    "images": {"vit": "ssl_jax.models.vit:build"},
    "tokens": {"transformer": "ssl_jax.models.language:build"},
    "pairs": {"dual_encoder": "ssl_jax.models.dual_encoder:build"},  # of an image and a text
    "parallel_text": {
        "encoder_decoder": "ssl_jax.models.encoder_decoder:build",
        "transformer": "ssl_jax.models.encoder_decoder:build_prefix_decoder",
    },
}
DTYPES = ("float32", "bfloat16", "float16")  # of the matmuls: `training.dtype`
BLOCK = "block{i:02d}"  # block i in a parameter's path and among a stack's intermediate values


def build(reads: str, config: Mapping[str, Any] | ConfigDict, info: Any, **settings: Any) -> Any:
    """Return the model that `config.model` names among those that read `reads` (a key of MODELS).

    `info` is the task's DataInfo; `settings` are those of the model that its task decides. Raises UserError for a name
    that no such model has, for `training.dtype`, and where model and data do not fit.
    """
    section, models = config.get("model") or {}, MODELS[reads]
    name, dtype = section.get("name", next(iter(models))), (config.get("training") or {}).get("dtype", "float32")
    if isinstance(name, str) and name not in models and any(name in others for others in MODELS.values()):
        raise UserError(f"model.name={name!r}: does not read {reads}; use {' or '.join(models)}")
    if dtype not in DTYPES:
        raise UserError(f"training.dtype={dtype!r}: must be one of {', '.join(DTYPES)}")
    return look_up(models, name, "model.name")(section, info, jnp.dtype(dtype), "model", **settings)


def block_name(i: int) -> str:
    return BLOCK.format(i=i)


def block_number(name: str) -> int | None:
    """The number of the block that is called `name` (one part of a path); None for any other name."""
    match = re.fullmatch(r"block(\d+)", name)
    return int(match[1]) if match else None
