"""Branches of a run: one at its own batch is the run, one at twice the batch the run that grows there."""

import json
import re

import pytest
from rich.console import Console

from jaxlab.config import InputError
from jaxlab.files import read_record, write_record
from jaxlab.train import loop
from jaxlab.train.branch import branch, loss
from jaxlab.train.build import build
from tests import tiny

pytestmark = pytest.mark.slow

QUIET = Console(quiet=True)
CONSTANT = {
    "schedule__name": "constant", "tokens": 8_192, "checkpoint__keep": 9, "batch__micro_tokens": 512,
    "compute__layers": "scan", "log__tensorboard": False, "evaluate__tokens": 1_024,
}  # fmt: skip


@pytest.fixture(scope="module")
def parent(data, tmp_path_factory):
    workdir = tmp_path_factory.mktemp("[bold]parent")
    run = build(tiny.config(data, **CONSTANT))
    loop.train(run, workdir, QUIET)
    return run, workdir


@pytest.mark.parametrize(("times", "growth"), [(1, ""), (2, "0:512 4096:1024")])
def test_a_branch_is_the_run_that_grows_there(parent, data, tmp_path, times, growth):
    """With the learning rate times sqrt 2. Bit for bit: the same tokens, the same parts of a batch."""
    run, workdir = parent
    found = loss(run, workdir, branch(run, 4_096, times, 4_096), 4_096, folder=tmp_path / "branch", console=QUIET)
    grown = build(tiny.config(data, **CONSTANT, batch__growth=growth, batch__lr_rule="sqrt" if growth else "kept"))
    assert found == loop.train(grown, tmp_path / "grown", QUIET)["loss"]
    assert tiny.fingerprint(tmp_path / "branch") == tiny.fingerprint(tmp_path / "grown")
    assert (
        loss(run, workdir, branch(run, 4_096, times, 4_096), 4_096, folder=tmp_path / "branch", console=QUIET) == found
    )


def test_the_rate_is_that_of_the_schedule_there(data):
    """Of a linear decay from 1,024 to 8,192 tokens, with a batch that has doubled, at half of it."""
    config = tiny.config(data, **CONSTANT | {"schedule__name": "wsd", "schedule__warmup_tokens": 512})
    config.schedule.update(peak_lr=0.01, decay_tokens=7_168, final_fraction=0.0, decay_shape="linear")
    config.batch.update(growth="0:512 2048:1024", lr_rule="sqrt")
    found = branch(build(config), 4_608, 4, 8_192)
    assert found.schedule.peak_lr == pytest.approx(0.01 * 0.5 * 2**0.5 * 2)
    assert (found.batch.tokens, found.batch.micro_tokens, found.tokens) == (4_096, 512, 12_800)


def test_decay_by_a_time_scale_is_that_of_the_runs_first_batch(data):
    """0.1 for 512 tokens, a batch of 1,024 there and a branch of 4,096: 0.1 x 4,096 / 512."""
    config = tiny.config(data, **CONSTANT, optim__weight_decay=0.1, optim__decay="timescale")
    config.batch.growth = "0:512 2048:1024"
    found = branch(build(config), 4_608, 4, 8_192)
    assert found.optim.weight_decay == pytest.approx(0.8)
    assert found.batch.tokens == 4_096


def test_cut_off_in_its_first_save_a_branch_starts_from_the_checkpoint(parent, tmp_path):
    """Orbax's folder of a save that is under way is no checkpoint."""
    run, workdir = parent
    config = branch(run, 4_096, 2, 1_024)
    whole = loss(run, workdir, config, 4_096, folder=tmp_path / "whole", console=QUIET)
    (tmp_path / "branch" / "checkpoints" / "4096.orbax-checkpoint-tmp").mkdir(parents=True)
    recorded = read_record(tmp_path / "whole" / "config.json")
    origin = {key: recorded.pop(key) for key in ("branch_of", "began")}
    assert origin == {"branch_of": str(workdir), "began": [4_096, 8]}
    write_record(tmp_path / "branch" / "config.json", recorded | {"awaits": origin})
    with pytest.raises(InputError, match="are not there yet"):
        loop.train(build(config), tmp_path / "branch", QUIET)
    assert loss(run, workdir, config, 4_096, folder=tmp_path / "branch", console=QUIET) == whole
    assert tiny.fingerprint(tmp_path / "branch") == tiny.fingerprint(tmp_path / "whole")
    assert tiny.rows(tmp_path / "branch") == tiny.rows(tmp_path / "whole")


def test_a_window_that_is_not_whole_batches_is_refused(parent):
    with pytest.raises(InputError, match="window=4096: must be whole batches of each branch, of 1536 tokens at 3"):
        branch(parent[0], 4_096, 3, 4_096)


def test_the_launcher_tells_the_critical_batch(parent, request):
    """A window of one step: with a tolerance of 9 nats the largest batch is as good as any."""
    workdir, cache = parent[1], request.config.cache.mkdir("jax")
    flags = f"--workdir={workdir}", "--at=4096", "--times=1,2,8"
    refused = tiny.launch("branch", f"--workdir={workdir}", "--at=77", cache=cache)
    assert (refused.returncode, refused.stderr.count("\n")) == (2, 1)
    assert "--at=77: checkpoints are at 4096, 8192 tokens" in refused.stderr
    done = tiny.launch("branch", *flags, "--window=4096", "--tolerance=9", cache=cache)
    assert done.returncode == 0, done.stderr
    assert "critical, or more" in next(line for line in done.stdout.splitlines() if re.search("4,096 +│ 8 ", line))
    assert "--config.batch.growth='0:512 4096:2048'" in done.stdout
    losses = [json.loads((workdir / f"branches/4096-x{k}/result.json").read_text())["loss"] for k in (1, 2, 8)]
    assert all(f"{value:.4f}" in done.stdout for value in losses)
    assert (workdir / "branches" / "branches.png").stat().st_size > 10_000
    assert f"{workdir}/branches/4096-x8: 4,096 tokens a step" in done.stdout
    alone = tiny.launch("branch", f"--workdir={workdir}", "--at=4096", "--times=1", "--window=4096", cache=cache)
    assert "the batch should not grow" in alone.stdout, alone.stderr
    assert "batch.growth" not in alone.stdout
