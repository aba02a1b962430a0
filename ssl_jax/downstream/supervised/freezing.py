"""Which parameters of a classifier fine-tuning trains."""

from collections.abc import Mapping
from typing import Any

from ssl_jax.errors import UserError
from ssl_jax.models import block_name


def partial(depth: int, blocks: float) -> tuple[tuple[str, bool], ...]:
    """Freeze rules that fine-tune the last `blocks` of `depth` blocks (He et al. 2022, figure 9); 0.5: the last one's MLP.

    The head is always trained, and the norm before it with any block; 0 is a linear probe.
    """
    if blocks not in (0, 0.5, *range(1, depth + 1)):
        raise UserError(f"blocks={blocks}: must be 0, 0.5 or a whole number up to the depth, {depth}")
    trained = [f"{block_name(i)}/.*" for i in range(depth - int(blocks), depth)]
    if blocks == 0.5:
        trained = [f"{block_name(depth - 1)}/mlp(_norm|_scale)?(/.*)?"]
    if blocks == depth:
        return ((".*", False),)
    if blocks == 0:
        return (r"encoder/.*", True), (r".*", False)
    rules = [(rf"encoder/stack/{name}", False) for name in trained]
    return (*rules, (r"encoder/(final_norm|pooled_norm)/.*", False), (r"encoder/.*", True), (r".*", False))


def freeze(optimizer: Mapping[str, Any], rules: tuple) -> dict[str, Any]:
    """The `optimizer` section with freeze rules."""
    return {**optimizer, "rules": {**(optimizer.get("rules") or {}), "freeze": rules}}
