"""First-match regular expressions over parameter paths ("encoder/block03/mlp/up/kernel").

One mechanism serves freezing, learning-rate multipliers, weight decay and sharding.
"""

import re
from collections.abc import Mapping, Sequence
from typing import Any

import jax

from ssl_jax.errors import UserError
from ssl_jax.models import block_number

FIRST_LAYER = (  # the parameters before block 0
    "patch_embedding", "positions", "class_token", "registers", "mask_token", "token_embedding", "position_embedding",
    "position_scale", "type_embedding", "embedding_norm",
)  # fmt: skip
TOKENS = ("class_token", "mask_token", "registers")
NOT_DECAYED = ("bias", "scale", "positions", "position_embedding")


def path_of(keys: tuple) -> str:
    """Return a path of jax.tree_util as text: "encoder/block03/mlp/up/kernel"."""
    return "/".join(str(getattr(k, "key", getattr(k, "name", getattr(k, "idx", k)))) for k in keys)


def flatten(tree: Any) -> dict[str, Any]:
    """Return the leaves by path, in the tree's order."""
    return {path_of(keys): leaf for keys, leaf in jax.tree_util.tree_flatten_with_path(tree)[0]}


def first_match(rules: Sequence[Any], tree: Any, where: str) -> Any:
    """Return a tree with, for each leaf, the value of the first rule whose expression matches its whole path.

    Raise UserError for an invalid expression and for a leaf that no rule matches.
    """
    compiled = []
    for rule in rules:
        if not isinstance(rule, list | tuple) or len(rule) != 2 or not isinstance(rule[0], str):
            raise UserError(f"{where}: {rule!r}: expected a pair (regular expression, value)")
        try:
            compiled.append((re.compile(rule[0]), rule[1]))
        except re.error as error:
            raise UserError(f"{where}: {rule[0]!r} is not a regular expression ({error})") from None

    def value(keys, leaf):
        path = path_of(keys)
        for expression, result in compiled:
            if expression.fullmatch(path):
                return result
        raise UserError(f'{where}: no rule matches the parameter {path}; end the rules with (".*", VALUE)')

    return jax.tree_util.tree_map_with_path(value, tree)


def decays(path: str, shape: tuple[int, ...]) -> bool:
    """Return whether weight decay acts on a parameter by default.

    It does not act on biases, norms' scales, positions and other parameters with one axis. It does act on class and mask
    tokens, as in the parameter groups of the MAE code, where these have three axes (timm's rule only counts axes).
    """
    name = path.rsplit("/", 1)[-1]
    return name in TOKENS or (len(shape) > 1 and name not in NOT_DECAYED)


def block_of(path: str) -> int | None:
    """Return the number of the (first) block that contains a parameter; None outside of blocks."""
    return next((i for part in path.split("/") if (i := block_number(part)) is not None), None)


def layer_ids(paths: Sequence[str], depth: int | None = None) -> dict[str, int]:
    """Return each parameter's layer: 0 before block 0, N + 1 in block N, depth + 1 for everything else."""
    blocks = {path: i for path in paths if (i := block_of(path)) is not None}
    if depth is None:
        depth = 1 + max(blocks.values(), default=-1)
    ids = {}
    for path in paths:
        if path in blocks:
            ids[path] = blocks[path] + 1
        else:
            ids[path] = 0 if any(part in FIRST_LAYER for part in path.split("/")) else depth + 1
    return ids


def layer_decay_multipliers(paths: Sequence[str], depth: int | None, decay: float) -> Mapping[str, float]:
    """Return learning-rate multipliers decay**(depth + 1 - id) (BEiT and MAE fine-tuning, util/lr_decay.py; Clark et al. 2020).

    The path's prefix does not matter. `depth` defaults to the number of blocks among `paths`.
    """
    ids = layer_ids(paths, depth)
    if depth is None:
        depth = max(ids.values(), default=1) - 1 if any(block_of(p) is not None for p in paths) else 0
    return {path: decay ** (depth + 1 - i) for path, i in ids.items()}
