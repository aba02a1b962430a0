"""The smallest config of every registered task, with every option that relates the examples of a batch.

A new task is tested for invariance (tests/training/test_invariance.py) once it has an entry here; that test fails without one.
"""

import json
import pathlib

import numpy as np
from PIL import Image

VIT = dict(name="vit", patch_size=4, width=16, depth=1, heads=2)
TEXT = dict(name="transformer", width=16, depth=1, heads=2)
BYTES = dict(name="bytes", special_tokens=("[PAD]", "[CLS]", "[SEP]", "[MASK]", "[BOS]", "[EOS]", "<|endoftext|>"))
WORDS = "the quick brown fox jumps over a lazy dog while seven cats sleep near old stone walls".split()


def write_data(root: pathlib.Path, batch: int = 16) -> None:
    """Write the examples' data below `root`: images, captioned images, documents, sentences, translations, questions."""
    random = np.random.default_rng(0)
    images = random.integers(0, 256, (32, 8, 8, 1), np.uint8)
    np.savez(root / "images.npz", image=images, label=(np.arange(32) % 4).astype(np.int32))
    sentence = lambda: " ".join(random.choice(WORDS, random.integers(3, 9))) + "."
    lines = ["image,caption"]
    for i in range(32):
        Image.fromarray(images[i, ..., 0]).save(root / f"{i}.png")
        lines.append(f"{i}.png,{sentence() if i % 8 else 'the same words'}")
    (root / "pairs.csv").write_text("\n".join(lines) + "\n")
    (root / "text.txt").write_text("\n\n".join("\n".join(sentence() for _ in range(random.integers(2, 6))) for _ in range(60)))
    (root / "labelled.tsv").write_text("text\tlabel\n" + "".join(f"{sentence()}\t{'xyz'[i % 3]}\n" for i in range(32)))
    (root / "parallel.tsv").write_text("source\ttarget\n" + "".join(f"{sentence()}\t{sentence()}\n" for i in range(32)))
    questions = []
    for i in range(24):
        context = sentence()
        answer = {"answer_start": 0, "text": context.split()[0]}
        questions.append({"context": context, "qas": [{"id": str(i), "question": "who is it", "answers": [answer]}]})
    (root / "squad.json").write_text(json.dumps({"data": [{"title": "t", "paragraphs": questions}]}))


def _images(root, task, **model):
    return dict(data=dict(train=f"npz:{root}/images.npz", test=f"npz:{root}/images.npz", normalize=None), task=task,
                model=VIT | model)  # fmt: skip


def _text(uri, task, data=None, **model):
    return dict(data=dict(train=uri, test=uri, tokenizer=BYTES) | (data or {}), task=task, model=TEXT | model)


def _masked_image(root):
    small = dict(name="masked_image", decoder=dict(width=8, depth=1, heads=2))
    yield "", _images(root, small)
    yield "normalized", _images(root, small | dict(target="normalized_pixels", loss_on="all"))


def _classification(root):
    task = dict(name="classification", head_std=0.5)
    yield "", _images(root, task, drop_path=0.2, depth=2)
    yield "mix", _images(root, task | dict(mix=dict(mixup=0.8, cutmix=1.0, smoothing=0.1)))
    yield "batch_norm", _images(root, task | dict(pooling="cls", head_norm="batch"))
    both = task | dict(head_norm="batch", mix=dict(mixup=0.8, cutmix=1.0, smoothing=0.1))
    yield "batch_norm_and_mix", _images(root, both)


def _next_token(root):
    packed = dict(block=24, packing="documents", documents="blank_line", restart_positions=True)
    yield "", _text(f"text:{root}/text.txt", dict(name="next_token", z_loss=1e-3), packed, dropout=0.1)


def _masked_token(root):
    uri = f"text:{root}/text.txt"
    yield "", _text(uri, dict(name="masked_token"), dict(block=48, packing="documents", documents="blank_line"), dropout=0.1)
    pairs = dict(block=64, packing="pairs", documents="blank_line")
    bert = dict(token_types=2, pooler=True)
    yield "next_sentence", _text(uri, dict(name="masked_token", next_sentence=True), pairs, **bert)


def _image_text(root):
    data = dict(train=f"csv:{root}/pairs.csv", test=f"csv:{root}/pairs.csv", image_size=8, context_length=12,
                normalize="half", tokenizer=dict(name="wordpiece", size=80, min_frequency=1))  # fmt: skip
    tower = dict(width=16, depth=1, heads=2)
    model = dict(name="dual_encoder", dim=16, image=dict(patch_size=4, pooling="mean", class_token=False, **tower),
                 text=dict(causal=False, pooling="mean", mask_padding=True, **tower))  # fmt: skip
    yield "infonce", dict(data=data, task=dict(name="image_text", same_text="ignore", logit_chunks=2), model=model)
    sigmoid = dict(name="image_text", loss="sigmoid", max_scale=None, mask=dict(ratio=0.5))
    yield "sigmoid", dict(data=data, task=sigmoid, model=model)


def _text_classification(root):
    task = dict(name="text_classification", label_smoothing=0.1)
    yield "", _text(f"tsv:{root}/labelled.tsv", task, dict(max_length=24))


def _question_answering(root):
    data = dict(max_length=64, doc_stride=16, max_query_length=12)
    yield "", _text(f"squad:{root}/squad.json", dict(name="question_answering"), data)


def _translation(root):
    data = dict(max_source_length=24, max_target_length=24)
    small = dict(width=16, depth=1, heads=2)
    model = dict(name="encoder_decoder", encoder=small, decoder=small)
    yield "", _text(f"tsv:{root}/parallel.tsv", dict(name="translation", label_smoothing=0.1), data) | dict(model=model)


TEACHER = dict(schedules=dict(ema=dict(start=0.9, end=1.0)))
FLIP = dict(flip=True)


def _ijepa(root):
    mask = dict(min_keep=8, kept=1.0)  # half of the examples have too small a context, and count nothing
    task = dict(name="ijepa", mask=mask, predictor=dict(width=8, depth=1, heads=2))
    yield "", _images(root, task, patch_size=2, dropout=0.1) | TEACHER


def _data2vec_image(root):
    task = dict(name="data2vec_image", targets=dict(top_blocks=2, head_layers=2))
    yield "", _images(root, task, patch_size=2, depth=2) | TEACHER


def _data2vec_text(root):
    task = dict(name="data2vec_text", mask=dict(ratio=0.3), targets=dict(top_blocks=1))
    config = _text(f"text:{root}/text.txt", task, dict(block=48, packing="documents", documents="blank_line"), dropout=0.1)
    yield "", config | TEACHER


def _self_distillation(root):
    small = dict(name="self_distillation", prototypes=8, hidden=8, bottleneck=4)
    views = dict(globals=dict(count=2, augment=FLIP))
    patches = dict(patches=dict(prob=0.8, ratio=(0.2, 0.6), shared_head=False))
    for option, task, more in (
        ("centre", patches, dict(locals=dict(count=2, image_size=4, augment=FLIP))),
        ("sinkhorn", dict(centring="sinkhorn"), {}),
    ):
        config = _images(root, small | task, patch_size=2) | TEACHER
        yield option, config | dict(data=config["data"] | dict(views=views | more))


def _joint_embedding(root):
    for option, task in {"nt_xent": dict(logit_chunks=2), "vicreg": dict(loss="vicreg", outputs=24)}.items():
        config = _images(root, dict(name="joint_embedding", hidden=(16,), outputs=8) | task)
        yield option, config | dict(data=config["data"] | dict(views=dict(pair=dict(count=2, augment=FLIP))))


EXAMPLES = {
    "masked_image": _masked_image,
    "next_token": _next_token,
    "masked_token": _masked_token,
    "ijepa": _ijepa,
    "data2vec_image": _data2vec_image,
    "data2vec_text": _data2vec_text,
    "self_distillation": _self_distillation,
    "joint_embedding": _joint_embedding,
    "image_text": _image_text,
    "classification": _classification,
    "text_classification": _text_classification,
    "question_answering": _question_answering,
    "translation": _translation,
}
WITHOUT_LOSS = ("image_encoder",)  # imported weights that no loss trains


def config_of(task: str, root: pathlib.Path) -> dict[str, dict]:
    """Return the configs of a task by the name of the option they are there for."""
    common = dict(seed=0, training=dict(duration="10 steps"), optimizer=dict(lr=1e-2))
    return {
        option: {**common, **config, "data": {**config["data"], "batch_size": 16}}
        for option, config in EXAMPLES[task](root)
    }  # fmt: skip
