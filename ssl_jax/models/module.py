"""flax's Module, of which all models here are made."""

from collections.abc import Callable
from typing import Any

import flax.errors
import flax.linen as nn
import jax
import numpy as np


class Module(nn.Module):
    """flax's Module, without a trace of the initialiser wherever a parameter is read.

    flax compares the shape of a given parameter with that of a freshly initialised one, for which it traces the initialiser
    again, in every call of every layer: a seventh of the time that a step takes to trace. Here `shape` says it.
    """

    @nn.nowrap
    def param(self, name: str, init: Callable[..., jax.Array], shape: tuple[int, ...], *args: Any) -> Any:
        """The parameter `name`, at first init(key, shape, *args). Raises flax's ScopeParamShapeError for another shape."""
        if self.scope is None or not self.scope.has_variable("params", name):
            return super().param(name, init, shape, *args)
        value = self.scope.get_variable("params", name)
        if np.shape(value) != tuple(shape):
            raise flax.errors.ScopeParamShapeError(name, self.scope.path_text, np.shape(value), tuple(shape))
        return value
