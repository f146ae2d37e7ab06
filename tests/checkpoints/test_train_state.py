"""Checkpoints of a run on small arrays: which are made and kept, and what disks do to them."""

import shutil
import subprocess

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tests.tiny_run import same_bits
from tpo_jax.checkpoints.train_state import CheckpointPolicy, TrainCheckpoints
from tpo_jax.errors import InputError


def state(step: int) -> dict:
    """500 KB that no compression makes smaller."""
    noise = np.random.default_rng(step).bytes(500_000)
    return {"a": jnp.array(np.frombuffer(noise, np.uint8)), "step": jnp.int32(step)}


ABSTRACT = jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype), state(0))


def where() -> dict:
    sharding = jax.sharding.SingleDeviceSharding(jax.devices()[0])
    return jax.tree.map(
        lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=sharding), ABSTRACT
    )


def save(checkpoints: TrainCheckpoints, step: int, loss: float = 0.0, **kwargs) -> None:
    checkpoints.save(step, state(step), {"next": step}, {"run": 1}, {"loss": loss}, **kwargs)


def steps(directory) -> set[str]:
    return {path.name for path in directory.iterdir()}


def assert_restores(checkpoints: TrainCheckpoints, step: int) -> None:
    found, position = checkpoints.restore(where())
    assert position == {"next": step}
    assert same_bits(jax.device_get(found), jax.device_get(state(step)))


@pytest.mark.parametrize(("best", "kept"), [("", "45"), ("min:loss", "245"), ("max:loss", "345")])
def test_the_newest_and_the_best_stay_also_across_restarts(tmp_path, best, kept):
    policy = CheckpointPolicy(checkpoint_every=1, keep_checkpoints=2, keep_best=best)
    losses = {1: 0.5, 2: 0.1, 3: 0.9, 4: 0.3, 5: 0.2}
    for part in ((1, 2, 3), (4, 5)):
        checkpoints = TrainCheckpoints(tmp_path, policy)
        for step in part:
            assert checkpoints.due(step)
            save(checkpoints, step, losses[step])
        checkpoints.close()
    assert steps(tmp_path) == set(kept)


def test_due_by_steps_by_minutes_or_not_at_all(tmp_path):
    def due(**policy):
        checkpoints = TrainCheckpoints(tmp_path / str(policy), CheckpointPolicy(**policy))
        found = [checkpoints.due(step) for step in range(1, 5)]
        checkpoints.close()
        return found

    assert due(checkpoint_every=2) == [False, True, False, True]
    assert due(checkpoint_every=0) == [False] * 4
    assert due(checkpoint_every=0, checkpoint_minutes=1e-9) == [True] * 4
    assert due(checkpoint_every=3, checkpoint_minutes=9) == [False, False, True, False]


@pytest.mark.parametrize(
    ("policy", "message"),
    [
        ({"checkpoint_every": -1}, "train.checkpoint_every=-1 must not be negative"),
        ({"checkpoint_minutes": -1.0}, "train.checkpoint_minutes=-1.0 must not be negative"),
        ({"keep_checkpoints": 0}, "train.keep_checkpoints=0 must be above 0"),
        ({"keep_best": "loss"}, "train.keep_best='loss' must be min:NAME or max:NAME"),
    ],
)
def test_wrong_policies_are_named(policy, message):
    with pytest.raises(InputError, match=message):
        CheckpointPolicy(**policy)


def test_an_unknown_metric_is_named():
    policy = CheckpointPolicy(keep_best="min:los")
    with pytest.raises(InputError, match="'min:los': no such metric; there are loss, pairs"):
        policy.check_metric(["loss", "pairs"])


@pytest.fixture(scope="module")
def two(tmp_path_factory):
    """Checkpoints of steps 1 and 2."""
    directory = tmp_path_factory.mktemp("two")
    checkpoints = TrainCheckpoints(directory, CheckpointPolicy())
    save(checkpoints, 1)
    save(checkpoints, 2)
    checkpoints.close()
    return directory


def test_a_damaged_checkpoint_never_restores_another_state(two, tmp_path, capfd):
    files = sorted(path.relative_to(two) for path in (two / "2").rglob("*") if path.is_file())
    fell_back = []
    for i, name in enumerate(files):
        for keep in (0, 0.5):
            directory = shutil.copytree(two, tmp_path / f"{i} {keep}")
            content = (directory / name).read_bytes()
            (directory / name).unlink()
            if keep:
                (directory / name).write_bytes(content[: int(keep * len(content))])
            checkpoints = TrainCheckpoints(directory, CheckpointPolicy(checkpoint_every=1))
            assert checkpoints.latest_meta() == {"run": 1}
            found, position = checkpoints.restore(where())
            step = position["next"]
            assert same_bits(jax.device_get(found), jax.device_get(state(step))), name
            said = "the checkpoint of step 2 is broken: " in capfd.readouterr().err
            assert said == (step == 1) == (directory / "2.broken").exists()
            fell_back += [name] * (step == 1)
            checkpoints.close()
    for name in files:  # those that hold values; some others are never read
        if name.parent.name == "d" or name.name == "data.json":
            assert fell_back.count(name) == 2


def test_a_broken_checkpoint_falls_back_to_the_one_before(two, tmp_path, capfd):
    directory = shutil.copytree(two, tmp_path / "checkpoints")
    shutil.rmtree(directory / "2" / "state")
    checkpoints = TrainCheckpoints(directory, CheckpointPolicy(checkpoint_every=1))
    assert_restores(checkpoints, 1)
    assert "going back to step 1" in capfd.readouterr().err
    assert checkpoints.due(2)
    save(checkpoints, 2, last=True)
    assert_restores(checkpoints, 2)
    # The same step is written anew and breaks again.
    shutil.rmtree(directory / "2" / "state")
    assert_restores(checkpoints, 1)
    checkpoints.close()
    assert steps(directory) == {"1", "2.broken", "2.broken.2"}


def test_when_all_are_broken_it_is_an_error_and_nothing_is_touched(two, tmp_path):
    directory = shutil.copytree(two, tmp_path / "checkpoints")
    for step in "12":
        shutil.rmtree(directory / step / "state")
    before = sorted(directory.rglob("*"))
    checkpoints = TrainCheckpoints(directory, CheckpointPolicy())
    with pytest.raises(InputError, match="no checkpoint can be read: .*remove the folder") as error:
        checkpoints.restore(where())
    assert "\n" not in str(error.value) and str(directory) in str(error.value)
    checkpoints.close()
    assert sorted(directory.rglob("*")) == before


def test_what_a_killed_run_had_not_finished_is_removed_and_reported(two, tmp_path, capfd):
    directory = shutil.copytree(two, tmp_path / "checkpoints")
    (directory / "2").rename(directory / "2.orbax-checkpoint-tmp")
    checkpoints = TrainCheckpoints(directory, CheckpointPolicy())
    assert "the checkpoint of step 2 was not finished" in capfd.readouterr().err
    assert checkpoints.latest_step == 1 and steps(directory) == {"1"}
    assert_restores(checkpoints, 1)
    checkpoints.close()


def test_a_full_disk_is_reported_and_the_next_try_decides(small_disk, capfd, caplog):
    directory = small_disk / "checkpoints"
    (small_disk / "ballast").write_bytes(bytes(900_000))
    checkpoints = TrainCheckpoints(directory, CheckpointPolicy(checkpoint_every=1))
    save(checkpoints, 1)
    save(checkpoints, 2)
    while checkpoints._writing is not None:  # it is found out by asking what is due
        assert checkpoints.due(3)
    message = "the checkpoint of step 2 cannot be written: "
    error = capfd.readouterr().err
    assert message in error and "No space left on device" in error and "training continues" in error
    assert steps(directory) == {"1"} and checkpoints.latest_step == 1

    (small_disk / "ballast").unlink()
    save(checkpoints, 3)  # the next try has room
    assert steps(directory) == {"1", "3"}

    (small_disk / "ballast").write_bytes(bytes(600_000))
    save(checkpoints, 4)
    with pytest.raises(OSError, match="step 5 cannot be .*; last complete checkpoint: step 3"):
        save(checkpoints, 5)
    assert_restores(checkpoints, 3)
    checkpoints.close()
    assert steps(directory) <= {"1", "3"}
    assert not [record for record in caplog.records if record.exc_info]  # lines, no stacks


def test_a_disk_that_becomes_read_only_ends_the_last_save(small_disk):
    checkpoints = TrainCheckpoints(small_disk / "checkpoints", CheckpointPolicy(checkpoint_every=1))
    save(checkpoints, 1, last=True)
    subprocess.run(["mount", "-o", "remount,ro", str(small_disk)], check=True)
    with pytest.raises(OSError, match="step 2 .*Read-only file system.*last complete.*: step 1"):
        save(checkpoints, 2, last=True)
    assert_restores(checkpoints, 1)
    checkpoints.close()
