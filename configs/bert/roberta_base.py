r"""RoBERTa-base (Liu et al. 2019; fairseq examples/roberta, config/pretraining/base.yaml).

BERT-base without next-sentence prediction, a new mask each time, sequences of 512 across documents, byte-level BPE
(50,265 tokens with <s>, </s>, <pad>, <mask>); positions begin at 2. Adam 5e-4 (0.9, 0.98, eps 1e-6), weight decay 0.01, no
clipping, warm-up 10,000 steps, linear to 0 at 125,000, batch 2,048, dropout 0.1. GLUE of the published weights: 85.1.

    ssl-jax run --config=configs/bert/roberta_base.py --config.data.train='jsonl:corpus.jsonl' \
        --config.data.tokenizer.path=roberta --workdir=runs/roberta

`roberta` is a folder with tokenizer.json. Not run here: it needs a node with several GPUs.
"""

from ml_collections import ConfigDict


def get_config() -> ConfigDict:
    config = ConfigDict()
    config.seed = 0
    config.data = dict(
        train="jsonl:corpus.jsonl", holdout=0.001, block=512, batch_size=2048, tokenizer=dict(name="file", path="roberta")
    )
    config.task = dict(name="masked_token", mask=dict(ratio=0.15))
    config.model = dict(
        name="transformer", width=768, depth=12, heads=12, context_length=512, position_offset=2, norm_position="post",
        norm_eps=1e-5, embedding_norm=True, final_norm=False, token_types=1, head_transform=True, output_bias=True, dropout=0.1,
        attention_dropout=0.1, init="normal",
    )  # fmt: skip
    config.training = dict(duration="125_000 steps", dtype="bfloat16", accumulation=16, log_every=100)
    config.optimizer = dict(
        name="adamw", lr=5e-4, b1=0.9, b2=0.98, eps=1e-6, weight_decay=0.01, schedule="warmup_linear", warmup="10_000 steps"
    )
    config.optimizer.rules = dict(weight_decay=((r".*(scale|bias)$", 0.0), (".*", 1.0)))
    config.checkpoint = dict(every=5000)
    config.downstream = dict(masked_token=dict())
    return config
