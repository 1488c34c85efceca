"""A run that is stopped and resumed, however often and wherever, is the run that was never stopped: bit for bit."""

import signal

import pytest
from rich.console import Console

from jaxlab.train import loop, report
from jaxlab.train.build import build
from jaxlab.train.checkpoint import Checkpoints
from jaxlab.train.session import Session
from tests import tiny

pytestmark = pytest.mark.usefixtures("no_figure")
VARIANTS = {  # 32 steps; evaluations at steps 8, 16, 24, 32; checkpoints as said
    "plain": {},
    "accumulation": {"batch__micro_tokens": 256, "checkpoint__every_tokens": 5_120},
    "several steps a call": {"compute__steps_per_call": 3},
    "several steps a call, accumulation, two replicas": {
        "compute__steps_per_call": 5, "batch__micro_tokens": 128, "replicas": 2, "checkpoint__every_tokens": 0,
    },
}  # fmt: skip


@pytest.fixture(scope="module", params=VARIANTS)
def run(request, data):
    """A run of the variant; it holds no state, so that it may be trained again and again without compiling."""
    changes = VARIANTS[request.param]
    return build(tiny.config(data, compute__layers="scan", log__tensorboard=False, **changes))


@pytest.fixture(scope="module")
def straight(run, tmp_path_factory):
    workdir = tmp_path_factory.mktemp("straight")
    loop.train(run, workdir, Console(quiet=True))
    return workdir


def train(run, workdir, monkeypatch, stop_after: int | None = None, during="log_previous"):
    """Trains, and is told to stop as soon as `during` has handled step `stop_after`."""
    original, told = getattr(Session, during), []

    def patched(self, *args):
        original(self, *args)
        last = args[0].block.end.steps if during == "log_previous" else args[2].steps
        if stop_after and not told and last >= stop_after:
            told.append(True)
            signal.raise_signal(signal.SIGTERM)

    with monkeypatch.context() as patch:
        patch.setattr(Session, during, patched)
        return loop.train(run, workdir, Console(quiet=True))


def assert_same(workdir, straight):
    assert tiny.rows(workdir) == tiny.rows(straight)
    assert tiny.fingerprint(workdir) == tiny.fingerprint(straight)


@pytest.mark.parametrize("stops", [(3,), (7,), (8,), (2, 4, 15, 23), (31,)])
def test_any_split_gives_the_same_run(run, straight, tmp_path, monkeypatch, stops):
    for stop in stops:
        assert train(run, tmp_path, monkeypatch, stop) is None
        assert tiny.saved(tmp_path)[-1] >= stop * 512
    assert train(run, tmp_path, monkeypatch) is not None
    assert_same(tmp_path, straight)


@pytest.mark.parametrize("step", [8, 24])
def test_told_to_stop_during_an_evaluation(run, straight, tmp_path, monkeypatch, step):
    """It stops there and then: the evaluation is neither lost nor done twice."""
    assert train(run, tmp_path, monkeypatch, step, during="measure") is None
    assert tiny.saved(tmp_path)[-1] == tiny.rows(tmp_path)[-1]["tokens"] == step * 512
    train(run, tmp_path, monkeypatch)
    assert_same(tmp_path, straight)


@pytest.mark.parametrize("event", ["before the evaluation", "before the save"])
def test_killed_around_an_event(run, straight, tmp_path, monkeypatch, event):
    """Dies at step 16, where an evaluation and (in some variants) a save are due."""

    class Killed(BaseException):
        pass

    def die(*args):
        if args[2 if event == "before the save" else 3].tokens >= 16 * 512:
            raise Killed
        return original(*args)

    owner, name = (Checkpoints, "save") if event == "before the save" else (Session, "measure")
    original = getattr(owner, name)
    with monkeypatch.context() as patch:
        patch.setattr(owner, name, die)
        with pytest.raises(Killed):
            loop.train(run, tmp_path, Console(quiet=True))
    loop.train(run, tmp_path, Console(quiet=True))
    assert_same(tmp_path, straight)


def test_killed_between_the_last_save_and_the_result(run, straight, tmp_path, monkeypatch):
    with monkeypatch.context() as patch:
        patch.setattr(report, "figure", lambda *_: 1 / 0)
        with pytest.raises(ZeroDivisionError):
            loop.train(run, tmp_path, Console(quiet=True))
    assert not (tmp_path / "result.json").exists()
    assert loop.train(run, tmp_path, Console(quiet=True))["steps"] == 32
    assert_same(tmp_path, straight)


def test_straight_run_has_every_row_once(run, straight):
    rows = tiny.rows(straight)
    assert [r["steps"] for r in rows if r["kind"] == "train"] == list(range(1, 33))
    assert [r["steps"] for r in rows if r["kind"] == "eval"] == [8, 16, 24, 32]
    assert all(r["tokens"] == 512 * r["steps"] for r in rows)
