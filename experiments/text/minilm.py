r"""The value of published sentence-embedding weights: MiniLM-L6-H384 (sentence-transformers/all-MiniLM-L6-v2).

Linear probes of its mean-pooled sentence embeddings on SST-2 (a balanced twentieth of the labels, the dev set) and on TREC,
compared with the same network at random, a bag of tokens and the majority class. Then question answering in the SQuAD format,
fine-tuned on the first articles of a file and tested on the last ones, from these weights and from random initialisation.

    python experiments/text/minilm.py --weights=DIR --trec_train=TREC.train --trec_test=TREC.test \
        --sst2_train=train.tsv --sst2_test=dev.tsv --squad=xquad_en.json --to=runs/minilm

`--part` runs one part (probe_trec, probe_sst2, squad); a stopped experiment resumes with its next run. Results: minilm.json.
"""

import argparse
import pathlib
import sys

sys.path[:0] = [str(pathlib.Path(__file__).parents[2]), str(pathlib.Path(__file__).parent)]

from common import finetuned, save, show, statistics  # noqa: E402
from ml_collections import ConfigDict  # noqa: E402

MODEL = dict(
    name="transformer", width=384, depth=6, heads=12, norm_position="post", norm_eps=1e-12, init="normal", embedding_norm=True,
    final_norm=False, token_types=2, context_length=512, dropout=0.1, attention_dropout=0.1,
)  # fmt: skip


def probed(data: dict, tokenizer: dict, init: str | None) -> dict[str, float]:
    """Return the results of the linear probe on "mean" embeddings and of its baselines: a bag of tokens and the majority."""
    from ssl_jax import runs
    from ssl_jax.downstream.evaluators.bag_of_tokens import bag_of_tokens
    from ssl_jax.downstream.evaluators.baselines import majority
    from ssl_jax.downstream.supervised.text_classification import text_metrics
    from ssl_jax.reports.records import flat
    from ssl_jax.training.state import init_params

    config = ConfigDict(dict(
        seed=0, task=dict(name="text_classification", pooling="mean", init=init), model=MODEL,
        data=dict(batch_size=32, tokenizer=tokenizer, **data), training=dict(duration="1 steps"), optimizer=dict(lr=1e-4),
        downstream=dict(linear_probe=dict(representation="mean", baselines=False)),
    ))  # fmt: skip
    parts = runs.prepare(config)
    train, test = (parts.dataset(split, False) for split in ("train", "test"))
    params = init_params(parts.task, 0, runs.panel_batch(test))
    params = params if parts.initial is None else parts.initial(params)
    found = flat(parts.evaluation.measure("linear_probe", {"ema": parts.evaluation.encoder(params)}))
    if init is not None:
        guess = bag_of_tokens(train, test, len(train.info.classes))
        found["bag_of_tokens/accuracy"] = text_metrics(guess, test.labels(), len(train.info.classes))["accuracy"]
        found["majority/accuracy"] = majority(train.labels(), test.labels()).value
    return found


def answering(squad: str, tokenizer: dict, epochs: int) -> dict:
    return dict(
        task=dict(name="question_answering"), model=MODEL,
        data=dict(train=f"squad:{squad}[:40%]", test=f"squad:{squad}[80%:]", batch_size=16, max_length=160, doc_stride=64,
                  max_query_length=32, tokenizer=tokenizer),
        training=dict(duration=f"{epochs} epochs", log_every=20),
        optimizer=dict(name="adamw", lr=2e-4, b2=0.98, eps=1e-6, weight_decay=0.01, clip=1.0, warmup="10 %",
                       schedule="warmup_linear"),
        downstream=dict(question_answering=dict()),
    )  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    for name in ("weights", "trec_train", "trec_test", "sst2_train", "sst2_test", "squad", "to"):
        parser.add_argument(f"--{name}", required=True)
    parser.add_argument("--sst2_test_column", default="content", help="the test file's column of sentences")
    parser.add_argument("--part", choices=("all", "probe_trec", "probe_sst2", "squad"), default="all")
    parser.add_argument("--seeds", default="0,1,2")
    parser.add_argument("--epochs", type=int, default=3, help="of squad")
    options = parser.parse_args()
    init, file = f"hf:{options.weights}", f"{options.to}/minilm.json"
    tokenizer = dict(name="file", path=f"{options.weights}/tokenizer.json")
    wanted = lambda name: options.part in ("all", name)
    trec = dict(train=f"trec:{options.trec_train}", test=f"trec:{options.trec_test}", max_length=32)
    sst2 = dict(train=f"tsv:{options.sst2_train}", test=f"tsv:{options.sst2_test}", max_length=48, fraction=0.05,
                columns=dict(text="sentence"), test_columns=dict(text=options.sst2_test_column))  # fmt: skip
    for name, data in (("probe_trec", trec), ("probe_sst2", sst2)):
        if wanted(name):
            found = probed(data, tokenizer, init)
            found["random_encoder/accuracy"] = probed(data, tokenizer, None)["linear_probe/accuracy"]
            save(file, name, found)
            print(name, {k: round(v, 4) for k, v in found.items() if k.endswith("accuracy")}, flush=True)
    if wanted("squad"):
        config = answering(options.squad, tokenizer, options.epochs)
        seeds, arms = [int(seed) for seed in options.seeds.split(",")], {}
        for arm, start in (("MiniLM", init), ("from scratch", None)):
            key = f"squad/{arm}/{options.epochs} epochs"
            arms[arm] = statistics(finetuned(config, seeds, start, f"{options.to}/runs.json", key))
        save(file, "squad", arms)
        show("squad", arms, "question_answering/f1")


if __name__ == "__main__":
    main()
