"""Shared by all tasks on text: a batch's entries by name, hidden states and representations."""

from collections.abc import Mapping
from typing import Any

import jax.numpy as jnp
from jaxtyping import Array, Float, Key

from ssl_jax.models import block_number
from ssl_jax.models.language import Transformer, pooled
from ssl_jax.task import Batch, Params

ENTRIES = ("segments", "key_segments", "positions", "token_types")  # of a batch, that a transformer reads beside "tokens"


def rename_tokenizer_outputs(batch: Batch) -> dict[str, Array]:
    """The batch with "token_type_ids" as "token_types" and "attention_mask" as "key_segments".

    A mask hides keys only, as in the reference implementations: a padded position still attends to the text.
    """
    named = {"token_types" if name == "token_type_ids" else name: value for name, value in batch.items()}
    if "attention_mask" in named:
        mask = (jnp.asarray(named.pop("attention_mask")) > 0).astype(jnp.int32)
        named |= {"segments": jnp.ones_like(mask), "key_segments": mask}
    return named


def real_tokens(batch: Batch) -> Array | None:
    """Above 0 on what is not padding; None where nothing is."""
    named = rename_tokenizer_outputs(batch)
    return named.get("key_segments", named.get("segments"))


def hidden_states(
    model: Transformer, params: Params, batch: Batch, keys: Key[Array, "batch"] | None = None
) -> tuple[Float[Array, "batch time dim"], dict[str, Any]]:
    """The last hidden states of the batch's tokens and the intermediates; no token attends to padding (segment 0)."""
    batch = rename_tokenizer_outputs(batch)
    options = {name: batch[name] for name in ENTRIES if name in batch}
    return model.apply({"params": params["transformer"]}, batch["tokens"], keys=keys, **options)


def representations(hidden: Array, intermediates: Mapping[str, Any], batch: Batch) -> dict[str, Array]:
    """ "cls", "mean", "last" over what is not padding, "tokens", and "block00/mean" ... of every block, f32."""
    real = real_tokens(batch)
    found = {"tokens": hidden.astype(jnp.float32), **pooled(hidden, real)}
    for name, value in intermediates.items():
        if block_number(name) is not None:
            found |= {f"{name}/{kind}": x for kind, x in pooled(value, real).items()}
    return found


def text_features(model: Transformer, params: Params, batch: Batch) -> dict[str, Array]:
    """The representations of the batch's first `context` tokens."""
    batch = rename_tokenizer_outputs(batch)
    batch = {name: batch[name][:, : model.context] for name in ("tokens", *ENTRIES) if name in batch}
    return representations(*hidden_states(model, params, batch), batch)


def vocabulary_limits(model: Transformer) -> dict[str, int]:
    """How many tokens and token types a transformer tells apart; a table of one type is not looked up."""
    c = model.config
    return {"tokens": c.padded(model.vocabulary)} | ({"token_types": c.token_types} if c.token_types > 1 else {})
