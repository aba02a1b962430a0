r"""A small BERT on Shakespeare, for two CPU cores.

The encoder and masking of Devlin et al. 2019 (15 %, 80/10/10, drawn anew each time) without next-sentence prediction, as Liu et
al. 2019 (RoBERTa) found best; pre-norm, as Geiping and Goldstein 2023 (Cramming) for small budgets. WordPiece of 4,096 pieces,
trained on the text.

    ssl-jax run --config=configs/bert/shakespeare_cpu.py --workdir=runs/bert
"""

from ml_collections import ConfigDict


def get_config() -> ConfigDict:
    config = ConfigDict()
    config.seed = 0
    config.data = dict(
        train="bundled:shakespeare/train", test="bundled:shakespeare/test", block=64, batch_size=32, stride=31,
        tokenizer=dict(name="wordpiece", size=4096),
    )  # fmt: skip
    config.task = dict(name="masked_token", mask=dict(ratio=0.15))
    config.model = dict(
        name="transformer", width=128, depth=4, heads=4, embedding_norm=True, head_transform=True, output_bias=True,
        init="normal",
    )  # fmt: skip
    config.training = dict(duration="6000 steps", dtype="float32", log_every=100)
    config.optimizer = dict(
        name="adamw", lr=2e-3, b1=0.9, b2=0.98, weight_decay=0.01, clip=1.0, schedule="warmup_linear", warmup="10 %"
    )
    config.downstream = dict(masked_token=dict())
    return config
