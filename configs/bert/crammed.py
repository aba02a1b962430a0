r"""Cramming (Geiping and Goldstein 2023, arXiv:2212.14034; code, architecture crammed-bert with training bert-o4).

16 pre-norm layers of width 768 with gated GELU (3,072), no biases, scaled sinusoidal positions, norms after the embedding
and at the end, no transform before the output layer; 25 % masked, no next-sentence prediction, length 128, no dropout.
AdamW 1e-3 (0.9, 0.98, eps 1e-12), weight decay 0.01, clip 0.5, batch 8,192, a triangular schedule over one day of one GPU.
The published code grows the batch linearly over the first 60 % of the budget; here it is constant.
Published GLUE: 78.6 (A6000, 24 h), 80.7 (newer code).

    ssl-jax run --config=configs/bert/crammed.py --config.data.train='jsonl:corpus.jsonl' --workdir=runs/crammed

Not run here: it needs one GPU for a day.
"""

from ml_collections import ConfigDict


def get_config() -> ConfigDict:
    config = ConfigDict()
    config.seed = 0
    config.data = dict(
        train="jsonl:corpus.jsonl", holdout=0.001, block=128, batch_size=8192, tokenizer=dict(name="wordpiece", size=32_768)
    )
    config.task = dict(name="masked_token", mask=dict(ratio=0.25))
    config.model = dict(
        name="transformer", width=768, depth=16, heads=12, mlp_width=1536, activation="gelu", gated=True, bias=False,
        qkv_bias=False, positions="sincos", norm_eps=1e-12, embedding_norm=True, final_norm=True, init="normal",
    )  # fmt: skip
    config.training = dict(duration="1440 minutes", dtype="bfloat16", accumulation=64, log_every=20)
    config.optimizer = dict(
        name="adamw", lr=1e-3, b1=0.9, b2=0.98, eps=1e-12, weight_decay=0.01, clip=0.5, schedule="warmup_linear", warmup="50 %"
    )
    config.optimizer.rules = dict(weight_decay=((r".*(scale|bias)$", 0.0), (".*", 1.0)))
    config.checkpoint = dict(every_minutes=30.0)
    config.downstream = dict(masked_token=dict())
    return config
