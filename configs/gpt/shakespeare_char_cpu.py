r"""nanoGPT's character model at the size of two CPU cores.

nanoGPT (github.com/karpathy/nanoGPT), README, "I only have a macbook": config/train_shakespeare_char.py with these
overrides: 4 layers, 4 heads, width 128, no dropout, 12 windows of 64 characters per step, 2,000 steps.

    ssl-jax run --config=configs/gpt/shakespeare_char_cpu.py --config.data.train=text:tinyshakespeare.txt --workdir=runs/char

Text: tinyshakespeare (1,115,394 characters); the last tenth is the test split. Published: 1.88, an estimate from 20
batches. Over the whole split, in windows of 64 that do not overlap: nanoGPT itself 1.898, and 1.909 with seed 0; this
config 1.895 +- 0.008 (seeds 0, 1, 2: 1.886, 1.902, 1.896). The only difference: a moving average of the parameters
(training.ema) is evaluated, which does not affect their training. The last parameters, which nanoGPT evaluates,
give 1.905 +- 0.006 (1.898, 1.910, 1.906; --config.training.ema=None). The whole command takes 67 s on two cores of an Intel
Xeon (85 to 94 s on an AMD EPYC, before each core took its own rows); its steps alone take about as long as those of
transformers' GPT-2 in PyTorch (experiments/throughput/README.md). On a processor with AMX, --config.training.dtype=bfloat16
reaches the same loss, 1.895 +- 0.008 (1.887, 1.903, 1.896), with steps of 18.7 ms, where PyTorch's take 25.8 in float32 and
39.7 in bfloat16 (same table). A final learning rate of 0 instead of 1e-4, with training windows that do not overlap
(data.stride=64), does not help: 1.915 +- 0.005 with the last parameters and the same seeds.

Without --config.data.train it reads the bundled Shakespeare, a larger text with other numbers (`expected` is for
tinyshakespeare).
"""

from ml_collections import ConfigDict


def get_config() -> ConfigDict:
    config = ConfigDict()
    config.seed = 0
    config.data = dict(train="bundled:shakespeare/all", block=64, batch_size=12, holdout=0.1, tokenizer=dict(name="characters"))
    config.task = dict(name="next_token")
    config.model = dict(
        name="transformer", width=128, depth=4, heads=4, bias=False, qkv_bias=False, norm_bias=False, activation="gelu"
    )
    config.training = dict(duration="2000 steps", dtype="float32", log_every=100, ema=0.99)
    config.optimizer = dict(
        name="adamw", lr=1e-3, min_lr=1e-4, b1=0.9, b2=0.99, weight_decay=0.1, clip=1.0, schedule="warmup_cosine",
        warmup="100 steps", warmup_offset=1,
    )  # fmt: skip
    # weight decay on every matrix, including the embeddings
    config.optimizer.rules = dict(weight_decay=((r".*(scale|bias)$", 0.0), (".*", 1.0)))
    config.downstream = dict(next_token=dict())
    config.expected = {"next_token/loss": (1.875, 1.915)}
    return config
