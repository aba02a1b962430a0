"""Imported weights in every command that uses a model; nothing of them is changed by it."""

import json
import pathlib

import numpy as np
import pytest

import ssl_jax
from ssl_jax import cli
from ssl_jax.data.text.tokenizer_files import byte_level_bpe, wordpiece
from ssl_jax.interop.convert import exported
from tests.interop.interop_toys import params_of, task_of, write

WORDS = ["[PAD]", "[CLS]", "[SEP]", "[MASK]", "[UNK]", "the", "film", "##s", "was", "good", "bad", "a", "very", ".", "it"]
WORDS += [f"w{i}" for i in range(8)]
LETTERS = {chr(i): i - 97 for i in range(97, 119)} | {"<|endoftext|>": 22}


@pytest.fixture(params=["work directory", "in memory"])
def imported(request, tmp_path):
    """architecture, tokenizer -> what the commands take as --workdir, and its files' bytes."""

    def make(architecture, tokenizer=None):
        task = task_of(architecture)
        _, theirs, tensors = exported(task, params_of(task))
        folder = write(tmp_path / "hf", theirs, tensors)
        if tokenizer is not None:
            tokenizer.save(folder)
            (folder / "tokenizer_config.json").write_text(json.dumps({"model_max_length": 9, "kept": "ä"}, ensure_ascii=False))
        if request.param == "in memory":
            return f"hf:{folder}"
        assert cli.main(["convert", f"--from=hf:{folder}", f"--to={tmp_path / 'run'}"]) == 0
        return str(tmp_path / "run")

    return make


def tokenizers_of(workdir):
    folder = workdir.removeprefix("hf:")
    return {file.name: file.read_bytes() for file in sorted(pathlib.Path(folder).rglob("tokenizer*.json"))}


def test_sentences_of_a_file_one_vector_a_line(imported, tmp_path, monkeypatch):
    """`embed` reads them with the model's own tokenizer, and gives what `features` gives."""
    monkeypatch.chdir(tmp_path)
    workdir = imported("BertForMaskedLM", wordpiece({word: i for i, word in enumerate(WORDS)}))
    before = tokenizers_of(workdir)
    lines = ["the film was good .", "the films was very bad", "a film"]
    (tmp_path / "lines.txt").write_text("\n".join(lines) + "\n")
    command = ["embed", f"--workdir={workdir}", "--data=text:lines.txt", "--features=mean,cls", "--to=out.npz"]
    assert cli.main(command) == 0
    found, wanted = np.load("out.npz"), ssl_jax.load(workdir).features({"text": lines})
    for name in ("mean", "cls"):
        np.testing.assert_allclose(found[name], wanted[name], rtol=1e-4, atol=1e-5)
    assert tokenizers_of(workdir) == before
    assert not [path.name for path in tmp_path.iterdir() if path.name.startswith("hf:")]


def test_words_for_a_mask(imported, capsys):
    workdir = imported("BertForMaskedLM", wordpiece({word: i for i, word in enumerate(WORDS)}))
    assert cli.main(["fill-mask", f"--workdir={workdir}", "--text=the [MASK] was good", "--top=2"]) == 0
    assert len(capsys.readouterr().out.strip().splitlines()[-1].split()) == 4  # two words, two probabilities


def test_a_text_goes_on(imported, capsys):
    workdir = imported("LlamaForCausalLM", byte_level_bpe(LETTERS, [], ["<|endoftext|>"]))
    capsys.readouterr()
    for prompt in ("abba", ""):
        assert cli.main(["generate", f"--workdir={workdir}", f"--prompt={prompt}", "--max_tokens=4", "--num_samples=2"]) == 0
        samples = capsys.readouterr().out.removesuffix("\n").split("\n\n---\n\n")
        assert len(samples) == 2 and all(sample.startswith(prompt) for sample in samples)
    assert cli.main(["fill-mask", f"--workdir={workdir}", "--text=[MASK]"]) == 2
    assert "is a run of the task next_token" in capsys.readouterr().err


def test_features_of_images_and_of_pairs(imported, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    images = np.random.default_rng(0).integers(0, 256, (5, 6, 8, 3)).astype(np.uint8)
    np.savez("images.npz", image=images, label=np.arange(5) % 2)
    workdir = imported("ViTForImageClassification")
    command = ["embed", f"--workdir={workdir}", "--data=npz:images.npz", "--features=pooled", "--to=out.npz"]
    assert cli.main(command) == 0
    wanted = ssl_jax.load(workdir).features({"image": images})["pooled"]
    np.testing.assert_allclose(np.load("out.npz")["pooled"], wanted, rtol=1e-4, atol=1e-5)


def test_evaluation_needs_data_and_takes_them_from_a_config(tmp_path, capsys):
    task = task_of("ViTForImageClassification")
    _, theirs, tensors = exported(task, params_of(task))
    folder, run = write(tmp_path / "hf", theirs, tensors), tmp_path / "run"
    assert cli.main(["convert", f"--from=hf:{folder}", f"--to={run}"]) == 0
    images = np.random.default_rng(0).integers(0, 256, (40, 6, 8, 3)).astype(np.uint8)
    np.savez(tmp_path / "images.npz", image=images, label=np.arange(40) % 2)
    (tmp_path / "config.py").write_text(f"""
from ml_collections import ConfigDict
def get_config():
    return ConfigDict(dict(
        data=dict(train="npz:{tmp_path}/images.npz", batch_size=8), downstream=dict(knn=dict(k=3)),
        task=dict(name="classification"), model=dict(name="vit"), training=dict(duration="1 steps"), optimizer=dict(lr=1e-3),
    ))
""")
    assert cli.main(["evaluate", f"--workdir={run}"]) == 2
    assert "imported weights have no data" in capsys.readouterr().err
    assert cli.main(["evaluate", f"--workdir={run}", f"--config={tmp_path / 'config.py'}"]) == 0
    assert 0 <= json.loads((run / "results.json").read_text())["knn/accuracy"] <= 1


def test_files_of_a_tokenizer_come_back_as_they_were(tmp_path):
    task = task_of("BertForMaskedLM")
    _, theirs, tensors = exported(task, params_of(task))
    folder = write(tmp_path / "hf", theirs, tensors)
    tokenizer = wordpiece({word: i for i, word in enumerate(WORDS)})
    tokenizer.inner.enable_truncation(5)
    tokenizer.save(folder)
    (folder / "tokenizer_config.json").write_text('{"model_max_length":9,   "kept": "ä"}')
    before = tokenizers_of(str(folder))
    assert cli.main(["convert", f"--from=hf:{folder}", f"--to={tmp_path / 'run'}"]) == 0
    assert cli.main(["convert", f"--from={tmp_path / 'run'}", f"--to=hf:{tmp_path / 'again'}"]) == 0
    assert tokenizers_of(str(tmp_path / "again")) == before and len(before) == 2


def test_the_text_of_a_tokenizer_that_stands_in_is_not_handed_on(tmp_path):
    task = task_of("GPT2LMHeadModel")
    _, theirs, tensors = exported(task, params_of(task))
    folder = write(tmp_path / "hf", theirs | {"bos_token_id": 7, "eos_token_id": [3, 4]}, tensors)
    assert cli.main(["convert", f"--from=hf:{folder}", f"--to={tmp_path / 'run'}"]) == 0
    assert cli.main(["convert", f"--from={tmp_path / 'run'}", f"--to=hf:{tmp_path / 'again'}"]) == 0
    assert sorted(path.name for path in (tmp_path / "again").iterdir()) == ["config.json", "model.safetensors"]
    config = json.loads((tmp_path / "again" / "config.json").read_text())
    assert config["bos_token_id"] == 7 and config["eos_token_id"] == [3, 4]
