"""One table of corresponding settings, used in both directions.

Each of our fields is translated (`keys`), fixed to the architecture's value (`fixed`), or without influence on a forward pass
(FREE). Any other field is an error, so that no setting is lost silently.
"""

import dataclasses
from collections.abc import Mapping
from typing import Any

from ssl_jax.errors import UserError

# Settings of the initialisation, of training only, and of the implementation.
FREE = frozenset({"init", "init_std", "attention", "remat", "scan", "drop_path", "dropout", "attention_dropout"})

ACTIVATIONS = {  # theirs -> ours
    "gelu": "gelu", "gelu_python": "gelu", "gelu_new": "gelu_tanh", "gelu_pytorch_tanh": "gelu_tanh",
    "quick_gelu": "quick_gelu", "silu": "silu", "swish": "silu", "relu": "relu", "relu2": "relu_squared",
}  # fmt: skip


@dataclasses.dataclass(frozen=True)
class Settings:
    """The translation between a section of ours and (a part of) a config.json.

    keys: our field -> their key. defaults: their key -> its value if config.json omits it. fixed: our field -> the
    architecture's value. demands: their key -> the only value that our models support.
    """

    keys: Mapping[str, str]
    defaults: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    fixed: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    demands: Mapping[str, Any] = dataclasses.field(default_factory=dict)

    def read(self, theirs: Mapping[str, Any], source: str) -> dict[str, Any]:
        """Return our fields from a config.json; raise UserError for values that our models do not support."""
        for key, value in self.demands.items():
            if theirs.get(key, value) != value:
                raise UserError(f"{source}: {key}={theirs[key]!r} is not supported; expected {value!r}")
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
        """Return their keys from a settings object; the caller handles the fields `checked`."""
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
        """Return the architecture's name of an activation with several names, which differ only by rounding."""
        names = [name for name, ours in ACTIVATIONS.items() if ours == activation]
        return next((name for name in names if name == self.defaults.get(key)), names[0])

    @staticmethod
    def _harmless(field: str, ours: Any) -> bool:
        return field == "head_width" and ours.width_of_head * ours.heads == ours.width
