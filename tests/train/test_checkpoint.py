"""Checkpoints: whatever happens to the files, what comes back is what was saved, and nothing is deleted."""

import json
import shutil
from contextlib import closing

import jax
import jax.numpy as jnp
import numpy as np
import orbax.checkpoint as ocp
import pytest

from jaxlab.config import InputError
from jaxlab.train import checkpoint
from jaxlab.train.checkpoint import Checkpoints, NonFinite, SaveFailed, check_space, complete, load
from jaxlab.train.state import Clock, State

DAMAGE = {
    "flipped byte": lambda f: f.write_bytes(flipped(f.read_bytes())),
    "truncated": lambda f: f.write_bytes(f.read_bytes()[: f.stat().st_size // 2]),
    "missing": lambda f: f.unlink(),
}


def flipped(content: bytes) -> bytes:
    middle = len(content) // 2
    return content[:middle] + bytes([content[middle] ^ 0x10]) + content[middle + 1 :] if content else b"x"


def state(value: float) -> State:
    params = {"a": jnp.full((1, 300), float(value)), "b": {"c": jnp.arange(1024.0).reshape(1, 32, 32) * value}}
    return State(params, {"count": jnp.full((1,), int(value), jnp.int32)})


def clock(value: int) -> Clock:
    return Clock(value, value // 100)


def abstract() -> State:
    return jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=x.sharding), state(1))


def is_equal(found: State, value: float) -> bool:
    return all(map(np.array_equal, jax.tree.leaves(found), jax.tree.leaves(state(value))))


@pytest.fixture
def folder(tmp_path):
    """Three checkpoints, at 100, 200 and 300 tokens."""
    checkpoints = Checkpoints(tmp_path / "checkpoints", keep=3)
    for value in (100, 200, 300):
        checkpoints.save(state(value), clock(value), {"note": value})
    checkpoints.close()
    return tmp_path / "checkpoints"


def restore(folder, **options):
    """(state, clock) or None, and the lines reported."""
    lines = []
    checkpoints = Checkpoints(folder, keep=3)
    found = checkpoints.restore(abstract(), lines.append, **options)
    checkpoints.close()
    return found, lines


def test_restores_the_newest(folder):
    (found, at), lines = restore(folder)
    assert is_equal(found, 300)
    assert at == clock(300)
    assert lines == []


def test_a_key_names_every_bit_of_a_state(folder):
    (found, _), _ = restore(folder)
    key = checkpoint.state_key(found)
    assert len(key) == 16
    assert int(key, 16) >= 0
    assert key == checkpoint.state_key(state(300))
    one = found.params["b"]["c"]
    other = found._replace(
        params=found.params | {"b": {"c": one.at[0, 3, 4].set(jnp.nextafter(one[0, 3, 4], jnp.inf))}}
    )
    assert checkpoint.state_key(other) != key
    assert checkpoint.state_key(found._replace(opt_state={"count": found.opt_state["count"] + 1})) != key


def test_keeps_the_newest_ones(folder):
    checkpoints = Checkpoints(folder, keep=2)
    checkpoints.save(state(400), clock(400), {})
    checkpoints.close()
    assert sorted(p.name for p in folder.iterdir()) == ["300", "400"]


def test_a_file_in_place_of_the_folder_is_refused(tmp_path):
    (tmp_path / "checkpoints").write_text("x")
    with pytest.raises(InputError, match="checkpoints: is a file; must be the folder"):
        restore(tmp_path / "checkpoints")


def test_no_checkpoint_is_not_an_error(tmp_path):
    assert restore(tmp_path / "none") == (None, [])


@pytest.mark.parametrize("kind", DAMAGE)
def test_damage_to_any_file_is_harmless_or_noticed(folder, tmp_path, kind):
    """Every file of the newest checkpoint in turn: the bits that come back are right, whichever checkpoint they are
    from, and most files matter."""
    names = [f.relative_to(folder) for f in sorted((folder / "300").rglob("*")) if f.is_file()]
    noticed = 0
    for i, name in enumerate(names):
        copy = tmp_path / f"copy{i}"
        shutil.copytree(folder, copy)
        DAMAGE[kind](copy / name)
        (found, at), lines = restore(copy)
        assert is_equal(found, at.tokens), name
        if at.tokens == 200:
            noticed += 1
            assert len(lines) == 1
            assert "checkpoint 300 is damaged" in lines[0]
            assert "\n" not in lines[0]
            assert (copy / "damaged-300").is_dir()
        else:
            assert at.tokens == 300
            assert lines == []
    assert noticed >= 3, f"{noticed} of {len(names)}"


def test_flipped_data_is_noticed_by_the_fingerprint_alone(folder, monkeypatch):
    """A reader without checksums would still not get wrong parameters past us."""
    real = ocp.CheckpointManager.restore

    def altered(self, step, **kwargs):
        found = real(self, step, **kwargs)
        if step == 300 and "state" in kwargs["args"]:
            found.state["params"]["a"] = found.state["params"]["a"].at[0, 7].add(1e-4)
        return found

    monkeypatch.setattr(ocp.CheckpointManager, "restore", altered)
    (found, _), lines = restore(folder)
    assert is_equal(found, 200)
    assert "bits differ" in lines[0]


def rewritten(folder, **changes):
    """The record of a checkpoint with other values; None: without the key."""
    path = folder / "record" / "metadata"
    record = json.loads(path.read_text()) | changes
    path.write_text(json.dumps({key: value for key, value in record.items() if value is not None}))


@pytest.mark.parametrize(
    "changes",
    [{"clock": [301, 3]}, {"clock": [300, 5]}, {"clock": [10**30, 3]}, {"clock": []}, {"note": 301}, {"replicas": 2}],
    ids=str,
)
def test_all_of_a_record_is_under_its_checksum(folder, changes):
    rewritten(folder / "300", **changes)
    (found, at), lines = restore(folder)
    assert at == clock(200)
    assert is_equal(found, 200)
    assert len(lines) == 1
    assert "checkpoint 300 is damaged" in lines[0]
    assert "record/metadata" in lines[0]


@pytest.mark.parametrize("steps", [5, -3, 3.0, "3", None])
def test_a_clock_without_a_checksum_must_be_one_of_the_plan(folder, steps):
    """As older versions saved it."""
    plan = {"possible": lambda at: at.tokens == 100 * at.steps}
    rewritten(folder / "300", crc32=None)
    assert restore(folder, **plan)[0][1] == clock(300)
    rewritten(folder / "300", clock=[300, steps])
    (_, at), lines = restore(folder, **plan)
    assert at == clock(200)
    assert f"it says 300 tokens and {steps} steps, which this run does not have there" in lines[0]


def test_a_checkpoint_under_another_name_is_damaged(folder):
    (folder / "300").rename(folder / "400")
    (_, at), lines = restore(folder)
    assert at == clock(200)
    assert "checkpoint 400 is damaged (it says 300 tokens" in lines[0]


@pytest.mark.parametrize("kind", ["file", "empty folder"])
def test_the_newest_replaced_by_something_else(folder, kind):
    shutil.rmtree(folder / "300")
    (folder / "300").write_text("x") if kind == "file" else (folder / "300").mkdir()
    (found, at), lines = restore(folder)
    assert at == clock(200)
    assert is_equal(found, 200)
    assert len(lines) == 1
    assert f"checkpoint 300 is damaged (it is a{'n' * (kind != 'file')} {kind}): set aside as damaged-300" in lines[0]
    assert (folder / "damaged-300").exists()


def test_names_that_are_patterns_to_others(tmp_path):
    """Orbax would not find what it has written in [x]."""
    folder = tmp_path / "[bold]x? *" / "checkpoints"
    for value in (100, 200, 300):
        checkpoints = Checkpoints(folder, keep=2)
        checkpoints.save(state(value), clock(value), {})
        checkpoints.close()
    assert sorted(p.name for p in folder.iterdir()) == ["200", "300"]
    (found, _), lines = restore(folder)
    assert is_equal(found, 300)
    assert lines == []
    assert is_equal(load(folder.parent, abstract(), 200)[0], 200)


def test_a_save_takes_the_place_of_an_empty_folder(folder):
    (folder / "400").mkdir()
    checkpoints = Checkpoints(folder, keep=3)
    checkpoints.save(state(400), clock(400), {})
    checkpoints.close()
    (found, at), lines = restore(folder)
    assert at == clock(400)
    assert is_equal(found, 400)
    assert lines == []


def test_only_complete_checkpoints_are_listed_and_the_newest_is_loaded(folder):
    (folder / "400").mkdir()
    (folder / "500").write_text("x")
    shutil.copytree(folder / "300", folder / "600.orbax-checkpoint-tmp")
    shutil.copytree(folder / "300", folder / "0700")
    assert complete(folder.parent) == [100, 200, 300]
    assert complete(folder) == []
    with pytest.raises(InputError, match=r"checkpoint 500 is damaged \(it is a file"):  # and no older one in its place
        load(folder.parent, abstract())
    (folder / "500").unlink()
    with pytest.raises(InputError, match=r"checkpoint 400 is damaged \(it is an empty folder"):
        load(folder.parent, abstract())
    (folder / "400").rmdir()
    found, at = load(folder.parent, abstract())
    assert at == clock(300)
    assert is_equal(found, 300)
    found, at = load(folder.parent, abstract(), 100)
    assert at == clock(100)
    assert is_equal(found, 100)
    with pytest.raises(InputError, match="has no checkpoint at 400 tokens, but 100, 200, 300"):
        load(folder.parent, abstract(), 400)


def test_leftovers_of_a_killed_save_are_no_checkpoint(folder):
    shutil.copytree(folder / "300", folder / "500.orbax-checkpoint-tmp")
    (found, at), lines = restore(folder)
    assert at == clock(300)
    assert is_equal(found, 300)
    assert lines == []


def test_a_set_aside_checkpoint_is_saved_again_and_may_be_damaged_again(folder):
    for expected in (["damaged-300"], ["damaged-300", "damaged-300-2"]):
        largest = max((f for f in (folder / "300").rglob("d/*")), key=lambda f: f.stat().st_size)
        for file in (folder / "300" / "state").rglob("manifest.ocdbt"):
            file.unlink()
        checkpoints = Checkpoints(folder, keep=3)
        _, at = checkpoints.restore(abstract(), lambda line: None)
        assert at == clock(200)
        checkpoints.save(state(300), clock(300), {})
        checkpoints.close()
        assert sorted(p.name for p in folder.glob("damaged*")) == expected
        assert (folder / "damaged-300" / largest.relative_to(folder / "300")).exists() or len(expected) == 2
        assert restore(folder)[0][1] == clock(300)


def test_a_clock_whose_save_is_in_progress_is_not_saved_again(tmp_path):
    """As at the end of a run whose last step is also one of the regular saves."""
    with closing(Checkpoints(tmp_path, keep=3)) as checkpoints:
        for _ in range(2):
            checkpoints.save(state(100), clock(100), {})
    assert [path.name for path in tmp_path.iterdir()] == ["100"]


def test_all_damaged_is_refused_and_everything_left_in_place(folder):
    for file in folder.rglob("manifest.ocdbt"):
        file.unlink()
    before = sorted(folder.rglob("*"))
    for _ in range(2):
        with pytest.raises(InputError, match=r"all checkpoints are damaged .*300: .*another workdir"):
            restore(folder)
    assert sorted(folder.rglob("*")) == before


def test_what_is_saved_is_the_state_at_the_save(tmp_path):
    """Steps that donate the state go on while it is being written."""
    step = jax.jit(lambda s: jax.tree.map(lambda x: x + 1, s), donate_argnums=0)
    big = State({"a": jnp.zeros((1, 2_000_000))}, {"b": jnp.zeros((1, 50, 20_000))})
    checkpoints = Checkpoints(tmp_path / "c", keep=4)
    for i in range(1, 41):
        big = step(big)
        if i % 10 == 0:
            checkpoints.save(big, clock(i * 100), {})
    checkpoints.wait()
    for i in (10, 20, 30, 40):
        found, at = checkpoint._read(checkpoints._manager, i * 100, big)  # which compares fingerprints too
        assert {float(f(x)) for x in jax.tree.leaves(found) for f in (jnp.min, jnp.max)} == {float(i)}
        assert at == clock(i * 100)
    checkpoints.close()


@pytest.mark.parametrize("bad", [np.nan, np.inf])
def test_nothing_that_is_not_finite_is_saved(folder, bad):
    checkpoints = Checkpoints(folder, keep=3)
    broken = state(400)
    broken.params["b"]["c"] = broken.params["b"]["c"].at[0, 3, 4].set(bad)
    with pytest.raises(NonFinite, match="params/b/c is not finite at step 4, 400 tokens"):
        checkpoints.save(broken, clock(400), {})
    checkpoints.close()
    assert restore(folder)[0][1] == clock(300)


def test_a_failing_save_is_one_line(folder, monkeypatch):
    checkpoints = Checkpoints(folder, keep=3)

    def fail(*args, **kwargs):
        raise ValueError("RESOURCE_EXHAUSTED: no space left\nand a long story")

    monkeypatch.setattr(checkpoints._manager, "save", fail)
    with pytest.raises(SaveFailed, match=r"could not be saved \(RESOURCE_EXHAUSTED: no space left\)$"):
        checkpoints.save(state(400), clock(400), {})
    checkpoints.close()


def test_a_disk_that_has_filled_up_is_one_line(folder, monkeypatch):
    checkpoints = Checkpoints(folder, keep=3)
    usage = shutil.disk_usage(folder)
    monkeypatch.setattr(shutil, "disk_usage", lambda _: usage._replace(free=1_000))
    with pytest.raises(SaveFailed, match=r"0\.0 MB free, and a checkpoint needs 0\.0 MB$"):
        checkpoints.save(state(400), clock(400), {})
    checkpoints.close()
    assert restore(folder)[0][1] == clock(300)


def test_space_is_checked(tmp_path, monkeypatch):
    size = (300 + 1024 + 1) * 4
    (tmp_path / "run" / "checkpoints" / "100" / "state").mkdir(parents=True)
    usage = shutil.disk_usage(tmp_path)
    monkeypatch.setattr(shutil, "disk_usage", lambda _: usage._replace(free=3 * size))
    check_space(tmp_path / "new", 2, abstract())
    check_space(tmp_path / "run", 3, abstract())  # one of the four is there already
    with pytest.raises(InputError, match=r"0\.0 MB free, and the checkpoints need 0\.0 MB"):
        check_space(tmp_path / "new", 3, abstract())
