"""Flax linen modules. They know no loss, no label and no data set."""

import re

BLOCK = "block{i:02d}"  # block i in a parameter's path and among a stack's intermediate values


def block_name(i: int) -> str:
    return BLOCK.format(i=i)


def block_number(name: str) -> int | None:
    """The number of the block that is called `name` (one part of a path); None for any other name."""
    match = re.fullmatch(r"block(\d+)", name)
    return int(match[1]) if match else None
