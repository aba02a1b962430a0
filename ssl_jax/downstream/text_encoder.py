"""What the supervised tasks over text share: their transformer, its hidden states, and how it starts from a pretext run."""

import dataclasses
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Key
from ml_collections import ConfigDict

from ssl_jax.errors import UserError
from ssl_jax.models.language import Transformer, pooled
from ssl_jax.pretext.next_token import language_inputs, with_context
from ssl_jax.task import Batch, DataInfo, Params
from ssl_jax.training.rules import flatten


def transformer_for(config: ConfigDict, info: DataInfo, *, causal: bool) -> Transformer:
    """The transformer of `config.model` for sequences of the data's length."""
    shape, dtype, vocabulary = language_inputs(config, info)
    return Transformer(with_context(shape, info.shapes["tokens"].shape[0]), vocabulary, causal=causal, dtype=dtype)


def init_transformer(model: Transformer, key: Key[Array, ""], batch: Batch) -> Params:
    return model.init(key, jnp.zeros((1, batch["tokens"].shape[1]), jnp.int32))["params"]


def hidden_states(
    model: Transformer, params: Params, batch: Batch, keys: Key[Array, "batch"] | None = None
) -> tuple[Float[Array, "batch time dim"], dict[str, Any]]:
    """The last hidden states and the intermediates; padding (segment 0) is not attended to."""
    token_types = batch.get("token_types") if model.config.token_types else None
    return model.apply(
        {"params": params["transformer"]}, batch["tokens"], segments=batch.get("segments"), token_types=token_types, keys=keys
    )


def representations(hidden: Array, intermediates: Mapping[str, Any], batch: Batch) -> dict[str, Array]:
    """ "cls", "mean", "last", "tokens", and "block00/mean" ... of every block, f32."""
    segments = batch.get("segments")
    found = {"tokens": hidden.astype(jnp.float32), **pooled(hidden, segments)}
    for name, value in intermediates.items():
        if name.startswith("block"):
            found |= {f"{name}/{kind}": x for kind, x in pooled(value, segments).items()}
    return found


def label_scores(logits: Float[Array, "*batch classes"], labels: Array, smoothing: float) -> Float[Array, "*batch"]:
    """Cross entropy against (1 - smoothing) of the label and smoothing / classes of each class (Szegedy et al. 2016, 7)."""
    logp = jax.nn.log_softmax(logits.astype(jnp.float32))
    own = jnp.take_along_axis(logp, labels[..., None], axis=-1)[..., 0]
    return -((1 - smoothing) * own + smoothing * jnp.mean(logp, axis=-1)) if smoothing else -own


def transplant(params: Mapping[str, Any], source: Mapping[str, Any], name: str = "transformer") -> dict[str, Any]:
    """`source`, a trained tree, in the place and form of `params`, a fresh one of the same settings.

    A longer position table is cut. Parameters that only one side has, or another shape, are a UserError that names them.
    """
    new, old = flatten(params), flatten(source)
    missing, unused = [p for p in new if p not in old], [p for p in old if p not in new]
    if missing or unused:
        parts = [f"{what} {', '.join(paths[:3])}{' ...' if len(paths) > 3 else ''}"
                 for what, paths in (("it lacks", missing), ("this model has no", unused)) if paths]  # fmt: skip
        raise UserError(f"--init: its {name} is another model: {'; '.join(parts)}; use its settings in config.model")

    def value(path, fresh):
        found = old[path]
        if path.endswith("position_embedding") and found.shape[1:] == fresh.shape[1:] and len(found) > len(fresh):
            return found[: len(fresh)]
        if found.shape != fresh.shape:
            mend = "use its settings in config.model"
            if path.endswith("token_embedding"):
                mend = "the vocabularies differ; use its tokenizer in config.data.tokenizer"
            elif path.endswith("position_embedding"):
                mend = f"it takes at most {len(found)} tokens; shorten config.data's texts"
            raise UserError(f"--init: {name}/{path} has shape {tuple(found.shape)}, expected {tuple(fresh.shape)}: {mend}")
        return found

    leaves = [value(path, fresh) for path, fresh in new.items()]
    return jax.tree.unflatten(jax.tree.structure(dict(params)), leaves)


@dataclasses.dataclass(frozen=True)
class FromPretext:
    """Mixin of tasks whose parameters are {"transformer": ..., "pooler"?: ..., their own head}."""

    def init_from(self, params: Params, source: Params) -> Params:
        """Fresh `params` with the transformer of another run over tokens, and its pooler where both have one."""
        if "transformer" not in source:
            raise UserError(f"--init: holds {', '.join(sorted(source))}, but no transformer over text")
        result = dict(params) | {"transformer": transplant(params["transformer"], source["transformer"])}
        pooler = source.get("pooler") or source.get("next_sentence", {}).get("pooler")
        if "pooler" in params and pooler:
            result["pooler"] = transplant(params["pooler"], pooler, "pooler")
        return result
