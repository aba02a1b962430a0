"""`ssl-jax embed`: a row of the file is an example of the source, and says which."""

import json

import numpy as np
import pytest
from PIL import Image

import ssl_jax
from ssl_jax import cli
from ssl_jax.interop.convert import exported
from tests import tokenizer_toys as toys
from tests.interop.interop_toys import params_of, task_of, write

TEXTS = ["the cat sat", "", "the dog ran", "the cat sat on the mat " * 10, "a big mat"]


@pytest.fixture
def embed(tmp_path, capsys):
    """(architecture, tokenizer, uri, features) -> the arrays, what was printed, and the model."""

    def run(architecture, tokenizer, uri, features="mean", **config):
        if not (tmp_path / "hf").exists():
            task = task_of(architecture, **({} if tokenizer is None else {"vocabulary": tokenizer.size}))
            _, theirs, tensors = exported(task, params_of(task))
            folder = write(tmp_path / "hf", theirs | config, tensors)
            if tokenizer is not None:
                tokenizer.save(folder)
        capsys.readouterr()
        arguments = [
            f"--workdir=hf:{tmp_path / 'hf'}",
            f"--data={uri}",
            f"--features={features}",
            f"--to={tmp_path / 'out.npz'}",
        ]
        status = cli.main(["embed", *arguments])
        output = capsys.readouterr()
        assert status == 0, output.err
        return np.load(tmp_path / "out.npz"), output.out, ssl_jax.load(f"hf:{tmp_path / 'hf'}")

    return run


def source(tmp_path, kind):
    """A source of TEXTS, and the name of each."""
    if kind == "text":
        (tmp_path / "a.txt").write_text("\n".join(TEXTS) + "\n")
        return f"text:{tmp_path / 'a.txt'}", [f"line {i}" for i in range(1, 6)]
    if kind == "two files":
        for name, texts in (("a", TEXTS[:2]), ("b", TEXTS[2:])):
            (tmp_path / f"{name}.txt").write_text("\r\n".join(texts) + "\r\n")
        files = [f"{tmp_path}/{name}.txt, line {i}" for name, n in (("a", 2), ("b", 3)) for i in range(1, n + 1)]
        return f"text:{tmp_path}/?.txt", files
    if kind == "jsonl":
        (tmp_path / "a.jsonl").write_text("".join(json.dumps({"text": text}) + "\n" for text in TEXTS))
        return f"jsonl:{tmp_path / 'a.jsonl'}", [f"line {i}" for i in range(1, 6)]
    (tmp_path / "a.tsv").write_text("text\tother\n" + "".join(f"{text}\t{i}\n" for i, text in enumerate(TEXTS)))
    return f"tsv:{tmp_path / 'a.tsv'}", [f"line {i}" for i in range(2, 7)]


@pytest.mark.parametrize(
    ("kind", "architecture", "tokenizer"),
    [
        ("text", "BertForMaskedLM", "bert"),
        ("two files", "LlamaForCausalLM", "metaspace"),
        ("jsonl", "RobertaForMaskedLM", "roberta"),
        ("tsv", "BertForMaskedLM", "bert"),
    ],
)
def test_one_row_a_line_or_record(embed, tmp_path, kind, architecture, tokenizer):
    """Blank ones too, and one too long is still one; each is what `features` gives of it alone."""
    uri, names = source(tmp_path, kind)
    found, printed, model = embed(architecture, toys.KINDS[tokenizer](), uri)
    assert found["index"].tolist() == [0, 1, 2, 3, 4] and found["name"].tolist() == names
    assert found["skipped"].tolist() == [] and "skipped" not in printed
    np.testing.assert_allclose(found["mean"], model.features({"text": TEXTS})["mean"], rtol=1e-3, atol=1e-4)


def test_texts_that_a_model_cannot_read_are_named(embed, tmp_path):
    """An empty text, where the tokenizer has no token that begins one."""
    uri, _ = source(tmp_path, "text")
    found, printed, _ = embed("LlamaForCausalLM", toys.byte_level(), uri, bos_token_id=None, eos_token_id=None)
    assert found["index"].tolist() == [0, 2, 3, 4] and found["skipped"].tolist() == ["line 2"]
    assert "skipped 1 of 5 examples: line 2" in printed and len(found["mean"]) == 4


def test_features_of_every_token_have_one_shape(embed, tmp_path):
    found, _, model = embed("BertForMaskedLM", toys.bert(), source(tmp_path, "text")[0], "tokens,block00/cls")
    assert found["tokens"].shape == (5, 9, 12) and found["block00.cls"].shape == (5, 12)
    np.testing.assert_allclose(found["tokens"][3], model.features({"text": TEXTS[3]})["tokens"][0], rtol=1e-3, atol=1e-4)


def test_images_are_named_by_their_files(embed, tmp_path):
    (tmp_path / "photos").mkdir()
    images = np.random.default_rng(0).integers(0, 256, (3, 6, 8, 3)).astype(np.uint8)
    for name, image in zip("cab", images, strict=True):
        Image.fromarray(image).save(tmp_path / "photos" / f"{name}.png")
    found, _, model = embed("ViTForImageClassification", None, f"folder:{tmp_path / 'photos'}", "pooled")
    assert [name.rsplit("/", 1)[-1] for name in found["name"]] == ["a.png", "b.png", "c.png"]
    assert found["index"].tolist() == [0, 1, 2]
    wanted = model.features({"image": images[[1, 2, 0]]})["pooled"]
    np.testing.assert_allclose(found["pooled"], wanted, rtol=1e-3, atol=1e-4)


def test_images_without_a_label_have_a_row_too(embed, tmp_path):
    for name in "abc":
        Image.new("RGB", (8, 6), (40, 40, 200)).save(tmp_path / f"{name}.png")
    (tmp_path / "a.csv").write_text("path,label\na.png,dog\nb.png,\nc.png,cat\n")
    found, _, _ = embed("ViTForImageClassification", None, f"csv:{tmp_path / 'a.csv'}", "pooled")
    assert found["label"].tolist() == [1, -1, 0] and found["classes"].tolist() == ["cat", "dog"]


def test_a_prompt_with_half_a_character_is_read(embed, tmp_path, capsys):
    """What a shell hands on of bytes that are not UTF-8."""
    _, _, _ = embed("LlamaForCausalLM", toys.metaspace(), source(tmp_path, "jsonl")[0])
    assert cli.main(["generate", f"--workdir=hf:{tmp_path / 'hf'}", "--prompt=the \udcff cat", "--max_tokens=1"]) == 0
    assert "\ufffd" in capsys.readouterr().out
