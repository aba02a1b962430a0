r"""A small BERT on WikiText-2's text, for minutes on one GPU; the argument "cpu" is a smoke test of minutes on a CPU.

Like shakespeare_cpu.py, with a wider network and 8,192 WordPieces trained on the text. Blank lines separate documents; with
--config.data.packing=documents, no sequence crosses one.

    ssl-jax run --config=configs/bert/wikitext2.py --workdir=runs/wikitext2 \
        --config.data.train=text:wiki.train.txt --config.data.test=text:wiki.test.txt

Measured so far: wikitext2.py:cpu with WikiText-2's validation text (1.1 MB) as the training data and its test text as the
test, two cores of an Intel Xeon, 72 s in all, seed 0: on the hidden tokens, loss 5.393 (token frequencies alone: 6.282),
accuracy 0.240 (the most frequent token: 0.046).
"""

from ml_collections import ConfigDict


def get_config(variant: str = "gpu") -> ConfigDict:
    if variant not in ("gpu", "cpu"):
        raise ValueError("the variants are gpu and cpu")
    config = ConfigDict()
    config.seed = 0
    config.data = dict(
        train="text:wiki.train.txt", block=128, batch_size=64, stride=63, documents="blank_line",
        tokenizer=dict(name="wordpiece", size=8192),
    )  # fmt: skip
    config.task = dict(name="masked_token", mask=dict(ratio=0.15))
    config.model = dict(
        name="transformer", width=256, depth=6, heads=4, embedding_norm=True, head_transform=True, output_bias=True,
        init="normal", dropout=0.1,
    )  # fmt: skip
    config.training = dict(duration="20_000 steps", dtype="bfloat16", log_every=100)
    config.optimizer = dict(
        name="adamw", lr=1e-3, b1=0.9, b2=0.98, eps=1e-6, weight_decay=0.01, clip=1.0, schedule="warmup_linear", warmup="10 %"
    )
    config.downstream = dict(masked_token=dict())
    if variant == "cpu":
        config.data.update(block=64, batch_size=32, stride=31)
        config.data.tokenizer.size = 4096
        config.model.update(width=128, depth=4, dropout=0.0)
        config.training.update(duration="400 steps", dtype="float32")
        config.optimizer = dict(
            name="muon", lr=4e-3, matrix_lr=0.02, b1=0.9, b2=0.95, momentum=0.95, schedule="warmup_stable_decay",
            warmup="50 steps", cooldown="70 %",
        )  # fmt: skip
    return config
