r"""ModernBERT-base (Warner et al. 2024, arXiv:2412.13663, tables 3 and 4).

22 pre-norm layers of width 768 with gated GELU (1,152 wide on either side), no biases, rotary positions (160,000 in global
layers, 10,000 in local ones), attention to 64 tokens on either side except in every third layer, no norm before the first
attention; 30 % masked, no next-sentence prediction, length 1,024. Published:
StableAdamW 8e-4 (0.9, 0.98, eps 1e-6), weight decay 1e-5 decoupled from the learning rate, warm-up over 3 G tokens, constant,
then 1 - sqrt to 0 over the last 50 G, batch 4,608 (from 768 over the first 50 G tokens), 1.719 T tokens.

Differences: AdamW with clipping at 1.0 instead of StableAdamW, a constant batch, and padded sequences of one document or a
part of it, where the published code packs several.

    ssl-jax run --config=configs/bert/modernbert_base.py --config.data.train='jsonl:corpus.jsonl' \
        --config.data.tokenizer.path=modernbert --workdir=runs/modernbert

Not run here: it needs a cluster.
"""

from ml_collections import ConfigDict


def get_config() -> ConfigDict:
    config = ConfigDict()
    config.seed = 0
    config.data = dict(
        train="jsonl:corpus.jsonl", holdout=0.001, block=1024, batch_size=4608, packing="documents",
        tokenizer=dict(name="file", path="modernbert"),
    )  # fmt: skip
    config.task = dict(name="masked_token", mask=dict(ratio=0.3))
    config.model = dict(
        name="transformer", width=768, depth=22, heads=12, mlp_width=1152, activation="gelu", gated=True, bias=False,
        qkv_bias=False, norm_bias=False, norm_eps=1e-5, positions="rope", rope_theta=160_000.0, local_rope_theta=10_000.0,
        window=64, global_every=3, first_attention_norm=False, embedding_norm=True, head_transform=True, output_bias=True,
        vocabulary_multiple=64, init="normal", remat="dots",
    )  # fmt: skip
    config.training = dict(duration="1719e9 tokens", dtype="bfloat16", accumulation=48, log_every=20)
    config.optimizer = dict(
        name="adamw", lr=8e-4, b1=0.9, b2=0.98, eps=1e-6, weight_decay=0.0125, clip=1.0, schedule="warmup_stable_decay",
        warmup="3e9 tokens", cooldown="50e9 tokens", cooldown_shape="sqrt",
    )  # fmt: skip
    config.optimizer.rules = dict(weight_decay=((r".*(scale|bias)$", 0.0), (".*", 1.0)))
    config.checkpoint = dict(every=1000)
    config.downstream = dict(masked_token=dict())
    return config
