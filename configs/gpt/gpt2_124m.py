r"""GPT-2 124M: nanoGPT's reproduction (train.py, config/train_gpt2.py), or llm.c's with the argument `fineweb`.

12 layers, 12 heads, width 768, context 1,024, no biases, no dropout, tied embeddings padded to 50,304 rows, N(0, 0.02) and
0.02 / sqrt(24) at the ends of residual branches (Radford et al. 2019, section 2.3).

nanoGPT, OpenWebText (9,035,582,198 training tokens): 491,520 tokens per step, 600,000 steps, AdamW 6e-4 -> 6e-5, betas 0.9 and
0.95, weight decay 0.1 on every matrix, clip 1.0, warm-up 2,000 steps. Published: validation loss about 2.85; four days on
8 A100-40GB. OpenAI's own weights score 3.12 on the same text.
llm.c, FineWeb-10B: 524,288 tokens per step, 18,865 steps, warm-up 700, cosine to 0. Published: 3.29 (May 2024).

    ssl-jax run --config=configs/gpt/gpt2_124m.py --config.data.train='jsonl:openwebtext.jsonl' \
        --config.data.tokenizer.path=gpt2 --workdir=runs/gpt2 --config.training.accumulation=5

`gpt2` is a folder with encoder.json and vocab.bpe. Not run here: it needs a node with several GPUs.
"""

from ml_collections import ConfigDict


def get_config(arg: str = "openwebtext") -> ConfigDict:
    fineweb = arg == "fineweb"
    config = ConfigDict()
    config.seed = 1337
    config.data = dict(
        train="jsonl:train.jsonl", holdout=0.0005, block=1024, batch_size=512 if fineweb else 480,
        tokenizer=dict(name="gpt2", path="gpt2"),
    )  # fmt: skip
    config.task = dict(name="next_token")
    config.model = dict(
        name="transformer", width=768, depth=12, heads=12, bias=False, qkv_bias=False, norm_bias=False, activation="gelu",
        vocabulary_multiple=64, remat="none",
    )  # fmt: skip
    config.training = dict(
        duration="18865 steps" if fineweb else "600_000 steps", dtype="bfloat16", accumulation=8, log_every=10,
        evaluate_every="1000 steps",
    )  # fmt: skip
    config.optimizer = dict(
        name="adamw", lr=6e-4, final_fraction=0.0 if fineweb else 0.1, b1=0.9, b2=0.95, weight_decay=0.1, clip=1.0,
        schedule="warmup_cosine", warmup="700 steps" if fineweb else "2000 steps", warmup_offset=1,
    )  # fmt: skip
    config.optimizer.rules = dict(weight_decay=((r".*(scale|bias)$", 0.0), (".*", 1.0)))
    config.checkpoint = dict(every=1000)
    config.downstream = dict(next_token=dict(batch_size=32))
    return config
