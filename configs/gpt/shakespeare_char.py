r"""nanoGPT's character model for one GPU (config/train_shakespeare_char.py).

6 layers, 6 heads, width 384, dropout 0.2, 64 windows of 256 characters per step, 5,000 steps; 10.65 M parameters without
positions. Published: best validation loss 1.4697, the lowest of the estimates every 250 steps; about 3 minutes on one A100.

    ssl-jax run --config=configs/gpt/shakespeare_char.py --config.data.train=text:tinyshakespeare.txt --workdir=runs/char

The recipe overfits from about step 2,000 on; its result is the lowest loss among the evaluations in metrics.jsonl, here on the
whole test split.
"""

from ml_collections import ConfigDict


def get_config() -> ConfigDict:
    config = ConfigDict()
    config.seed = 0
    config.data = dict(
        train="bundled:shakespeare/all", block=256, batch_size=64, holdout=0.1, tokenizer=dict(name="characters")
    )
    config.task = dict(name="next_token", sample=dict(tokens=500))
    config.model = dict(
        name="transformer", width=384, depth=6, heads=6, bias=False, qkv_bias=False, norm_bias=False, activation="gelu",
        dropout=0.2, attention_dropout=0.2,
    )  # fmt: skip
    config.training = dict(duration="5000 steps", dtype="bfloat16", log_every=50, evaluate_every="250 steps")
    config.optimizer = dict(
        name="adamw", lr=1e-3, min_lr=1e-4, b1=0.9, b2=0.99, weight_decay=0.1, clip=1.0, schedule="warmup_cosine",
        warmup="100 steps", warmup_offset=1,
    )  # fmt: skip
    config.optimizer.rules = dict(weight_decay=((r".*(scale|bias)$", 0.0), (".*", 1.0)))
    config.downstream = dict(next_token=dict(batch_size=128))
    return config
