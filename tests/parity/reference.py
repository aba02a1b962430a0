"""Reference models with random weights, and how ours are compared with them."""

import copy
import dataclasses
import json
import pathlib
from collections.abc import Callable, Mapping
from typing import Any

import jax
import numpy as np
import torch
import transformers
from safetensors.numpy import load_file, save_file

from ssl_jax.interop.convert import FAMILIES, _load, exported
from ssl_jax.interop.mapping import to_ours
from ssl_jax.training.rules import flatten

transformers.logging.set_verbosity_error()
transformers.logging.disable_progress_bar()
torch.set_num_threads(1)

Tensors = dict[str, torch.Tensor]


@dataclasses.dataclass(frozen=True)
class Case:
    """A reference class in one shape.

    `theirs(model, inputs)` gives outputs by name, `ours(task, params, batch)` the same in JAX; "objective", or else "loss", is
    differentiated. `prepare` changes the random weights; `rename` spells a name of their file as ours does.
    """

    cls: type
    config: Any
    inputs: Callable[[], Tensors]
    theirs: Callable[[Any, Tensors], Tensors]
    ours: Callable[[Any, Any, Mapping[str, Any]], Mapping[str, Any]]
    prepare: Callable[[Any], None] = lambda model: None
    rename: Callable[[str], str] = lambda name: name


def build(case: Case, folder: pathlib.Path, seed: int = 0):
    """The reference with random parameters, saved to `folder`."""
    model = randomise(case.cls(case.config), seed)
    with torch.no_grad():
        case.prepare(model)
    model.save_pretrained(folder)
    return model


def randomise(model: Any, seed: int) -> Any:
    """Every parameter random, scales of norms around 1."""
    torch.manual_seed(seed)
    with torch.no_grad():
        for name, p in model.named_parameters():
            p.requires_grad_(True)  # fixed positions, too
            if name.endswith(("logit_scale", "logit_bias")):
                p.fill_(1.3 if name.endswith("scale") else -2.1)
            elif "norm" in name.lower() and name.endswith("weight"):
                p.copy_(1 + 0.2 * torch.randn_like(p))
            else:
                p.copy_(torch.randn_like(p) * (0.3 if p.ndim < 2 else min(0.5, 1.5 * p.shape[-1] ** -0.5)))
    return model.eval()


class Pair:
    """A reference model and ours, read from its files."""

    def __init__(self, case: Case, folder: pathlib.Path, seed: int = 0):
        self.case, self.folder = case, folder
        self.theirs = build(case, folder, seed)
        self.task, self.params, self.info, self.config, _ = _load(folder)
        self.inputs = case.inputs()
        self.batch = {k: v.permute(0, 2, 3, 1).numpy() if k == "image" else v.numpy() for k, v in self.inputs.items()}

    @property
    def given(self) -> dict[str, Any]:
        """The batch as `Pretrained` takes it."""
        return {"pixel_values" if name == "image" else name: value for name, value in self.batch.items()}

    def compare(self) -> tuple[dict[str, float], float]:
        """(largest differences of the outputs by name, the largest difference of a gradient)."""

        @jax.jit
        def ours(params, batch):
            def loss(params):
                outputs = dict(self.case.ours(self.task, params, batch))
                return outputs.pop("objective") if "objective" in outputs else outputs["loss"], outputs

            return jax.grad(loss, has_aux=True)(params)

        theirs = self.case.theirs(self.theirs, self.inputs)
        objective = theirs.pop("objective") if "objective" in theirs else theirs["loss"]
        gradient, outputs = ours(jax.tree.map(np.asarray, self.params), self.batch)
        assert set(outputs) >= set(theirs)
        measured = {name: difference(outputs[name], value) for name, value in theirs.items()}
        return measured, self.gradient_difference(objective, flatten(gradient))

    def gradient_difference(self, loss: torch.Tensor, found: Mapping[str, Any]) -> float:
        """Over all parameters, relative to the largest magnitude of each one's gradient.

        The softmax ignores what is added to all keys, so a key's bias has the gradient 0 but for rounding; it is measured by
        the gradient of the query's bias, whose terms are of the size of those that cancel.
        """
        wanted = self.gradients(loss)
        assert set(found) == set(wanted)
        worst = {}
        for name, value in wanted.items():
            scale = np.abs(wanted[name.replace("key/bias", "query/bias")]).max()
            worst[name] = float(np.abs(found[name] - value).max() / (scale or 1.0))
        self.worst = max(worst, key=worst.get)
        return worst[self.worst]

    def gradients(self, loss: torch.Tensor) -> dict[str, np.ndarray]:
        """Of torch's loss, under our names: saved as weights are, and read through the same table."""
        self.theirs.zero_grad()
        loss.backward()
        holder = copy.deepcopy(self.theirs)
        with torch.no_grad():
            for p, q in zip(holder.parameters(), self.theirs.parameters(), strict=True):
                p.copy_(torch.zeros_like(q) if q.grad is None else q.grad)
        holder.save_pretrained(self.folder / "gradients")
        tensors = load_file(self.folder / "gradients" / "model.safetensors")
        family = next(f for f in FAMILIES if f.architecture == self.case.cls.__name__)
        rows = family.rows(self.task)
        fixed = {name for r in rows if not r.ours for name in r.theirs}
        tensors = {k: v for k, v in family.names(self.task, tensors, "gradients").items() if k not in fixed}
        return to_ours([r for r in rows if r.ours], tensors, {k: v.shape for k, v in flatten(self.params).items()}, "gradients")

    def check_return(self, folder: pathlib.Path) -> None:
        """Ours, written out: tensors equal byte for byte, loaded without a missing or unexpected key, the same output."""
        architecture, config, tensors = exported(self.task, self.params)
        assert architecture == self.case.cls.__name__
        folder.mkdir()
        (folder / "config.json").write_text(json.dumps(config))
        save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
        original = {self.case.rename(k): v for k, v in load_file(self.folder / "model.safetensors").items()}
        assert set(original) == set(tensors)
        for name, value in original.items():
            assert value.shape == tensors[name].shape and value.tobytes() == tensors[name].tobytes(), name
        again, report = self.case.cls.from_pretrained(folder, output_loading_info=True)
        assert not any(report[key] for key in ("missing_keys", "unexpected_keys", "mismatched_keys")), report
        a, b = (self.case.theirs(model.eval(), self.inputs) for model in (self.theirs, again))
        assert not [name for name in a if not torch.equal(a[name], b[name])]


def difference(ours, theirs) -> float:
    """The largest difference relative to the largest magnitude."""
    theirs = theirs.detach().numpy() if isinstance(theirs, torch.Tensor) else np.asarray(theirs)
    ours = np.asarray(ours, np.float64)
    assert ours.shape == theirs.shape, (ours.shape, theirs.shape)
    return float(np.abs(ours - theirs).max() / np.abs(theirs).max())
