"""Self-supervised learning in JAX, from unlabelled data to a measured representation."""

import os

__version__ = "0.1.0"


def load(path: "str | os.PathLike[str]", checkpoint: int | None = None, **options):
    """Return a trained model for use in a notebook: `ssl_jax.load("runs/mae").features({"image": images})`; see api.load."""
    from ssl_jax.api import load as _load

    return _load(path, checkpoint, **options)
