"""What the supervised tasks over text share: their transformer, its hidden states, and how it starts from a pretext run."""

import re
from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Key

from ssl_jax.errors import UserError
from ssl_jax.models.language import Transformer
from ssl_jax.task import Batch, Params
from ssl_jax.training.rules import flatten


def init_transformer(model: Transformer, key: Key[Array, ""], batch: Batch) -> Params:
    return model.init(key, jnp.zeros((1, batch["tokens"].shape[1]), jnp.int32))["params"]


def label_scores(logits: Float[Array, "*batch classes"], labels: Array, smoothing: float) -> Float[Array, "*batch"]:
    """Cross entropy against (1 - smoothing) of the label and smoothing / classes of each class (Szegedy et al. 2016, 7)."""
    logp = jax.nn.log_softmax(logits.astype(jnp.float32))
    own = jnp.take_along_axis(logp, labels[..., None], axis=-1)[..., 0]
    return -((1 - smoothing) * own + smoothing * jnp.mean(logp, axis=-1)) if smoothing else -own


def transplant(
    params: Mapping[str, Any], source: Mapping[str, Any], name: str = "transformer", *, fresh: str = "", unused: str = ""
) -> dict[str, Any]:
    """`source`, a trained tree, in the place and form of `params`, a fresh one of the same settings.

    A longer position table is cut. Parameters that only one side has, or of another shape, are a UserError that names them;
    but for new ones that match the expression `fresh`, and old ones that match `unused`.
    """
    new = flatten(params)
    old = {path: leaf for path, leaf in flatten(source).items() if not (unused and re.fullmatch(unused, path))}
    old = {path: leaf for path, leaf in new.items() if fresh and re.fullmatch(fresh, path)} | old
    missing, left = [p for p in new if p not in old], [p for p in old if p not in new]
    if missing or left:
        parts = [f"{what} {', '.join(paths[:3])}{' ...' if len(paths) > 3 else ''}"
                 for what, paths in (("it lacks", missing), ("this model has no", left)) if paths]  # fmt: skip
        raise UserError(f"task.init: its {name} is another model: {'; '.join(parts)}; use its settings in config.model")

    def value(path, leaf):
        found = old[path]
        if path.endswith("position_embedding") and found.shape[1:] == leaf.shape[1:] and len(found) > len(leaf):
            return found[: len(leaf)]
        if found.shape != leaf.shape:
            mend = "use its settings in config.model"
            if path.endswith("token_embedding"):
                mend = "the vocabularies differ; use its tokenizer in config.data.tokenizer"
            elif path.endswith("position_embedding"):
                mend = f"it takes at most {len(found)} tokens; shorten config.data's texts"
            raise UserError(f"task.init: {name}/{path} has shape {tuple(found.shape)}, expected {tuple(leaf.shape)}: {mend}")
        return found

    leaves = [value(path, leaf) for path, leaf in new.items()]
    return jax.tree.unflatten(jax.tree.structure(dict(params)), leaves)


class FromPretext:
    """Mixin of tasks whose parameters are {"transformer": ..., "pooler"?: ..., their own head} and whose settings name `init`,
    a work directory or hf:DIR, and its `checkpoint`."""

    def initialise(self, params: Params, *, load: Callable[..., Any], say: Callable[[str], None] = print) -> Params:
        """Fresh `params` with the transformer of `settings.init`, read by load(path, checkpoint) -> (task, params, info)."""
        if self.settings.init is None:
            return params
        return self.init_from(params, load(self.settings.init, self.settings.checkpoint)[1], say=say)

    def init_from(self, params: Params, source: Params, *, say: Callable[[str], None] = lambda text: None) -> Params:
        """Fresh `params` with the transformer of another run over tokens, and its pooler where both have one."""
        taken = {"transformer": transplant(params["transformer"], transformer_of(source))}
        pooler = source.get("pooler") or source.get("next_sentence", {}).get("pooler")
        if "pooler" in params and pooler:
            taken["pooler"] = transplant(params["pooler"], pooler, "pooler")
        unused = [name for name in source if name not in taken]
        new = [name for name in params if name not in taken]
        say(f"{' and '.join(taken)} taken over; new: {', '.join(new)}; not used: {', '.join(unused) or 'nothing'}")
        return {**params, **taken}


def transformer_of(source: Mapping[str, Any]) -> Mapping[str, Any]:
    if "transformer" not in source:
        raise UserError(f"task.init: holds {', '.join(sorted(source))}, but no transformer over text")
    return source["transformer"]
