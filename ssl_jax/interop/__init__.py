"""Import and export of published weights."""

from ssl_jax.interop.convert import convert, load_pretrained

__all__ = ["convert", "load_pretrained"]
