"""Flax linen modules, independent of losses, labels and data sets."""

import re
from collections.abc import Mapping
from typing import Any

import jax.numpy as jnp
from ml_collections import ConfigDict

from ssl_jax.config import look_up
from ssl_jax.errors import UserError

# Input kind -> {`model.name` in a config: the function that builds the model}. A function is called as
# function(section, info, dtype, path, **settings chosen by the task). The first name is the default.
# A new model needs a file and a line here.
MODELS: dict[str, dict[str, str]] = {
    "images": {"vit": "ssl_jax.models.vit:build"},
    "tokens": {"transformer": "ssl_jax.models.language:build"},
    "pairs": {"dual_encoder": "ssl_jax.models.dual_encoder:build"},  # an image and a text
    "parallel_text": {
        "encoder_decoder": "ssl_jax.models.encoder_decoder:build",
        "transformer": "ssl_jax.models.encoder_decoder:build_prefix_decoder",
    },
}
DTYPES = ("float32", "bfloat16", "float16")  # of matmuls (`training.dtype`)
BLOCK = "block{i:02d}"  # block i in parameter paths and among a stack's intermediate values


def build(reads: str, config: Mapping[str, Any] | ConfigDict, info: Any, **settings: Any) -> Any:
    """Return the model that `config.model` names among those for the input kind `reads` (a key of MODELS).

    `info` is the task's DataInfo; `settings` are model settings chosen by the task. Raise UserError for an unknown name or
    `training.dtype`, and for a model that does not fit the data.
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
    """Return the number of the block called `name` (one part of a path); None for any other name."""
    match = re.fullmatch(r"block(\d+)", name)
    return int(match[1]) if match else None
