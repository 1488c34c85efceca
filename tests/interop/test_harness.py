"""lm-evaluation-harness on a checkpoint of ours and on its export: the same answers."""

import os
from pathlib import Path

import jax
import numpy as np
import pytest

os.environ |= {"HF_HUB_OFFLINE": "1", "HF_DATASETS_OFFLINE": "1"}  # nothing here is downloaded
pytest.importorskip("lm_eval", reason="needs lm-eval: pip install 'jaxlab[harness]'")
pytest.importorskip("safetensors", reason="needs the package safetensors")

from lm_eval.api.instance import Instance
from lm_eval.api.registry import get_model

from benchmarks import parity
from jaxlab.config import InputError
from jaxlab.data.store import load_tokenizer
from jaxlab.interop.harness import JaxlabLM, reader
from jaxlab.interop.hugging_face import export
from jaxlab.interop.workdir import newest_params, start_from
from jaxlab.model.decoder import Decoder
from jaxlab.train.build import build
from tests import tiny
from tests.interop.conftest import LLAMA, SHORT

EVALS = (Path(__file__).parents[2] / ".." / "shared" / "data" / "evals").resolve()


def requests(kind: str, *arguments: tuple) -> list[Instance]:
    return [Instance(kind, {}, a, i) for i, a in enumerate(arguments)]


@pytest.fixture(scope="module")
def ours(workdir):
    return get_model("jaxlab").create_from_arg_string(f"workdir={workdir}", {"batch_size": 2, "device": None})


@pytest.fixture(scope="module")
def theirs(llama, workdir, tmp_path_factory):
    """The harness's own class on the export."""
    for package in ("torch", "transformers", "accelerate"):
        pytest.importorskip(package, reason=f"needs {package}: pip install 'jaxlab[parity]'")
    from lm_eval.models.huggingface import HFLM

    folder, run = tmp_path_factory.mktemp("exported"), build(llama)
    export(folder, newest_params(run, workdir), run.program.model.c, load_tokenizer(llama.data.store))
    return HFLM(pretrained=str(folder), dtype="float32", device="cpu", batch_size=2)


# An empty context; spaces at the end of one; a context that is cut; a whole longer than the model's 256 tokens.
PAIRS = (
    ("", "w1 w2"), ("w1 w2 ", "w3"), ("w7 w8", " w9 w10"), ("w4 w5 " * 120, " w6 w7 w8"), ("a\nb: é", " 日本"),
    ("w1", " " + "w2 w3 " * 40),
)  # fmt: skip


def test_log_likelihoods_and_greedy_flags(ours, theirs):
    """To the rounding of float32 sums of up to 256 terms."""
    a, b = (lm.loglikelihood(requests("loglikelihood", *PAIRS), disable_tqdm=True) for lm in (ours, theirs))
    np.testing.assert_allclose([x[0] for x in a], [x[0] for x in b], rtol=1e-5)
    assert [x[1] for x in a] == [x[1] for x in b]


def test_greedy_flag_of_a_greedy_continuation(ours):
    text = ours.generate_until(requests("generate_until", ("w1 w2", {"until": [], "max_gen_toks": 6})))[0]
    found = ours.loglikelihood(requests("loglikelihood", ("w1 w2", text), ("w1 w2", "#")), disable_tqdm=True)
    assert [greedy for _, greedy in found] == [True, False]


def test_rolling_windows(ours, theirs):
    texts = (("w1 w2 w3",), ("w4 w5 w6 " * 150,))
    a, b = (lm.loglikelihood_rolling(requests("loglikelihood_rolling", *texts)) for lm in (ours, theirs))
    np.testing.assert_allclose(a, b, rtol=1e-5)


def test_generation(ours, theirs):
    cases = (
        ("w1 w2", {"until": ["\n"], "max_gen_toks": 12}),
        ("w3 w4 w5 " * 100, {"until": ["w"], "max_gen_toks": 20}),
        ("w30", {"until": [], "max_gen_toks": 5}),
    )
    a, b = (lm.generate_until(requests("generate_until", *cases), disable_tqdm=True) for lm in (ours, theirs))
    assert a == b


def test_a_text_without_tokens_has_the_log_likelihood_0(ours):
    """Alone and among others: no factor is left out."""
    assert ours.loglikelihood_rolling(requests("loglikelihood_rolling", ("",))) == [0.0]
    assert ours.loglikelihood_rolling([]) == []
    assert ours.loglikelihood([], disable_tqdm=True) == []
    whole = ours.loglikelihood_rolling(requests("loglikelihood_rolling", ("w1 w2",), ("",), ("w3",)))
    alone = ours.loglikelihood(requests("loglikelihood", ("", "w1 w2"), ("", "w3")), disable_tqdm=True)
    assert whole[1] == 0.0
    np.testing.assert_allclose([whole[0], whole[2]], [log_likelihood for log_likelihood, _ in alone], rtol=1e-5)


def test_generation_stops_at_nothing_for_empty_stops_and_gives_nothing_for_no_tokens(ours):
    options = ({"until": [], "max_gen_toks": 6}, {"until": [""], "max_gen_toks": 6}, {"until": "", "max_gen_toks": 6},
               {"until": ["", "w"], "max_gen_toks": 0}, {"max_gen_toks": 0})  # fmt: skip
    found = ours.generate_until(requests("generate_until", *(("w1 w2", option) for option in options)))
    assert len(found[0]) > 1
    assert found == [found[0]] * 3 + ["", ""]


def test_the_likeliest_id_is_one_of_the_tokenizers():
    """Logits 1 to 5, of which the last two are padding: the third is the likeliest, among all five it has e^3 of the
    sum."""

    class Fake:
        def apply(self, variables, tokens, method):
            return np.ones((*tokens.shape, 1), np.float32), np.arange(1, 6, dtype=np.float32)[:, None]

    tokens, positions = np.zeros((1, 1, 2), int), np.zeros((1, 1), int)
    log_prob, likeliest = reader(Fake(), 3)({}, tokens, positions, positions + 2)
    assert likeliest.tolist() == [[2]]
    assert log_prob[0, 0] == pytest.approx(3 - np.log(np.exp(np.arange(1, 6)).sum()), rel=1e-6)


def test_a_padded_vocabulary_is_not_generated_from(data, tmp_path):
    """The rows of the head above the tokenizer's 257 are those below a hundred times over, and so have the largest
    logits; the text is that of the largest logits below."""
    run = build(tiny.config(data, **LLAMA | SHORT | {"model__vocab_size": 320}))
    params = jax.tree.map(lambda x: np.array(x[0]), run.program.params(run.program.init(np.uint32(0))))
    params["head"][:, 257:] = 100 * params["head"][:, :63]
    start_from(run, tmp_path / "run", run.program.model.c, params, source="here")
    requested = requests("generate_until", ("w1 w2", {"until": [], "max_gen_toks": 4}))
    found = JaxlabLM(str(tmp_path / "run")).generate_until(requested)
    ids = list(b"w1 w2")
    apply = jax.jit(Decoder(run.program.model.c).apply)
    for _ in range(4):
        tokens = np.zeros((1, 16), np.int32)
        tokens[0, : len(ids)] = ids
        logits = np.asarray(apply({"params": params}, tokens)[0, len(ids) - 1])
        assert logits.argmax() > 256
        ids.append(int(logits[:257].argmax()))
    assert found == [bytes(i for i in ids[5:] if i < 256).decode(errors="replace")]


@pytest.mark.slow
def test_scores_are_equal_item_by_item(workdir, theirs):
    """A task of the harness; by our class, by its own class on the export, and by jaxlab.evaluate. For more tasks and
    all of their items: benchmarks/parity.py."""
    if not EVALS.exists():
        pytest.skip("no evals beside the repository")
    found = parity.agreement(parity.scores(str(workdir), EVALS, ["arc_easy"], limit=5))["arc_easy"]
    assert found["items"] == 5
    assert not any(found["items_that_differ"].values())
    assert max(found["log_likelihood_difference"].values()) < 1e-3  # of some hundred nats, in float32


def test_bad_input(ours, workdir, tmp_path):
    with pytest.raises(InputError, match="batch_size=auto: must be a whole number above 0"):
        JaxlabLM(str(workdir), batch_size="auto")
    with pytest.raises(InputError, match="holds no run"):
        JaxlabLM(str(tmp_path))
    for path in ("", "gs://bucket/run", "~nobody-of-this-name"):
        with pytest.raises(InputError, match="model_args: workdir="):
            JaxlabLM(path)
    with pytest.raises(InputError, match="model_args: dtype=float16 is unknown; allowed: workdir, batch_size"):
        JaxlabLM(str(workdir), dtype="float16")
    with pytest.raises(InputError, match="max_gen_toks=-1: must be from 0 to below"):
        ours.generate_until(requests("generate_until", ("w1", {"max_gen_toks": -1})))
    for options in ({"max_gen_toks": "many"}, {"max_gen_toks": [1]}, {"temperature": "hot"}):
        with pytest.raises(InputError, match=r"the options \{.*: cannot be read"):
            ours.generate_until(requests("generate_until", ("w1", options)))
    with pytest.raises(InputError, match=r"until=\[3\]: must be texts"):
        ours.generate_until(requests("generate_until", ("w1", {"until": [3]})))
    with pytest.raises(InputError, match=r"the text .* cannot be read"):
        ours.loglikelihood(requests("loglikelihood", ("w1", "\ud800")), disable_tqdm=True)
    with pytest.raises(InputError, match="do_sample=True: only greedy generation is implemented"):
        ours.generate_until(requests("generate_until", ("w1", {"do_sample": True, "temperature": 1.0})))
    with pytest.raises(InputError, match="max_gen_toks=256: must be from 0 to below the model's context, 256"):
        ours.generate_until(requests("generate_until", ("w1", {"max_gen_toks": 256})))
    with pytest.raises(InputError, match="a continuation of 600 tokens cannot be scored"):
        ours.loglikelihood(requests("loglikelihood", ("w1", "w" * 600)), disable_tqdm=True)
