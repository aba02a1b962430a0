"""Shared by all tasks on text: the names of a batch's entries, hidden states and representations."""

from collections.abc import Mapping
from typing import Any

import jax.numpy as jnp
from jaxtyping import Array, Float, Key

from ssl_jax.models import block_number
from ssl_jax.models.language import Transformer, pooled
from ssl_jax.task import Batch, Params

ENTRIES = (
    "segments",
    "key_segments",
    "positions",
    "token_types",
)  # entries of a batch that a transformer reads besides "tokens"


def rename_tokenizer_outputs(batch: Batch) -> dict[str, Array]:
    """Return the batch with "token_type_ids" renamed to "token_types" and "attention_mask" to "key_segments".

    The mask hides keys only, as in the reference implementations: a padded position still attends to the text.
    """
    named = {"token_types" if name == "token_type_ids" else name: value for name, value in batch.items()}
    if "attention_mask" in named:
        mask = (jnp.asarray(named.pop("attention_mask")) > 0).astype(jnp.int32)
        named |= {"segments": jnp.ones_like(mask), "key_segments": mask}
    return named


def real_tokens(batch: Batch) -> Array | None:
    """Return an array that is 0 at padding and above 0 elsewhere; None if the batch has no padding."""
    named = rename_tokenizer_outputs(batch)
    return named.get("key_segments", named.get("segments"))


def hidden_states(
    model: Transformer, params: Params, batch: Batch, keys: Key[Array, "batch"] | None = None
) -> tuple[Float[Array, "batch time dim"], dict[str, Any]]:
    """Return the last hidden states of the batch's tokens and the intermediates; no token attends to padding (segment 0)."""
    batch = rename_tokenizer_outputs(batch)
    options = {name: batch[name] for name in ENTRIES if name in batch}
    return model.apply({"params": params["transformer"]}, batch["tokens"], keys=keys, **options)


def representations(hidden: Array, intermediates: Mapping[str, Any], batch: Batch) -> dict[str, Array]:
    """Return "cls", "mean" and "last" without padding, "tokens", and each block's "block00/mean", ..., all f32."""
    real = real_tokens(batch)
    found = {"tokens": hidden.astype(jnp.float32), **pooled(hidden, real)}
    for name, value in intermediates.items():
        if block_number(name) is not None:
            found |= {f"{name}/{kind}": x for kind, x in pooled(value, real).items()}
    return found


def text_features(model: Transformer, params: Params, batch: Batch) -> dict[str, Array]:
    """Return the representations of the batch's first `context` tokens."""
    batch = rename_tokenizer_outputs(batch)
    batch = {name: batch[name][:, : model.context] for name in ("tokens", *ENTRIES) if name in batch}
    return representations(*hidden_states(model, params, batch), batch)


def vocabulary_limits(model: Transformer) -> dict[str, int]:
    """Return the number of tokens and token types of a transformer; a table of one type is not looked up."""
    c = model.config
    return {"tokens": c.padded(model.vocabulary)} | ({"token_types": c.token_types} if c.token_types > 1 else {})
