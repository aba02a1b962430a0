"""Rotary frequencies for longer contexts, against the published rules written out case by case."""

import math

import numpy as np
import pytest

from ssl_jax.errors import UserError
from ssl_jax.models.layers import TransformerSettings, rope_frequencies


def test_linear_scaling_divides_every_frequency():
    plain = rope_frequencies(4, 10_000.0)
    np.testing.assert_allclose(plain, [1.0, 0.1, 0.01, 0.001], rtol=1e-6)
    np.testing.assert_allclose(rope_frequencies(4, 10_000.0, ("linear", 4.0)), np.asarray(plain) / 4, rtol=1e-6)


def test_llama3_scaling_changes_long_wavelengths_only():
    factor, low, high, length = 8.0, 1.0, 4.0, 64.0
    found = rope_frequencies(16, 500.0, ("llama3", factor, low, high, length))
    cases = set()
    for i, value in enumerate(np.asarray(found)):
        frequency = 500.0 ** (-i / 16)
        wavelength = 2 * math.pi / frequency
        if wavelength < length / high:
            wanted, case = frequency, "kept"
        elif wavelength > length / low:
            wanted, case = frequency / factor, "divided"
        else:
            smooth = (length / wavelength - low) / (high - low)
            wanted, case = (1 - smooth) * frequency / factor + smooth * frequency, "between"
        cases.add(case)
        assert value == pytest.approx(wanted, rel=1e-5)
    assert cases == {"kept", "divided", "between"}


@pytest.mark.parametrize("scaling", [("yarn", 2.0), ("linear",), ("llama3", 8.0)])
def test_an_unknown_scaling_is_named(scaling):
    with pytest.raises(UserError, match="rope_scaling="):
        TransformerSettings(rope_scaling=scaling)
