"""Reference models with random weights, and how ours are compared with them."""

import copy
import pathlib

import jax
import numpy as np
import torch
import transformers
from safetensors.torch import load_file

from ssl_jax.interop.convert import FAMILIES, _load, exported, family_named, nested
from ssl_jax.interop.mapping import to_ours
from ssl_jax.training.rules import flatten

transformers.logging.set_verbosity_error()
transformers.logging.disable_progress_bar()
torch.set_num_threads(1)


def build(cls, config, folder: pathlib.Path, seed: int = 0):
    """A reference model with every parameter random, norms around 1, saved to `folder`."""
    torch.manual_seed(seed)
    model = cls(config).eval()
    with torch.no_grad():
        for name, p in model.named_parameters():
            p.requires_grad_(True)
            if name.endswith(("logit_scale", "logit_bias")):
                p.fill_(1.3 if name.endswith("scale") else -2.1)
            elif "norm" in name.lower() and name.endswith("weight"):
                p.copy_(1 + 0.2 * torch.randn_like(p))
            else:
                p.copy_(0.3 * torch.randn_like(p) if p.ndim < 2 else torch.randn_like(p) * min(0.5, p.shape[-1] ** -0.5 * 1.5))
    model.save_pretrained(folder)
    return model


class Pair:
    """A reference model and ours, read from its files."""

    def __init__(self, cls, config, folder, seed=0, prepare=None):
        self.folder = folder
        self.theirs = build(cls, config, folder, seed)
        if prepare is not None:
            with torch.no_grad():
                prepare(self.theirs)
            self.theirs.save_pretrained(folder)
        self.task, self.params, self.info, self.config, _ = _load(folder)

    def gradients(self, loss) -> dict[str, np.ndarray]:
        """Of torch's loss, under our names: saved like weights, read through the same table."""
        self.theirs.zero_grad()
        loss.backward()
        holder = copy.deepcopy(self.theirs)
        with torch.no_grad():
            for (_, p), (_, q) in zip(holder.named_parameters(), self.theirs.named_parameters(), strict=True):
                p.copy_(torch.zeros_like(q) if q.grad is None else q.grad)
        holder.save_pretrained(self.folder / "gradients")
        tensors = {k: v.numpy() for k, v in load_file(self.folder / "gradients" / "model.safetensors").items()}
        family = next(f for f in FAMILIES if f.architecture == type(self.theirs).__name__)
        rows = [r for r in family.rows(self.task) if r.ours]
        fixed = {name for r in family.rows(self.task) if not r.ours for name in r.theirs}
        tensors = {k: v for k, v in family.names(self.task, tensors, "gradients").items() if k not in fixed}
        return to_ours(rows, tensors, {k: v.shape for k, v in flatten(self.params).items()}, "gradients")

    def agree_in_gradient(self, theirs, ours, tolerance=1e-4) -> float:
        """The largest difference of a parameter's gradient, relative to the largest gradient of all; asserted."""
        wanted = self.gradients(theirs)
        params = jax.tree.map(np.asarray, self.params)
        found = flatten(jax.jit(jax.grad(ours))(params))
        assert set(found) == set(wanted)
        worst = 0.0
        for name, value in wanted.items():
            scale = max(np.abs(value).max(), 1e-3 * max(np.abs(v).max() for v in wanted.values()))
            worst = max(worst, float(np.abs(found[name] - value).max() / scale))
            assert worst <= tolerance, f"{name}: {worst:.1e}"
        return worst

    def forward(self, **batch) -> dict[str, np.ndarray]:
        return {k: np.asarray(v) for k, v in jax.jit(self.task.forward)(self.params, batch).items()}

    def returns(self, folder, inputs, output, rename=lambda name: name, ignored=()) -> None:
        """Ours, written out: tensors equal byte for byte, loaded without a missing or unexpected key, the same output."""
        import json

        from safetensors.numpy import load_file as load_numpy
        from safetensors.numpy import save_file

        architecture, theirs, tensors = exported(self.task, self.params)
        folder.mkdir()
        (folder / "config.json").write_text(json.dumps(theirs))
        save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
        original = {rename(k): v for k, v in load_numpy(self.folder / "model.safetensors").items() if k not in ignored}
        tensors = {k: v for k, v in tensors.items() if k not in ignored}
        assert set(original) == set(tensors)
        assert all(original[k].tobytes() == tensors[k].tobytes() and original[k].shape == tensors[k].shape for k in original)
        again, report = type(self.theirs).from_pretrained(folder, output_loading_info=True)
        assert not any(report[key] for key in ("missing_keys", "unexpected_keys", "mismatched_keys")), report
        with torch.no_grad():
            a, b = output(self.theirs, inputs), output(again.eval(), inputs)
        assert torch.equal(a, b)
        assert family_named(theirs, folder).architecture == architecture == type(self.theirs).__name__


def difference(ours, theirs) -> float:
    """The largest difference relative to the largest magnitude."""
    theirs = theirs.detach().numpy() if isinstance(theirs, torch.Tensor) else np.asarray(theirs)
    ours = np.asarray(ours)
    assert ours.shape == theirs.shape, (ours.shape, theirs.shape)
    return float(np.abs(ours.astype(np.float64) - theirs).max() / np.abs(theirs).max())


def agree(measured: dict[str, float], tolerance: float = 1e-5) -> None:
    worse = {name: value for name, value in measured.items() if not value <= tolerance}
    assert not worse, worse


__all__ = ["Pair", "agree", "build", "difference", "nested"]
