"""Small states are saved as one long array a dtype."""

import jax.numpy as jnp
import numpy as np

from ssl_jax.training.checkpoint import pack, unpack


def test_each_array_comes_back_under_its_own_name():
    """Whatever the order of the names: a State's fields are not in that of the alphabet."""
    names = ("step", "params/a", "opt_state/nu", "opt_state/mu", "guard/seen", "params/0")
    arrays = {name: jnp.full((i + 1, 2), i, jnp.int32 if i % 3 == 0 else jnp.float32) for i, name in enumerate(names)}
    packed, layout = pack(arrays)
    found = unpack(packed, layout)
    assert sorted(packed) == ["float32", "int32"] and list(found) == list(names)
    for name, value in arrays.items():
        assert found[name].dtype == value.dtype
        np.testing.assert_array_equal(found[name], value)
