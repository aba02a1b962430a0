r"""English to German captions: Multi30k (Elliott et al. 2016), 29,000 pairs, test_2016_flickr.

    ssl-jax run --config=configs/downstream/multi30k_en_de.py --workdir=runs/multi30k \
        --config.data.train=parallel:train.en.gz,train.de.gz \
        --config.data.test=parallel:test_2016_flickr.en.gz,test_2016_flickr.de.gz

For 10 minutes on one GPU: a small pre-norm model with strong dropout, which Wu et al. 2021 (arXiv:2105.14462, section 4) found
best on this data. Arguments: "prefix" uses one decoder as a prefix language model; "cpu" is a smoke test of minutes on two CPU
cores. Each side can start from another run: --config.task.init.encoder=DIR (masked tokens),
--config.task.init.decoder=DIR (next tokens), both with --config.model.shared_embedding=False and the model settings of
those runs.

Measured so far: "cpu" with all 29,000 pairs, two cores of an Intel Xeon, 10 minutes of processor time, seed 0: BLEU 24.55
with five beams, 23.28 greedy, on the first 200 pairs of test_2016_flickr
(nrefs:1|case:mixed|eff:no|tok:13a|smooth:exp|version:2.6.0).
"""

from ml_collections import ConfigDict

SHAPE = dict(width=256, depth=3, heads=4, mlp_width=1024, init="xavier_uniform", dropout=0.3, norm_eps=1e-5)


def get_config(variant: str = "encoder_decoder") -> ConfigDict:
    if variant not in ("encoder_decoder", "prefix", "cpu"):
        raise ValueError("the variants are encoder_decoder, prefix and cpu")
    config = ConfigDict()
    config.seed = 0
    config.data = dict(train="parallel:train.en.gz,train.de.gz", test="parallel:test_2016_flickr.en.gz,test_2016_flickr.de.gz")
    config.data.update(batch_size=128, max_source_length=48, max_target_length=48)
    config.data.tokenizer = dict(name="bpe", size=8000)  # trained on both languages of the training split
    config.task = dict(name="translation", label_smoothing=0.1)
    config.model = dict(name="encoder_decoder", encoder=SHAPE, shared_embedding=True)
    if variant == "prefix":
        config.model = dict(name="transformer", **(SHAPE | dict(depth=6)))
    config.training = dict(duration="60 epochs", dtype="bfloat16", ema=0.999)
    config.optimizer = dict(
        name="adamw", lr=2e-3, b1=0.9, b2=0.98, eps=1e-9, weight_decay=1e-4, clip=1.0, warmup="8 %", schedule="warmup_cosine",
    )  # fmt: skip
    config.downstream = dict(translation=dict(search=dict(beams=5, length_penalty=1.0), batch_size=250))
    if variant == "cpu":
        config.model = dict(name="encoder_decoder", encoder=SHAPE | dict(width=128, depth=2, mlp_width=512, dropout=0.1))
        config.data.update(batch_size=64, max_source_length=32, max_target_length=32)
        config.data.tokenizer.size = 4000
        config.training.update(duration="3 epochs", dtype="float32", ema=None)
        config.downstream.translation.update(examples=200, batch_size=50)
    return config
