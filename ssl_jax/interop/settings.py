"""One description of how configurations correspond, read in both directions.

Every field of ours is one of: translated (`keys`), of the value that the architecture means (`fixed`), or of no influence
on a forward pass (FREE). What is none of these cannot be lost on the way: it is an error.
"""

import dataclasses
from collections.abc import Mapping
from typing import Any

from ssl_jax.errors import UserError

# How parameters are drawn, what happens in training only, and how the same numbers are computed.
FREE = frozenset({"init", "init_std", "attention", "remat", "scan", "drop_path", "dropout", "attention_dropout"})

ACTIVATIONS = {  # theirs -> ours
    "gelu": "gelu", "gelu_python": "gelu", "gelu_new": "gelu_tanh", "gelu_pytorch_tanh": "gelu_tanh",
    "quick_gelu": "quick_gelu", "silu": "silu", "swish": "silu", "relu": "relu", "relu2": "relu_squared",
}  # fmt: skip


@dataclasses.dataclass(frozen=True)
class Settings:
    """A section of ours against a (part of a) config.json.

    keys: our field -> their key. defaults: their key -> its value where config.json leaves it out. fixed: our field -> the
    value that the architecture means. demands: their key -> the only value that our models can express.
    """

    keys: Mapping[str, str]
    defaults: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    fixed: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    demands: Mapping[str, Any] = dataclasses.field(default_factory=dict)

    def read(self, theirs: Mapping[str, Any], source: str) -> dict[str, Any]:
        """Our fields."""
        for key, value in self.demands.items():
            if theirs.get(key, value) != value:
                raise UserError(f"{source}: {key}={theirs[key]!r} cannot be expressed here; expected {value!r}")
        ours = dict(self.fixed)
        for field, key in self.keys.items():
            value = theirs.get(key)
            if value is None:
                if key not in self.defaults:
                    raise UserError(f"{source}: lacks {key}")
                value = self.defaults[key]
            if field == "activation":
                if not isinstance(value, str) or value not in ACTIVATIONS:
                    raise UserError(f"{source}: {key}={value!r}: must be one of {', '.join(ACTIVATIONS)}")
                value = ACTIVATIONS[value]
            ours[field] = tuple(value) if isinstance(value, list) else value
        return {field: value for field, value in ours.items() if value is not None}

    def write(self, ours: Any, path: str, architecture: str, *, checked: tuple[str, ...] = ()) -> dict[str, Any]:
        """Their keys, from a config object; the fields `checked` are looked after by the caller."""
        theirs = dict(self.demands)
        names = {field.name for field in dataclasses.fields(ours)}
        derived = {"mlp_width": "width_of_mlp", "head_width": "width_of_head"}
        for field in dataclasses.fields(ours):
            value = getattr(ours, field.name)
            if field.name in self.keys:
                value = getattr(ours, derived.get(field.name, field.name))
                if field.name == "kv_heads" and value is None:
                    value = ours.heads
                if field.name == "activation":
                    value = self._spelling(self.keys["activation"], value)
                theirs[self.keys[field.name]] = list(value) if isinstance(value, tuple) else value
            elif field.name in self.fixed:
                if value != self.fixed[field.name] and not self._harmless(field.name, ours):
                    wanted = self.fixed[field.name]
                    raise UserError(f"{path}.{field.name}={value!r}: {architecture} has {wanted!r}; it cannot hold this model")
            elif field.name not in FREE and field.name not in checked and value != field.default:
                raise UserError(f"{path}.{field.name}={value!r}: {architecture} has no such setting; it cannot hold this model")
        missing = set(self.keys) - names
        assert not missing, f"no such settings: {missing}"
        return theirs

    def _spelling(self, key: str, activation: str) -> str:
        """The architecture's own name where it has several: they are computed in other ways, and differ by rounding."""
        names = [name for name, ours in ACTIVATIONS.items() if ours == activation]
        return next((name for name in names if name == self.defaults.get(key)), names[0])

    @staticmethod
    def _harmless(field: str, ours: Any) -> bool:
        return field == "head_width" and ours.width_of_head * ours.heads == ours.width
