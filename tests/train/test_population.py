"""A population against its members trained alone: the same runs, whatever becomes of the others."""

import json
import shutil
from contextlib import contextmanager

import numpy as np
import pytest
from rich.console import Console

from jaxlab.train import loop, population
from jaxlab.train.build import build
from jaxlab.train.checkpoint import NonFinite
from tests import tiny

pytestmark = [pytest.mark.slow, pytest.mark.usefixtures("no_figure")]
QUIET = Console(quiet=True)
SHORT = {
    "compute__layers": "scan",
    "log__tensorboard": False,
    "tokens": 8_192,
    "evaluate__every_tokens": 4_096,
    "checkpoint__every_tokens": 2_048,
    "replicas": 2,
    "diloco__sync_every": 3,
    "quant__recipe": "capybara",
    "quant__stages": "0:none/4096:e2m1,block=16",
    "spectra__at": "4096",  # and at the end
}
MEMBERS = {
    "slow": {"schedule__peak_lr": 1e-3},
    "other seed": {"schedule__peak_lr": 1e-2, "seed": 1, "diloco__outer_lr": 0.9},
    "diverging": {"schedule__peak_lr": 1e30},
}


@pytest.fixture(scope="module")
def runs(data, tmp_path_factory):
    """Runs of the three members, which share the first one's program, and score an item on the way."""
    items = tmp_path_factory.mktemp("items") / "piqa.jsonl"
    items.write_text(json.dumps({"goal": "w1 w2", "sol1": "w3", "sol2": "w4", "label": 0}) + "\n")
    tasks = {"evaluate__tasks": "piqa", "evaluate__items_from": str(items), "evaluate__tasks_every_tokens": 4_096}
    made = {}
    for name, changes in MEMBERS.items():
        program = next(iter(made.values())).program if made else None
        made[name] = build(tiny.config(data, **SHORT, **tasks, **changes), program)
    return made


def together(runs, folder):
    workdirs = [folder / name for name in runs]
    return population.train_together(list(runs.values()), workdirs, [QUIET] * len(runs))


@pytest.fixture(scope="module")
def trained(runs, tmp_path_factory):
    folder = tmp_path_factory.mktemp("population")
    return folder, together(runs, folder)


def test_members_are_what_they_would_be_alone(runs, trained, tmp_path):
    """Losses of every step within 2e-5 nats (products are batched, so sums are in another order), and everything that
    a run leaves: result, rows of the same steps, checkpoints at the same tokens."""
    folder, outcomes = trained
    for name, outcome in zip(runs, outcomes, strict=True):
        if name == "diverging":
            continue
        alone = loop.train(runs[name], tmp_path / name, QUIET)
        assert outcome["loss"] == pytest.approx(alone["loss"], abs=2e-5)
        assert tiny.result(folder / name) == outcome
        ours, theirs = tiny.rows(folder / name), tiny.rows(tmp_path / name)
        assert [(r["kind"], r["steps"], r["tokens"]) for r in ours] == [
            (r["kind"], r["steps"], r["tokens"]) for r in theirs
        ]
        np.testing.assert_allclose(*([r["loss"] for r in rows if "loss" in r] for rows in (ours, theirs)), atol=2e-5)
        assert [r["tokens"] for r in ours if r["kind"] == "tasks"] == [4_096, 8_192]
        assert tiny.saved(folder / name) == tiny.saved(tmp_path / name)
        assert {p.name for p in (folder / name / "spectra").iterdir()} == {"4096.npz", "8192.npz"}
        assert (folder / name / "config.json").read_text() == (tmp_path / name / "config.json").read_text()


def test_a_member_that_diverges_leaves_the_others_alone(trained):
    _, outcomes = trained
    assert isinstance(outcomes[2], NonFinite)
    assert " at step " in str(outcomes[2])
    assert all(np.isfinite(outcome["loss"]) for outcome in outcomes[:2])


@pytest.fixture(scope="module")
def pair(runs, tmp_path_factory):
    """Two members trained together, undisturbed."""
    folder, sound = tmp_path_factory.mktemp("pair"), {name: runs[name] for name in ("slow", "other seed")}
    together(sound, folder)
    return folder, sound


def test_with_one_damaged_checkpoint_all_go_on_from_what_they_have_in_common(pair, tmp_path):
    """From 6,144 tokens, as one has nothing sound at 8,192; what is newer is dropped, and comes again."""
    folder, sound = pair
    for name in sound:
        shutil.copytree(folder / name, tmp_path / name)
        (tmp_path / name / "result.json").unlink()
    (tmp_path / "slow" / "checkpoints" / "8192" / "record" / "metadata").write_text("{}")
    assert population.in_step([tmp_path / name for name in sound])
    outcomes = together(sound, tmp_path)
    assert outcomes == [tiny.result(tmp_path / name) for name in sound]
    for name, aside in (("slow", "damaged-8192"), ("other seed", "unused-8192")):
        assert (tmp_path / name / "checkpoints" / aside).is_dir()
        assert tiny.saved(tmp_path / name) == [6_144, 8_192]
        assert tiny.fingerprint(tmp_path / name) == tiny.fingerprint(folder / name)
        assert tiny.rows(tmp_path / name) == tiny.rows(folder / name)


def test_stopped_and_started_again_it_is_bit_for_bit_the_same(pair, tmp_path, monkeypatch):
    class Stop:
        asked = 0

        def is_set(self):
            self.asked += 1
            return self.asked == 7

    @contextmanager
    def stopping():
        yield Stop()

    whole, sound = pair
    with monkeypatch.context() as patch:
        patch.setattr(loop, "stop_on_signal", stopping)
        assert together(sound, tmp_path) == [None, None]
    assert tiny.saved(tmp_path / "slow")[-1] == 7 * 512
    assert population.in_step([tmp_path / name for name in sound])
    together(sound, tmp_path)
    for name in sound:
        assert tiny.fingerprint(tmp_path / name) == tiny.fingerprint(whole / name)
        assert tiny.rows(tmp_path / name) == tiny.rows(whole / name)


def test_only_runs_of_one_plan_are_alike(runs):
    first = runs["slow"]
    assert population.alike(first, runs["diverging"])
    for changes in ({"tokens": 4_096}, {"evaluate.every_tokens": 0}, {"optim.b1": 0.8}):
        config = first.config.copy_and_resolve_references()
        config.update_from_flattened_dict(changes)
        assert not population.alike(first, build(config, first.program)), changes


def test_runs_of_one_shape_share_a_program_and_start_as_they_would_alone(runs, data):
    other = build(tiny.config(data, **SHORT, seed=1))
    assert runs["other seed"].program is runs["slow"].program
    for ours, theirs in zip(*(map(np.asarray, _leaves(r.program.init(1))) for r in (runs["slow"], other)), strict=True):
        np.testing.assert_array_equal(ours, theirs)


def _leaves(state):
    import jax

    return jax.tree.leaves(state.params)
