"""Data: sources (URI -> examples), kinds (settings -> Dataset) and the stream of batches."""

import importlib
from typing import Any

KINDS = {
    "images": "ssl_jax.data.images.dataset:build",
    "tokens": "ssl_jax.data.text.corpus:build",
    "sequences": "ssl_jax.data.text.corpus:build_sequences",
    "pairs": "ssl_jax.data.pairs:build",
    "labelled_text": "ssl_jax.data.text.supervised:labelled_text",
    "parallel_text": "ssl_jax.data.text.supervised:parallel_text",
    "squad": "ssl_jax.data.text.squad:squad",
}


def build(kind: str, section: Any, **options: Any) -> Any:
    """Return the Dataset of `kind` (a key of KINDS) for the config's section `data`; `options` go to the kind's `build`."""
    module, _, name = KINDS[kind].partition(":")
    return getattr(importlib.import_module(module), name)(section, **options)
