"""lm-evaluation-harness on a checkpoint of ours and on its export: the same answers."""

import os
from pathlib import Path

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
from jaxlab.interop.harness import JaxlabLM
from jaxlab.interop.hugging_face import export
from jaxlab.interop.workdir import newest_params
from jaxlab.train.build import build

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
    with pytest.raises(InputError, match="do_sample=True: only greedy generation is there"):
        ours.generate_until(requests("generate_until", ("w1", {"do_sample": True, "temperature": 1.0})))
    with pytest.raises(InputError, match="max_gen_toks=256: must be from 0 to below the model's context, 256"):
        ours.generate_until(requests("generate_until", ("w1", {"max_gen_toks": 256})))
    with pytest.raises(InputError, match="a continuation of 600 tokens cannot be scored"):
        ours.loglikelihood(requests("loglikelihood", ("w1", "w" * 600)), disable_tqdm=True)
