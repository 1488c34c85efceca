"""Reads the parameters of a run from its workdir, and starts a new run from given parameters."""

from pathlib import Path

import jax
from ml_collections import ConfigDict

from jaxlab.config import InputError, default
from jaxlab.files import read_record, reading
from jaxlab.interop.hugging_face import TRAINING
from jaxlab.train.build import Run, build
from jaxlab.train.checkpoint import complete, load
from jaxlab.train.claim import begin, check_run, claim, record
from jaxlab.train.outer_loop import regrouped
from jaxlab.train.program import Program, program
from jaxlab.train.state import Clock, State


def recorded_config(workdir: str | Path) -> ConfigDict:
    """The config of the run in workdir. Raises InputError if there is none or it is damaged."""
    path = Path(workdir) / "config.json"
    if not path.exists():
        raise InputError(f"workdir={workdir}: holds no run")
    config, recorded = default(), read_record(path, config=dict)["config"]
    with reading(path):  # ConfigDict refuses unknown keys and values of another type
        config.update_from_flattened_dict(recorded)
    return config


def newest_params(run: Run, workdir: str | Path):
    """Parameters of the newest checkpoint in workdir, as the decoder takes them, without a replica axis. With DiLoCo
    they are the global parameters.

    Changes nothing, so the run may be training meanwhile. Raises InputError if there is no checkpoint or it is damaged,
    if the run has another config, and for several replicas that never synchronise, which are several models.
    """
    check_run(run, Path(workdir))
    if run.config.replicas > 1 and not run.program.outer_loop:
        raise InputError(f"replicas={run.config.replicas}: the checkpoint holds as many models; must be 1")
    state, _ = load(Path(workdir), run.program.abstract_state())
    return jax.tree.map(lambda x: x[0], run.program.params(state))


def go_on_from(run: Run, workdir: str | Path, source: str | Path) -> None:
    """Saves the newest parameters of the run in the workdir `source` as the checkpoint at 0 tokens of the run in
    `workdir`. If that already has checkpoints, only checks that they are those of a run begun in this way. Raises
    InputError as `newest_params` and `start_from` do."""
    if complete(Path(workdir)):
        claim(Path(workdir), record(run) | {"awaits": {"params_from": str(source)}})
        return
    other = build(recorded_config(source))
    start_from(run, workdir, other.program.model.c, newest_params(other, source), source)


def start_from(run: Run, workdir: str | Path, model: dict, params, source: str | Path) -> None:
    """Saves params in workdir as the checkpoint at 0 tokens, from which training of the run starts.

    model: the keys of `config.model` for which params were made; source: where they come from, for messages and for
    the run's config.json. Every replica gets them, with a new optimiser state. Raises InputError if the model is not
    the run's, or if workdir has checkpoints.
    """
    if run.program.model is None:
        raise InputError(f"{source}: parameters can be taken over by models of a config alone, not by a given init")
    _check_model(run.program.model.c, model, str(source))
    workdir = Path(workdir)
    if complete(workdir):
        raise InputError(f"workdir={workdir}: holds checkpoints already")
    begin(run, workdir, run.program.start(params), Clock(), {"params_from": str(source)})


def continue_from(run: Run, workdir: str | Path, source: str | Path, tokens: int | None = None) -> None:
    """Saves the checkpoint at `tokens` (None: the newest) of the run in the workdir `source` as the first of another
    run, which goes on from its step with its optimiser state; does nothing where that run has begun so already.

    Data, batch, schedule, length and the number of replicas may be others: where replicas change, all start from the
    global parameters with the mean of the optimiser states. Raises InputError for another model, tokenizer, optimiser
    or outer state, a checkpoint that does not exist, and a run that ends before it.
    """
    workdir, source, origin = Path(workdir), Path(source), {"branch_of": str(source)}
    if complete(workdir):
        claim(workdir, record(run) | {"awaits": origin})
        return
    config, ours = recorded_config(source), run.program
    recorded = read_record(source / "config.json", data=dict)
    if recorded["data"]["tokenizer_sha256"] != run.store.meta["tokenizer_sha256"]:
        raise InputError(f"data.store={run.config.data.store}: has another tokenizer than the run in {source}")
    if recorded.get("own", []) != (given := record(run)["own"]):
        names = [", ".join(functions) or "none" for functions in (given, recorded.get("own", []))]
        raise InputError(f"functions given to build: {names[0]}; must be those of the run in {source}, {names[1]}")
    theirs = program(config, ours.mesh, config.model.vocab_size or run.store.meta["vocab_size"], ours.own)
    if ours.model:
        _check_model(ours.model.c, theirs.model.c, str(source))
    state, clock = load(source, theirs.abstract_state(), tokens)
    if clock.tokens >= run.config.tokens:
        raise InputError(f"tokens={run.config.tokens}: must be more than the {clock.tokens} of the checkpoint")
    begin(run, workdir, _adopted(ours, theirs, state, source), clock, origin | {"began": list(clock)})


def _adopted(ours: Program, theirs: Program, state: State, source: Path) -> State:
    """A state of the program `theirs` as one of `ours`. Raises InputError where that cannot be."""

    def layout(part):
        return jax.tree.map(lambda x: (x.shape[1:], x.dtype), part), jax.tree.structure(part)

    mine, other = ours.shapes, theirs.shapes
    if layout(mine.opt_state) != layout(other.opt_state):
        raise InputError(f"optim: must be the optimiser of {source}, whose state the run goes on with")
    same_outer = layout(mine.outer) == layout(other.outer)
    if ours.outer_loop and theirs.outer_loop and not same_outer:
        raise InputError(f"diloco: fragments, overlap, mix and eager must be those of {source}, with its outer state")
    if state.replicas == ours.config.replicas and same_outer:
        return jax.device_put(state, ours.shardings)
    if theirs.config.replicas > 1 and not theirs.outer_loop:
        raise InputError(f"replicas={ours.config.replicas}: must be {state.replicas}, as many models as in {source}")

    def joined(state):
        params = theirs.params(state)
        alike = regrouped(state._replace(outer=None), params, ours.config.replicas)
        if same_outer or not ours.outer_loop:
            return alike._replace(outer=state.outer if same_outer else None)
        return alike._replace(outer=ours.outer_loop.init(jax.tree.map(lambda x: x[0], params)))

    return jax.jit(joined, out_shardings=ours.shardings)(state)


def _check_model(mine, theirs: dict, source: str) -> None:
    ignored = set(TRAINING)
    if theirs["positions"] == "rotary":
        ignored.add("context")  # no parameter depends on it
    wrong = {key: value for key, value in theirs.items() if key not in ignored and mine[key] != value}
    if wrong:
        flags = " ".join(f"--config.model.{key}={value}" for key, value in wrong.items())
        raise InputError(f"{source}: is another model than the config's, which it would be with {flags}")
