"""What a model directory may hold: shards, pickles, files of earlier saves, quantised weights, tokenizers of older layouts."""

import json

import ml_dtypes
import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

import ssl_jax
from ssl_jax import cli
from ssl_jax.data.text.tokenizers import Tokenizer
from ssl_jax.errors import UserError
from ssl_jax.interop.convert import exported, load_pretrained
from ssl_jax.training.rules import flatten
from tests import tokenizer_toys as toys
from tests.interop.interop_toys import params_of, task_of, write


def directory(tmp_path, architecture, tokenizer=None, **config):
    """A model directory with room for as many tokens as the tokenizer needs; its task's parameters."""
    task = task_of(architecture, **({} if tokenizer is None else {"vocabulary": tokenizer.size}))
    params = params_of(task)
    _, theirs, tensors = exported(task, params)
    folder = write(tmp_path / "hf", theirs | config, tensors)
    if tokenizer is not None:
        tokenizer.save(folder)
    return folder, params


def same(params, folder):
    found, expected = flatten(load_pretrained(folder)[1]), flatten(params)
    return set(found) == set(expected) and all(np.array_equal(found[name], expected[name]) for name in found)


# Weights --------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("parts", [1, 2, 3])
def test_pickles_in_several_files(tmp_path, parts):
    torch = pytest.importorskip("torch")
    folder, params = directory(tmp_path, "LlamaForCausalLM")
    tensors = load_file(folder / "model.safetensors")
    (folder / "model.safetensors").unlink()
    names, places = sorted(tensors), {}
    for part in range(parts):
        file = f"pytorch_model-{part + 1:05d}-of-{parts:05d}.bin"
        held = names[part::parts]
        torch.save({name: torch.from_numpy(tensors[name]) for name in held}, folder / file)
        places |= dict.fromkeys(held, file)
    (folder / "pytorch_model.bin.index.json").write_text(json.dumps({"weight_map": places}))
    assert same(params, folder)
    (folder / file).unlink()
    with pytest.raises(UserError, match=f"{file}: there is no such file"):
        load_pretrained(folder)


@pytest.mark.parametrize("leftover", ["model.safetensors.index.json", "pytorch_model.bin.index.json"])
@pytest.mark.parametrize("shards", [True, False])
def test_an_index_of_an_earlier_save_is_left_alone(tmp_path, leftover, shards):
    """Whether its files are still there or not: one whole file counts first, as in transformers."""
    folder, params = directory(tmp_path, "LlamaForCausalLM")
    tensors = load_file(folder / "model.safetensors")
    if shards:
        save_file({name: np.zeros_like(value) for name, value in tensors.items()}, folder / "old.safetensors")
    (folder / leftover).write_text(json.dumps({"weight_map": dict.fromkeys(tensors, "old.safetensors")}))
    assert same(params, folder)


@pytest.mark.parametrize("dtype", ["float8_e4m3fn", "float8_e5m2"])
def test_quantised_tensors_are_refused(tmp_path, dtype):
    """Numbers without the scales that belong to them."""
    folder, _ = directory(tmp_path, "LlamaForCausalLM")
    tensors = load_file(folder / "model.safetensors")
    name = next(name for name in tensors if "proj" in name)
    save_file(tensors | {name: tensors[name].astype(getattr(ml_dtypes, dtype))}, folder / "model.safetensors")
    with pytest.raises(UserError, match=rf"{name} is stored as F8_E\dM\d; quantised weights are not supported"):
        load_pretrained(folder)


def test_quantised_pickles_are_refused(tmp_path):
    torch = pytest.importorskip("torch")
    folder, _ = directory(tmp_path, "LlamaForCausalLM")
    tensors = {name: torch.from_numpy(value) for name, value in load_file(folder / "model.safetensors").items()}
    (folder / "model.safetensors").unlink()
    name = next(name for name in tensors if "proj" in name)
    torch.save(tensors | {name: tensors[name].to(torch.float8_e4m3fn)}, folder / "pytorch_model.bin")
    with pytest.raises(UserError, match=f"{name} is stored as float8_e4m3fn; quantised weights are not supported"):
        load_pretrained(folder)


@pytest.mark.parametrize("method", ["fp8", "gptq"])
def test_a_directory_that_says_it_is_quantised_is_refused(tmp_path, method):
    folder, _ = directory(tmp_path, "LlamaForCausalLM", quantization_config={"quant_method": method})
    with pytest.raises(UserError, match=rf"its weights are quantised \({method}\)"):
        load_pretrained(folder)


def test_weights_of_other_frameworks_are_named(tmp_path):
    folder, _ = directory(tmp_path, "GPT2LMHeadModel")
    (folder / "model.safetensors").rename(folder / "flax_model.msgpack")
    with pytest.raises(
        UserError, match="holds no weights .flax_model.msgpack is not supported; save them as model.safetensors"
    ):
        load_pretrained(folder)


# Tokenizers -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("lowercase", "expected"), [(None, "the cat"), (True, "the cat"), (False, "[UNK] cat")])
def test_a_vocabulary_of_words_is_a_tokenizer(tmp_path, lowercase, expected):
    """vocab.txt alone, as BERT was first published; tokenizer_config.json says whether letters are lowered."""
    folder, _ = directory(tmp_path, "BertForMaskedLM", toys.bert())
    (folder / "tokenizer.json").unlink()
    (folder / "vocab.txt").write_text("\n".join(toys.bert_vocabulary()) + "\n")
    if lowercase is not None:
        (folder / "tokenizer_config.json").write_text(json.dumps({"do_lower_case": lowercase}))
    tokens = ssl_jax.load(f"hf:{folder}").prepare({"text": "The cat"})["tokens"][0]
    assert tokens.tolist() == toys.bert().encode(expected, special=True)


@pytest.mark.parametrize("kind", ["roberta", "gpt2"])
def test_a_vocabulary_with_merges_is_a_tokenizer(tmp_path, kind):
    tokenizer = toys.KINDS[kind]()
    model = json.loads(tokenizer.inner.to_str())["model"]
    (tmp_path / "vocab.json").write_text(json.dumps(tokenizer.vocabulary))
    (tmp_path / "merges.txt").write_text("#version: 0.2\n" + "\n".join(" ".join(pair) for pair in model["merges"]) + "\n")
    found = Tokenizer.load(tmp_path)
    for text in toys.SENTENCES:
        assert found.encode(text, special=True) == tokenizer.encode(text, special=True)
        assert found.encode_pair(text, "a cat") == tokenizer.encode_pair(text, "a cat")
    assert found.mask_id == tokenizer.mask_id and found.stop_ids == tokenizer.stop_ids


def test_a_model_without_a_tokenizer_takes_ids_and_no_words(tmp_path, capsys):
    """Not ids of nothing: all zeros, as if the text had been read."""
    folder, _ = directory(tmp_path, "BertForMaskedLM", cls_token_id=1, sep_token_id=2)
    model = ssl_jax.load(f"hf:{folder}")
    assert model.prepare({"text": "5 6"})["tokens"].tolist() == [[1, 5, 6, 2]]
    with pytest.raises(UserError, match="this model directory has no tokenizer, and texts must be token ids"):
        model.features({"text": ["the cat"]})
    assert cli.main(["fill-mask", f"--workdir=hf:{folder}", "--text=the [MASK]"]) == 2
    assert "put its tokenizer.json beside config.json" in capsys.readouterr().err


@pytest.mark.parametrize("imported", [False, True])
def test_the_directorys_settings_end_generation(tmp_path, capsys, imported):
    """A list of end tokens in config.json or generation_config.json, in memory and as a work directory."""
    folder, params = directory(tmp_path, "LlamaForCausalLM", toys.llama3(), bos_token_id=0, eos_token_id=[1, 2])
    path = f"hf:{folder}"
    if imported:
        path = str(tmp_path / "run")
        assert cli.main(["convert", f"--from=hf:{folder}", f"--to={path}"]) == 0
    tokenizer = ssl_jax.load(path).info.tokenizer
    assert tokenizer.stop_ids == (1, 2) and tokenizer.begin_ids == (0,)
    if imported:
        assert cli.main(["convert", f"--from={path}", f"--to=hf:{tmp_path / 'again'}"]) == 0
        assert ssl_jax.load(f"hf:{tmp_path / 'again'}").info.tokenizer.stop_ids == (1, 2)
