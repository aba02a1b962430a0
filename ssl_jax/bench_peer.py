"""The reference implementation of a task's model in PyTorch, timed in a separate process.

`reference` finds the class of `transformers` with the shape of a task's model. `Peer` starts a process that trains
it on random batches from memory and is idle between the requested blocks of steps.
"""

import json
import os
import subprocess
import sys
import tempfile
import time
from typing import Any

from ssl_jax.errors import UserError

ACTIVATIONS = {"gelu": "gelu", "gelu_tanh": "gelu_new", "quick_gelu": "quick_gelu", "silu": "silu", "relu": "relu"}
BATCHES = 4  # number of different random batches, used in turn


def reference(task: Any, config: Any) -> dict[str, Any]:
    """Return {"class", "config", "inputs"} of the reference: its class, its settings and the shapes of a batch.

    "differs" describes a remaining difference in words. Raise UserError if `transformers` has no model of this shape.
    """
    makers = {"masked_image": _vit_mae, "next_token": _gpt2, "masked_token": _bert, "image_text": _clip}
    if task.name not in makers:
        raise UserError(f"--peer: there is no reference class for the task {task.name}; use one of {', '.join(makers)}")
    _need(config.training.get("accumulation", 1) == 1, "accumulation")
    return makers[task.name](task, int(config.data.batch_size))


def _refuse(what: str) -> UserError:
    return UserError(f"--peer: the reference class has no {what}; omit --peer or change the config")


def _need(ok: bool, what: str) -> None:
    if not ok:
        raise _refuse(what)


def _shape(c: Any) -> dict[str, Any]:
    """Return the settings that all reference classes share."""
    _need(
        c.norm == "layer" and not c.gated and not c.qk_norm and c.rope_theta is None,
        "RMS norm, gate, QK norm or rotary positions",
    )
    _need(
        (c.kv_heads or c.heads) == c.heads and c.head_width in (None, c.width // c.heads), "grouped queries or other head width"
    )
    _need(c.activation in ACTIVATIONS, f"activation {c.activation}")
    return dict(hidden_size=c.width, num_hidden_layers=c.depth, num_attention_heads=c.heads, intermediate_size=c.width_of_mlp,
                hidden_act=ACTIVATIONS[c.activation], layer_norm_eps=c.norm_eps)  # fmt: skip


def _vit_mae(task: Any, batch: int) -> dict[str, Any]:
    e, d = task.encoder.config, task.config.decoder
    _need(e.patch[0] == e.patch[1], "patch that is not square")
    _need(task.encoder.image_size[0] == task.encoder.image_size[1], "image that is not square")
    _need(not task.config.mask_tokens_in_encoder and d.depth > 0, "mask tokens in the encoder")
    _need(task.config.target in ("pixels", "normalized_pixels"), f"target {task.config.target}")
    size, channels = task.encoder.image_size[0], task.encoder.channels
    config = _shape(e) | dict(
        image_size=size, patch_size=e.patch[0], num_channels=channels, qkv_bias=e.qkv_bias, mask_ratio=task.config.mask.ratio,
        decoder_num_attention_heads=d.heads, decoder_hidden_size=d.width, decoder_num_hidden_layers=d.depth,
        decoder_intermediate_size=d.width_of_mlp, norm_pix_loss=task.config.target == "normalized_pixels",
        hidden_dropout_prob=e.dropout, attention_probs_dropout_prob=e.attention_dropout,
    )  # fmt: skip
    inputs = {"pixel_values": {"shape": [batch, channels, size, size]}}
    spec = {"class": "ViTMAEForPreTraining", "config": config, "inputs": inputs}
    return spec if e.class_token else spec | {"differs": "the reference class has a class token, one more to encode than ours"}


def _gpt2(task: Any, batch: int) -> dict[str, Any]:
    c, vocabulary = task.model.config, task.model.vocabulary
    _need(c.positions == "learned" and c.tied and c.norm_position == "pre", "positions, output layer or norms of this kind")
    shape, time = _shape(c), task.info.shapes["tokens"].shape[0] - 1
    config = dict(
        vocab_size=c.padded(vocabulary), n_positions=task.model.context, n_embd=c.width, n_layer=c.depth, n_head=c.heads,
        n_inner=c.width_of_mlp, activation_function=shape["hidden_act"], layer_norm_epsilon=c.norm_eps,
        resid_pdrop=c.dropout, embd_pdrop=c.dropout, attn_pdrop=c.attention_dropout, use_cache=False,
    )  # fmt: skip
    tokens = {"shape": [batch, time], "below": vocabulary}
    return {"class": "GPT2LMHeadModel", "config": config, "inputs": {"input_ids": tokens, "labels": tokens}}


def _bert(task: Any, batch: int) -> dict[str, Any]:
    c, vocabulary = task.model.config, task.model.vocabulary
    _need(not task.settings.next_sentence, "next-sentence loss")
    _need(c.positions == "learned" and c.tied and c.norm_position == "post" and c.head_transform, "model other than BERT's")
    time = task.info.shapes["tokens"].shape[0]
    config = _shape(c) | dict(
        vocab_size=c.padded(vocabulary), max_position_embeddings=task.model.context + c.position_offset,
        type_vocab_size=max(c.token_types, 1), hidden_dropout_prob=c.dropout,
        attention_probs_dropout_prob=c.attention_dropout,
    )  # fmt: skip
    tokens = {"shape": [batch, time], "below": vocabulary}
    return {"class": "BertForMaskedLM", "config": config,
            "inputs": {"input_ids": tokens, "labels": tokens | {"keep": task.settings.mask.ratio}}}  # fmt: skip


def _clip(task: Any, batch: int) -> dict[str, Any]:
    m = task.model
    image, text, size = m.config.image, m.config.text, m.image_size
    _need(task.config.loss == "infonce" and task.config.mask is None, "sigmoid loss or dropped patches")
    _need(image.class_token and image.pooling == "cls" and image.positions == "learned", "image tower other than CLIP's")
    _need(text.causal and text.pooling == "eos" and text.positions == "learned", "text tower other than CLIP's")
    _need(size[0] == size[1] and image.patch[0] == image.patch[1], "image that is not square")
    time, end = task.info.shapes["tokens"].shape[0], m.end_id if m.end_id is not None else m.vocabulary - 1
    config = dict(
        vision_config=_shape(image) | dict(image_size=size[0], patch_size=image.patch[0], num_channels=m.channels),
        text_config=_shape(text) | dict(vocab_size=text.padded(m.vocabulary), max_position_embeddings=m.context_length,
                                        eos_token_id=end, bos_token_id=0, pad_token_id=m.pad_id),
        projection_dim=m.config.dim,
    )  # fmt: skip
    inputs = {
        "pixel_values": {"shape": [batch, m.channels, *size]},
        "input_ids": {"shape": [batch, time], "below": m.vocabulary, "last": end},
    }
    return {"class": "CLIPModel", "config": config, "inputs": inputs, "call": {"return_loss": True}}


class Peer:
    """The reference model in a child process, eager or compiled."""

    def __init__(self, spec: dict[str, Any], *, compiled: bool, dtype: str, optimizer: dict[str, Any], device: str = "cpu"):
        self.name = "compiled" if compiled else "eager"
        environment = {**os.environ, "HF_HUB_OFFLINE": "1", "PYTHONWARNINGS": "ignore", "TORCHINDUCTOR_COMPILE_THREADS": "1"}
        self._errors = tempfile.TemporaryFile("w+")  # a full pipe that nobody reads would block the child
        self._process = subprocess.Popen(
            [sys.executable, "-m", "ssl_jax.bench_peer"], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True,
            stderr=self._errors, env=environment,
        )  # fmt: skip
        threads = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
        self.about = self._ask(
            {**spec, "compiled": compiled, "dtype": dtype, "optimizer": optimizer, "device": device, "threads": threads}
        )

    def run(self, steps: int, untimed: int = 0) -> float:
        """Return the seconds of `steps` training steps after `untimed` others."""
        return self._ask({"steps": steps, "untimed": untimed})["seconds"]

    def close(self) -> dict[str, Any]:
        """End the process; return its peak memory."""
        about = self._ask({"end": True})
        self.kill()
        return about

    def kill(self) -> None:
        if self._process.poll() is None:
            self._process.kill()
            self._process.wait()

    def _ask(self, message: dict[str, Any]) -> dict[str, Any]:
        try:
            self._process.stdin.write(json.dumps(message) + "\n")
            self._process.stdin.flush()
        except BrokenPipeError:
            pass
        for line in self._process.stdout:
            if line.startswith("{"):
                answer = json.loads(line)
                if "error" in answer:
                    self.kill()
                    raise UserError(f"--peer ({self.name}): {answer['error']}")
                return answer
        self.kill()
        self._errors.seek(0)
        tail = self._errors.read().strip().splitlines()[-1:] or ["it ended without a message"]
        raise UserError(f"--peer ({self.name}): the reference process failed: {tail[0]}")


# In the child process -----------------------------------------------------------------------------------------------


def serve() -> None:
    """Answer one JSON object per line: the first builds the model, {"steps": n} trains, {"end": true} ends."""
    spec = json.loads(sys.stdin.readline())
    say = lambda answer: print(json.dumps(answer), flush=True)
    try:
        import torch
        import transformers
    except ImportError as error:
        say({"error": f"needs {error.name}; pip install 'ssl_jax[parity]'"})
        return
    transformers.logging.set_verbosity_error()
    torch.manual_seed(0)
    torch.set_num_threads(spec["threads"])
    torch.set_float32_matmul_precision("high")
    device = spec["device"]
    model, step = _training(torch, transformers, spec)
    start = time.perf_counter()
    for i in range(3):
        step(i)
    _synchronise(torch, device)
    parameters = sum(p.numel() for p in model.parameters() if p.requires_grad)
    versions = {"torch": torch.__version__, "transformers": transformers.__version__}
    say(
        {"parameters": parameters, "first_steps_s": time.perf_counter() - start, "threads": torch.get_num_threads(), **versions}
    )
    for line in sys.stdin:
        message = json.loads(line)
        if "steps" not in message:
            say(_memory(torch, device))
            return
        for i in range(message["untimed"]):
            step(i)
        _synchronise(torch, device)
        start = time.perf_counter()
        for i in range(message["steps"]):
            step(i)
        _synchronise(torch, device)
        say({"seconds": time.perf_counter() - start})


def _training(torch: Any, transformers: Any, spec: dict[str, Any]) -> tuple[Any, Any]:
    """Return the model and a function that performs training step i."""
    cls = getattr(transformers, spec["class"])
    model = cls._from_config(cls.config_class(**spec["config"]), attn_implementation="sdpa").to(spec["device"]).train()
    settings = spec["optimizer"]
    options = dict(lr=settings["lr"], betas=(settings["b1"], settings["b2"]), eps=settings["eps"])
    groups = [
        {
            "params": [p for p in model.parameters() if p.requires_grad and p.ndim >= 2],
            "weight_decay": settings["weight_decay"],
        },
        {"params": [p for p in model.parameters() if p.requires_grad and p.ndim < 2], "weight_decay": 0.0},
    ]
    optimizer = torch.optim.AdamW(groups, fused=True, **options)
    run = torch.compile(model) if spec["compiled"] else model
    batches = [_batch(torch, spec) for _ in range(BATCHES)]
    reduced = spec["dtype"] != "float32"

    def step(i):
        with torch.autocast(spec["device"], getattr(torch, spec["dtype"]), enabled=reduced):
            loss = run(**batches[i % BATCHES], **spec.get("call", {})).loss
        loss.backward()
        if settings["clip"]:
            torch.nn.utils.clip_grad_norm_(model.parameters(), settings["clip"])
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)

    return model, step


def _batch(torch: Any, spec: dict[str, Any]) -> dict[str, Any]:
    """Return a random batch: floats, or token ids below a bound."""
    batch = {}
    for name, wanted in spec["inputs"].items():
        if "below" not in wanted:
            batch[name] = torch.randn(wanted["shape"])
            continue
        if name == "labels" and "input_ids" in batch:
            batch[name] = batch["input_ids"].clone()
        else:
            batch[name] = torch.randint(0, wanted["below"], wanted["shape"])
        if "keep" in wanted:
            batch[name][torch.rand(wanted["shape"]) >= wanted["keep"]] = -100
        if "last" in wanted:
            batch[name][:, -1] = wanted["last"]
    return {name: value.to(spec["device"]) for name, value in batch.items()}


def _synchronise(torch: Any, device: str) -> None:
    if device == "cuda":
        torch.cuda.synchronize()


def _memory(torch: Any, device: str) -> dict[str, Any]:
    if device == "cuda":
        return {"memory_bytes": torch.cuda.max_memory_allocated()}
    from ssl_jax.devices import peak_resident

    return {"memory_bytes": peak_resident()}


if __name__ == "__main__":
    serve()
