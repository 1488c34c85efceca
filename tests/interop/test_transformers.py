"""What transformers computes from an exported folder, and what it writes, against ours."""

import json
import os
from pathlib import Path

import numpy as np
import pytest

os.environ["HF_HUB_OFFLINE"] = "1"  # nothing here is downloaded
torch = pytest.importorskip("torch", reason="needs torch: pip install 'jaxlab[parity]'")
transformers = pytest.importorskip("transformers", reason="needs transformers: pip install 'jaxlab[parity]'")

from benchmarks.parity import FAMILIES, logit_difference, logits, random_model  # noqa: E402
from jaxlab.data.tokenizer import load as load_tokenizer  # noqa: E402
from jaxlab.data.tokenizer import train_bpe  # noqa: E402
from jaxlab.interop.hugging_face import export, load  # noqa: E402
from tests.interop.test_tokenizer import HARD, sentences  # noqa: E402

BYTES = load_tokenizer("bytes", None)
CLASSES = {"llama": "Llama", "internlm2": "Llama", "qwen3": "Qwen3", "qwen3_moe": "Qwen3Moe", "gpt2": "GPT2"}


@pytest.mark.parametrize("family", FAMILIES)
def test_logits_in_float32(family):
    """1e-4 of logits of 3.5 is asked for; both add the same float32 products in another order."""
    assert logit_difference(family, "float32")["difference"] < 2e-5


@pytest.mark.parametrize("family", ["llama", "qwen3", "gpt2"])
def test_logits_in_bfloat16(family):
    """Two computations with 8 bits of significand part by no more than each has parted from float32, together."""
    found = logit_difference(family, "bfloat16")
    assert found["difference"] < found["ours_from_float32"] + found["theirs_from_float32"]
    assert found["difference"] < 0.03 * found["largest_logit"]


@pytest.mark.parametrize("family", ["internlm2", "qwen3", "qwen3_moe", "gpt2"])
def test_greedy_continuation(family, tmp_path):
    model, params = random_model(family)
    export(tmp_path, params, model, BYTES)
    theirs = transformers.AutoModelForCausalLM.from_pretrained(tmp_path, dtype="float32")
    assert type(theirs).__name__.startswith(CLASSES[family])
    start = np.random.default_rng(2).integers(0, 256, (1, 8))
    with torch.no_grad():
        found = theirs.generate(torch.tensor(start), do_sample=False, max_new_tokens=24, eos_token_id=None)
    ours = logits(model, params, found.numpy()[:, :-1]).argmax(-1)  # of every beginning, so that of a loop too
    assert ours[0, 7:].tolist() == found[0, 8:].tolist()
    assert len(set(ours[0, 7:].tolist())) > 3


@pytest.mark.parametrize("family", ["llama", "qwen3", "qwen3_moe", "gpt2"])
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_folders_of_transformers_go_through_unchanged(family, dtype, tmp_path):
    """What transformers saves, in shards, is read and written again with every tensor bit for bit."""
    from safetensors.torch import load_file

    torch.manual_seed(0)
    config = export_config(random_model(family), tmp_path / "config")
    theirs = transformers.AutoModelForCausalLM.from_config(config).to(getattr(torch, dtype))
    theirs.save_pretrained(tmp_path / "sharded", max_shard_size="100KB")
    theirs.save_pretrained(tmp_path / "whole")
    assert len(list((tmp_path / "sharded").glob("*.safetensors"))) > 1
    model, params = load(tmp_path / "sharded")
    export(tmp_path / "again", params, model, BYTES, dtype)
    before, after = (load_file(tmp_path / name / "model.safetensors") for name in ("whole", "again"))
    assert before.keys() == after.keys()
    assert all(torch.equal(before[name], after[name]) and before[name].dtype == after[name].dtype for name in before)


def export_config(model_and_params, folder: Path):
    model, params = model_and_params
    export(folder, params, model, BYTES)
    return transformers.AutoConfig.from_pretrained(folder)


@pytest.mark.parametrize("family", ["llama", "qwen3", "qwen3_moe", "gpt2"])
def test_config_says_what_ours_does(family, tmp_path):
    """No key is unknown to transformers, and all that it takes for granted besides is dropout, which is training's."""
    config = export_config(random_model(family), tmp_path)
    written = json.loads((tmp_path / "config.json").read_text())
    known = {**config.to_dict(), "rope_theta": (getattr(config, "rope_parameters", None) or {}).get("rope_theta")}
    known["num_experts"] = known.get("num_local_experts")  # transformers 5 has both names
    for key, value in written.items():
        assert known[key] == value, key


@pytest.mark.parametrize("spec", ["bytes", "bpe:420"])
@pytest.mark.parametrize("family", ["llama", "qwen3", "gpt2"])
def test_auto_tokenizer_gives_our_ids(spec, family, tmp_path):
    tokenizer = load_tokenizer(spec, None if spec == "bytes" else train_bpe(sentences(0), 420))
    model, params = random_model(family, vocab_size=tokenizer.vocab_size)
    export(tmp_path, params, model, tokenizer)
    theirs = transformers.AutoTokenizer.from_pretrained(tmp_path)
    assert (theirs.eos_token_id, theirs.model_max_length) == (tokenizer.eos, model["context"])
    for text in [*HARD, *sentences(3)]:
        ids = tokenizer.encode([text])[0]
        assert theirs(text)["input_ids"] == ids.tolist(), text
        assert theirs.decode(ids) == text
