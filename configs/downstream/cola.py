r"""Linguistic acceptability: CoLA (Warstadt et al. 2019), by Matthews correlation; 8,551 and 1,043 sentences, no header.

    ssl-jax run --config=configs/downstream/cola.py --config.data.train=tsv:train.tsv --config.data.test=tsv:dev.tsv \
        --workdir=runs/cola                                                                 # from random initialisation
    ssl-jax finetune --init=runs/bert --config=... --workdir=runs/cola_bert                 # from a masked-token run

Published, Matthews correlation x 100: BERT-base 56.5, no pre-training 0.0 (Geiping & Goldstein 2023).

With --init, `model` must be that of the initial run, whose vocabulary is used. Arguments: "small" (the default,
minutes on two CPU cores), "minilm" (--init=hf:DIR, MiniLM-L6-H384) and "base" (BERT-base; Devlin et al. 2019, appendix A.3).
"""

from ml_collections import ConfigDict

BERT = dict(
    name="transformer", norm_position="post", norm_eps=1e-12, init="normal", embedding_norm=True, final_norm=False,
    token_types=2, context_length=512, dropout=0.1, attention_dropout=0.1,
)  # fmt: skip
SIZES = {
    "small": dict(name="transformer", width=128, depth=4, heads=4, init="normal", dropout=0.1, embedding_norm=True),
    "minilm": BERT | dict(width=384, depth=6, heads=12),
    "base": BERT | dict(width=768, depth=12, heads=12),
}


def get_config(size: str = "small") -> ConfigDict:
    config = ConfigDict()
    config.seed = 0
    config.data = dict(train="tsv:train.tsv", test="tsv:dev.tsv", batch_size=32, max_length=48)
    config.data.columns = dict(text=3, label=1)  # by number: the files have no header
    config.data.tokenizer = dict(name="wordpiece", size=8192)  # trained on the sentences; with --init, that run's own
    config.task = dict(name="text_classification", pooling="mean" if size != "base" else "cls", dropout=0.1)
    config.model = SIZES[size]
    config.training = dict(duration="10 epochs" if size == "small" else "4 epochs", dtype="float32")
    config.optimizer = dict(
        name="adamw", lr=1e-3 if size == "small" else 2e-5, b2=0.98, eps=1e-6, weight_decay=0.01, clip=1.0, warmup="10 %",
        schedule="warmup_linear",
    )  # fmt: skip
    config.downstream = dict(text_classification=dict())
    return config
