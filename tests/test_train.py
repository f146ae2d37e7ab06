"""The train command on real shards of a tiny world: results, resuming, evaluation, refusals."""

import copy
import dataclasses
import itertools
import json
import os
import shutil
import signal
from unittest.mock import Mock

import jax
import numpy as np
import pytest

from benchmarks.torture_run import PAIRS, Run, kill_once, noting
from tests.commands import call_program
from tests.memory import wait_for_compilations
from tests.tiny_run import final_state, metrics, same_bits, tiny_config
from tpo_jax import families
from tpo_jax import train as command
from tpo_jax.checkpoints.models import load_model, save_model
from tpo_jax.data.shards import open_shards, shard_names, write_metadata, write_shard
from tpo_jax.errors import InputError
from tpo_jax.parallel.mesh import make_mesh
from tpo_jax.train import train
from tpo_jax.training import identity, loop, reference, run_page
from tpo_jax.training.experiment import read
from tpo_jax.training.run_record import load as load_run
from tpo_jax.training.step import make_scorer
from tpo_jax.training.weights import Beginning, open_weights

EPSILONS = itertools.count(2e-8, 1e-10)


@pytest.fixture
def config(tiny_world):
    return tiny_config(tiny_world)


@pytest.fixture
def programs(config):
    """The names of the programs that are compiled, in their order; no run before has left any of a
    run of `config`.
    """
    wait_for_compilations()  # of a run that was refused
    config.train.eps = next(EPSILONS)
    names = []

    def note(event, seconds, fun_name="", **_):
        if event == "/jax/core/compile/backend_compile_duration":
            names.append(fun_name)

    jax.monitoring.register_event_duration_secs_listener(note)
    yield names
    jax.monitoring.unregister_event_duration_listener(note)


def test_the_first_loss_is_ln_2_and_training_moves_the_right_way(finished_run):
    records = metrics(finished_run)
    assert [record["step"] for record in records] == [1, 2, 3, 4, 5, 6]
    assert records[0]["losses/total"] == pytest.approx(np.log(2), abs=1e-6)
    assert records[0]["rewards/margins"] == pytest.approx(0, abs=1e-5)
    # Two epochs of the same pairs.
    losses, margins = (
        np.reshape([record[name] for record in records], (2, 3)).mean(1)
        for name in ("losses/total", "rewards/margins")
    )
    assert losses[1] < losses[0] / 2 and margins[1] > margins[0] + 0.5
    assert records[-1]["rewards/accuracies"] == 1


def beginning(config) -> Beginning:
    """What a run begins with."""
    wanted = read(config)
    return open_weights(wanted, make_mesh(dataclasses.asdict(wanted.mesh)))


def test_the_model_directory_is_the_final_state(finished_run, config):
    loaded, state = load_model(finished_run / "model"), final_state(finished_run)
    tower = {"tower": jax.device_get(beginning(config).load()["tower"])}
    assert "frozen" not in state
    assert same_bits(jax.tree.map(np.asarray, loaded.params), state["params"] | tower)
    assert (loaded.tokenizer_directory / "tokenizer.json").exists()


def test_checkpoints_kept_config_and_event_files(finished_run, config):
    steps = {int(path.name) for path in (finished_run / "checkpoints").iterdir()}
    assert steps == {4, 6}
    saved = json.loads((finished_run / "config.json").read_text())
    assert saved == json.loads(config.to_json_best_effort())
    assert list((finished_run / "tensorboard").glob("events*"))


def opened(config):
    """The pairs of a run, and the reference that its first weights are."""
    experiment = read(config)
    mesh = make_mesh(dataclasses.asdict(experiment.mesh))
    begin = open_weights(experiment, mesh)
    mixture, _ = command.open_data(experiment, begin.model, begin.tokenizer, mesh)
    scorer = make_scorer(begin.model, experiment.compute)
    return mixture, reference.Reference(scorer, begin.load(), mesh)


def test_held_out_pairs_are_evaluated_exactly(finished_run, config, tiny_world):
    records = metrics(finished_run)
    evaluated = [r for r in records if "eval/losses/total" in r]
    assert [record["step"] for record in evaluated] == [2, 4, 6]
    assert all(record["eval/pairs"] == 5 for record in evaluated)  # the batch has 8
    # The trained model, scored as the reference is.
    mesh = make_mesh({"data": 1, "fsdp": 8, "tensor": 1, "context": 1})
    trained, experiment = load_model(finished_run / "model", mesh=mesh, dtype=None), read(config)
    _, held_out = command.open_data(experiment, trained.config, tiny_world / "tokenizer", mesh)
    scorer = make_scorer(trained.config, experiment.compute)
    policy = reference.Reference(scorer, trained.params, mesh).compute(held_out)
    (cache,) = (tiny_world / "held_out").glob("reference-*.npz")
    before = np.load(cache)["logps"]
    gains = 0.3 * (policy - before)
    expected = {
        "logps/chosen": policy[:, 0].mean(),
        "logps/rejected": policy[:, 1].mean(),
        "ref_logps/chosen": before[:, 0].mean(),
        "rewards/margins": (gains[:, 0] - gains[:, 1]).mean(),
        "rewards/accuracies": (gains[:, 0] > gains[:, 1]).mean(),
        "losses/total": np.log1p(np.exp(gains[:, 1] - gains[:, 0])).mean(),
    }
    found = {name: evaluated[-1][f"eval/{name}"] for name in expected}
    assert found == pytest.approx(expected, rel=1e-4, abs=1e-5)
    lines = [json.loads(x) for x in (finished_run / "metrics.jsonl").read_text().splitlines()]
    assert all(line["time/compile"] == 0 for line in lines[2:])  # one program for all of them
    assert [line["time/eval"] > 0 for line in lines] == [False, True] * 3
    assert "held out" in run_page.page("run", load_run(finished_run))


def terminate_in_step(number: int, patch: pytest.MonkeyPatch) -> None:
    """Send SIGTERM to this process in so many steps after the start of a run."""
    run = loop.run

    def terminated(length, step, *rest):
        calls = itertools.count(1)

        def call(*arguments):
            if next(calls) == number:
                os.kill(os.getpid(), signal.SIGTERM)
            return step(*arguments)

        return run(length, call, *rest)

    patch.setattr(loop, "run", terminated)


@pytest.fixture
def uncompiled(monkeypatch):
    """Compile no step beside the loading: runs end before their first one, or have its program."""
    monkeypatch.setattr(command, "compile_meanwhile", lambda step, *_, **__: step)


def test_the_first_loss_of_an_anchored_reference_is_that_of_two_sets_of_log_probabilities(
    config, tiny_world, tmp_path, uncompiled
):
    shards = shutil.copytree(
        tiny_world / "shards", tmp_path / "shards", ignore=shutil.ignore_patterns("reference-*")
    )
    source = open_shards(shards)
    records = [
        dataclasses.replace(source[i], kind="localized" if i % 2 else "comprehensive")
        for i in range(len(source))
    ]
    records = [
        dataclasses.replace(r, segment=(5.0 + i, 11.0 + i)) if i % 2 else r
        for i, r in enumerate(records)
    ]
    entry = write_shard(shards / shard_names(1)[0], records)
    manifest = {**source.manifest, "shards": [entry]}
    write_metadata(shards, [record.to_json() for record in records], manifest)
    config.data.shards, config.data.eval_shards, config.train.eval_every = str(shards), "", 0
    config.data.reference_view = "anchor"
    train(config, tmp_path / "run")
    first = metrics(tmp_path / "run")[0]
    (cache,) = shards.glob("reference-*.npz")
    known = np.load(cache)
    assert json.loads(str(known["key"]))["view"] == "anchor"

    mixture, base = opened(config)
    (pairs,) = mixture.parts
    index = pairs[0].pair_index.ravel()
    policy = base.compute(pairs)[index]
    anchor = known["logps"][index]
    ratios = policy - anchor
    loss = np.log1p(np.exp(-0.3 * (ratios[:, 0] - ratios[:, 1]))).mean()
    assert first["losses/total"] == pytest.approx(loss, rel=1e-5)
    assert abs(first["losses/total"] - np.log(2)) > 1e-4
    assert first["ref_logps/chosen"] == pytest.approx(anchor[:, 0].mean(), rel=1e-5)
    same = index % 2 == 0  # comprehensive pairs: all frames
    np.testing.assert_allclose(ratios[same], 0, atol=1e-4)
    assert np.abs(ratios[~same]).max() > 1e-3

    config.data.reference_view = "same"
    with pytest.raises(InputError, match="reference_view: 'anchor' -> 'same'"):
        train(config, tmp_path / "run")
    config.data.reference, config.data.reference_view = str(cache), "same"
    with pytest.raises(InputError, match="stale, computed with other view;"):
        train(config, tmp_path / "other")


def test_a_run_killed_in_a_save_and_stopped_resumes_bit_for_bit(
    finished_run, config, tiny_arguments, tiny_variables, compiled, tmp_path, monkeypatch
):
    # `benchmarks/torture.py` does this for long.
    run = Run(tmp_path / "work", tiny_arguments, compiled, tiny_variables)
    assert kill_once(run, "in a save", "KILL").code == -signal.SIGKILL
    with (run.workdir / "metrics.jsonl").open("a") as file:
        file.write('{"step": 4, "losses')  # what a full disk or a kill at the wrong time leaves
    # This process has the programs.
    monkeypatch.setenv(PAIRS, f"{run.workdir}.pairs")
    monkeypatch.setattr(loop, "run", noting(loop.run))
    with monkeypatch.context() as patch:
        terminate_in_step(1, patch)
        assert train(config, run.workdir) is None
    stopped = run.records()[-1]["step"]
    assert stopped < 6 and (run.workdir / "checkpoints" / str(stopped)).is_dir()
    config.data.workers = 1
    assert train(config, run.workdir) == run.workdir / "model"
    assert run.records() == metrics(finished_run)
    assert same_bits(final_state(run.workdir), final_state(finished_run))
    taken = run.pairs()
    assert sorted(taken) == list(range(6)) and all(len(rows) == 1 for rows in taken.values())


def test_bad_pairs_are_counted_once_each_also_after_a_restart(
    config, tiny_world, tmp_path, monkeypatch
):
    shards = shutil.copytree(tiny_world / "shards", tmp_path / "shards")
    source = open_shards(shards)
    records = [
        dataclasses.replace(r, video_digest="0" * 64) if i in (3, 9) else r
        for i, r in enumerate(source)
    ]
    entry = write_shard(shards / shard_names(1)[0], records)
    write_metadata(
        shards, (record.to_json() for record in records), source.manifest | {"shards": [entry]}
    )
    config.data.shards, config.data.on_error = str(shards), "skip_and_count"
    config.train.eval_every = 0
    workdir = tmp_path / "work"
    with monkeypatch.context() as patch:
        terminate_in_step(3, patch)
        assert train(config, workdir) is None
    config.data.workers = 1
    assert train(config, workdir) == workdir / "model"
    found = metrics(workdir)
    skipped = [record["skipped"] for record in found]
    assert [record["step"] for record in found] == [1, 2, 3, 4, 5, 6]
    assert skipped == sorted(skipped) and skipped[2] == 2 and skipped[5] == 4  # two epochs
    left_out = np.diff([0, *skipped])
    assert [record["pairs"] for record in found] == (8 - left_out).tolist()


def test_several_numbers_of_frames_resume_bit_for_bit_with_the_reference_of_each(
    config, tiny_world, tmp_path, programs
):
    """Every batch has the reference of its number of frames; one program for each is compiled."""
    shards, (whole, parts) = tmp_path / "shards", (tmp_path / "whole", tmp_path / "parts")
    shutil.copytree(tiny_world / "shards", shards, ignore=shutil.ignore_patterns("reference-*"))
    config.data.shards, config.data.num_frames = str(shards), (4, 8)
    train(config, whole)
    found = metrics(whole)
    assert programs.count("jit(step)") == 2
    lines = [json.loads(x) for x in (whole / "metrics.jsonl").read_text().splitlines()]
    assert all(line["time/compile"] == 0 for line in lines[2:])  # after the first evaluation
    assert found[0]["losses/total"] == pytest.approx(np.log(2), abs=1e-6)
    assert np.mean([r["losses/total"] for r in found[3:]]) < 0.5

    mixture, base = opened(config)
    (pairs,) = mixture.parts
    logps = {n: base.compute(pairs.once(num_frames=n)) for n in (4, 8)}
    assert {pairs.frames_of(k) for k in (0, 1, 2)} == {pairs.frames_of(k) for k in (3, 4, 5)}
    for k, record in enumerate(found):
        expected = logps[pairs.frames_of(k)][pairs[k].pair_index.ravel()].mean(0)
        assert record["frames"] == pairs.frames_of(k)
        values = [record["ref_logps/chosen"], record["ref_logps/rejected"]]
        assert values == pytest.approx(expected.tolist(), rel=1e-5)
    assert np.abs(logps[4] - logps[8]).mean() > 1e-2  # so another one's would be noticed

    shutil.copytree(whole, parts)
    shutil.rmtree(parts / "checkpoints" / "6")
    shutil.rmtree(parts / "model")
    caches = set(shards.glob("reference-*.npz"))
    train(config, parts)
    assert set(shards.glob("reference-*.npz")) == caches and len(caches) == 2
    assert metrics(parts) == found and same_bits(final_state(parts), final_state(whole))


def test_replayed_directories_have_a_reference_each_and_resume_bit_for_bit(
    config, tiny_world, tmp_path, programs
):
    whole, parts = tmp_path / "whole", tmp_path / "parts"
    ignored = shutil.ignore_patterns("reference-*")
    folders = [
        shutil.copytree(tiny_world / name, tmp_path / name, ignore=ignored)
        for name in ("shards", "held_out")
    ]
    config.data.shards, config.data.replay = str(folders[0]), (str(folders[1]),)
    config.data.eval_shards, config.train.eval_every = "", 0
    config.train.num_epochs = 1
    train(config, whole)
    found = metrics(whole)
    assert programs.count("jit(step)") == 1
    assert found[0]["losses/total"] == pytest.approx(np.log(2), abs=1e-5)
    caches = [list(folder.glob("reference-*.npz")) for folder in folders]
    assert [len(files) for files in caches] == [1, 1]

    mixture, _ = opened(config)
    logps = np.concatenate([np.load(path)["logps"] for (path,) in caches])
    used = [mixture.place(k)[0] for k in range(len(mixture))]
    assert used.count(0) == 3 and used.count(1) > 0 and len(found) == len(mixture)
    assert sum(record["pairs"] for record in found) == 24 + 5 * used.count(1)
    for k, record in enumerate(found):
        index = mixture[k].pair_index.ravel()
        expected = logps[index[index >= 0]].mean(0).tolist()
        assert [record["ref_logps/chosen"], record["ref_logps/rejected"]] == pytest.approx(
            expected, rel=1e-5
        )

    last = len(found)
    shutil.copytree(whole, parts)
    shutil.rmtree(parts / "checkpoints" / str(last))
    shutil.rmtree(parts / "model")
    train(config, parts)
    assert metrics(parts) == found
    assert same_bits(final_state(parts, last), final_state(whole, last))
    assert [list(folder.glob("reference-*.npz")) for folder in folders] == caches
    config.data.replay_weights = (3.0, 1.0)
    with pytest.raises(InputError, match="data.replay_weights: "):
        train(config, whole)
    config.data.replay_weights, config.data.replay = (), (str(tiny_world / "shards"),)
    with pytest.raises(InputError, match="hold the same pairs"):
        train(config, whole)


def test_adapters_alone_train_resume_bit_for_bit_and_are_merged(
    config, tmp_path, finished_run, monkeypatch
):
    config.lora.rank = 2
    config.train.eval_every = 0
    config.train.freeze = ("tower", "projector")
    config.train.num_steps = 3
    config.train.learning_rate = 1e-2
    whole, parts = tmp_path / "whole", tmp_path / "parts"
    train(config, whole)
    with monkeypatch.context() as patch:
        terminate_in_step(1, patch)
        assert train(config, parts) is None
    assert [record["step"] for record in metrics(parts)] == [1]
    assert [path.name for path in (parts / "checkpoints").iterdir()] == ["1"]
    assert train(config, parts) == parts / "model"
    assert metrics(parts) == metrics(whole)
    assert metrics(whole)[0]["losses/total"] == pytest.approx(np.log(2), abs=1e-6)
    state = final_state(parts, 3)
    assert same_bits(state, final_state(whole, 3))
    assert state["params"].keys() == {"decoder"}

    base = jax.device_get(beginning(config).load())
    merged = jax.device_get(load_model(parts / "model").params)
    layers, adapters = base["decoder"]["layers"], state["params"]["decoder"]["layers"]
    for name, part in adapters.items():
        product = np.einsum("lir,lro->lio", part["lora_a"], part["lora_b"]) * 16 / 2
        expected = layers[name]["kernel"] + product
        kernel = merged["decoder"]["layers"][name].pop("kernel")
        np.testing.assert_allclose(kernel, expected, atol=1e-6)
        assert np.abs(kernel - layers[name].pop("kernel")).max() > 1e-4
    assert same_bits(merged, base)
    files = {path.name for path in (parts / "adapters").iterdir()}
    assert files == {"adapter_config.json", "adapter_model.safetensors"}
    assert not (finished_run / "adapters").exists()


def test_adapters_on_a_quantized_decoder(config, tmp_path, tiny_world, small_model, programs):
    """The first loss, a resume to the bit, and the result: the checkpoint's own weights, merged."""
    base = small_model / "good"
    config.model.preset, config.model.tokenizer = "", ""
    config.model.checkpoint, config.model.weights = str(base), "int8"
    config.lora.rank = 2
    config.train.eval_every, config.train.num_steps = 0, 3
    config.train.freeze = ("tower", "projector")
    config.train.learning_rate = 1e-2
    whole, parts = tmp_path / "whole", tmp_path / "parts"
    caches = set((tiny_world / "shards").glob("reference-*.npz"))
    train(config, whole)
    assert programs.count("jit(step)") == 1  # the one that was compiled beside the loading
    (cache,) = set((tiny_world / "shards").glob("reference-*.npz")) - caches
    assert metrics(whole)[0]["losses/total"] == pytest.approx(np.log(2), abs=1e-6)
    assert beginning(config).abstract["decoder"]["layers"]["q"]["kernel"].dtype == np.int8
    state = final_state(whole, 3)

    shutil.copytree(whole, parts)
    shutil.rmtree(parts / "checkpoints" / "3")
    shutil.rmtree(parts / "model")
    train(config, parts)
    assert programs.count("jit(step)") == 1  # found again
    assert same_bits(final_state(parts, 3), state)
    cache.unlink()

    mesh = make_mesh({"data": 1, "fsdp": 8, "tensor": 1, "context": 1})
    expected = load_model(base, mesh=mesh, dtype=None, adapters=whole / "adapters").params
    found = load_model(parts / "model", mesh=mesh, dtype=None).params
    assert same_bits(jax.device_get(found), jax.device_get(expected))
    changed = found["decoder"]["layers"]["q"]["kernel"]
    original = load_model(base, mesh=mesh).params["decoder"]["layers"]["q"]["kernel"]
    assert np.abs(changed - original).max() > 1e-4


def test_a_checkpoint_of_another_run_is_refused(finished_run, config, uncompiled):
    before = (finished_run / "metrics.jsonl").read_bytes()
    config.train.learning_rate = 1e-4
    config.objective.beta = 0.1
    config.train.log_every = 5  # may change
    config.data.workers = 1
    with pytest.raises(InputError, match="another run") as error:
        train(config, finished_run)
    assert "objective.beta: 0.3 -> 0.1, train.learning_rate: 0.001 -> 0.0001)" in str(error.value)
    assert "workers" not in str(error.value) and "log_every" not in str(error.value)
    assert (finished_run / "metrics.jsonl").read_bytes() == before


def test_a_run_of_before_a_field_was_there_resumes_with_its_default(config):
    saved = {"identity": {}, "config": json.loads(config.to_json_best_effort())}
    now = copy.deepcopy(saved)
    del saved["config"]["data"]["num_frames_weights"]
    identity.check_same_run(saved, now)
    now["config"]["data"]["num_frames_weights"] = [1, 2]
    with pytest.raises(InputError, match=r"data.num_frames_weights: \[\] -> \[1, 2\]"):
        identity.check_same_run(saved, now)


def test_a_checkpoint_of_other_weights_is_refused(finished_run, config, monkeypatch, uncompiled):
    monkeypatch.setattr(identity, "weights_fingerprint", lambda _: "others")
    monkeypatch.setattr(reference.Reference, "compute", None)  # not reached
    with pytest.raises(InputError, match="of a run with other weights;"):
        train(config, finished_run)


def test_the_reference_is_computed_once_and_a_stale_one_refused(
    finished_run, tiny_world, config, tmp_path, capfd, monkeypatch, uncompiled
):
    (cache,) = (tiny_world / "shards").glob("reference-*.npz")
    written = cache.stat().st_mtime_ns
    with monkeypatch.context() as patch:  # the run itself is not needed
        patch.setattr(loop, "run", Mock(side_effect=InterruptedError))
        for given in ("", str(cache)):
            config.data.reference = given
            with pytest.raises(InterruptedError):
                train(config, tmp_path / "work")

    config.model.preset = config.model.tokenizer = ""
    config.model.checkpoint = str(finished_run / "model")
    with pytest.raises(InputError, match="stale, computed with other weights;"):
        train(config, tmp_path)
    config.data.num_frames = 4
    with pytest.raises(InputError, match="stale, computed with other sampling, weights;"):
        train(config, tmp_path)
    config.data.prompt_style = "dpo_trainer"
    with pytest.raises(InputError, match="stale, computed with other sampling, template, weights;"):
        train(config, tmp_path)
    config.data.reference = str(tiny_world / "pairs.jsonl")
    with pytest.raises(InputError, match=r"pairs\.jsonl: not a cache of reference log-prob"):
        train(config, tmp_path)
    assert "computing reference" not in capfd.readouterr().err
    assert cache.stat().st_mtime_ns == written
    assert not [path for path in tmp_path.glob("*") if path.is_file()]


@pytest.fixture(scope="module")
def small_model(tiny_world, tmp_path_factory):
    """A model directory smaller than the preset, and one whose head overflows."""
    root = tmp_path_factory.mktemp("models")
    tiny = families.preset("tiny_longva")
    model = dataclasses.replace(
        tiny,
        tower=dataclasses.replace(tiny.tower, width=32, heads=2, mlp_width=32),
        decoder=dataclasses.replace(
            tiny.decoder, width=32, layers=1, heads=2, kv_heads=1, head_dim=16, mlp_width=32
        ),
    )
    params = families.init_params(model, seed=0)
    save_model(root / "good", model, params, tiny_world / "tokenizer")
    params["decoder"]["head"]["kernel"] *= 1e38
    save_model(root / "bad", model, params, tiny_world / "tokenizer")
    return root


@pytest.fixture
def supervised(config, small_model):
    config.model.preset = config.model.tokenizer = ""
    config.model.checkpoint = str(small_model / "good")
    config.objective.dpo_weight, config.objective.alpha = 0.0, 1.0
    config.train.num_epochs = 1
    config.train.eval_every = 0
    config.train.log_every = config.train.checkpoint_every = 2
    return config


def test_supervised_training_reads_chosen_answers_only(supervised, tmp_path, monkeypatch, programs):
    monkeypatch.setattr(reference.Reference, "logps", None)
    supervised.data.shuffle = False
    supervised.train.num_epochs, supervised.train.log_every = 2, 1
    train(supervised, tmp_path)
    assert programs.count("jit(step)") == 1
    records = metrics(tmp_path)
    assert [record["step"] for record in records] == [1, 2, 3, 4, 5, 6]
    assert records[-1]["losses/total"] == records[-1]["losses/sft"]
    for first, again in zip(records[:3], records[3:], strict=True):  # the same pairs
        assert again["losses/sft"] < first["losses/sft"]
    assert not [name for name in records[0] if "rejected" in name or "rewards" in name]


@pytest.mark.parametrize("token_kl", [0.0, 0.1])
def test_phrase_rewards_from_the_cache_and_from_a_live_reference(
    supervised, tiny_world, tmp_path, monkeypatch, programs, token_kl
):
    config, kept = supervised, []
    config.objective.loss, config.objective.token_kl = "rrpo", token_kl
    config.objective.dpo_weight, config.objective.alpha = 1.0, 0.0
    config.train.num_steps, config.train.log_every = 2, 1
    monkeypatch.setattr(reference, "save", lambda path, key, logps: kept.append(logps))
    train(config, tmp_path)
    assert programs.count("jit(step)") == 1
    first, second = metrics(tmp_path)
    # The first step starts from the reference.
    assert first["losses/rrpo"] == pytest.approx(np.log(2), abs=1e-5)
    assert first["kl/chosen"] == pytest.approx(0, abs=1e-4)
    assert second["losses/rrpo"] < first["losses/rrpo"] - 1e-3
    if token_kl:
        assert not kept
        assert first["losses/token_kl"] == pytest.approx(0, abs=1e-5)
        assert second["losses/token_kl"] > 1e-4
    else:
        (logps,) = kept
        assert logps.shape[1] == 4 and np.isfinite(logps).all()


def test_the_best_checkpoint_by_held_out_pairs_of_a_share_stays(supervised, tmp_path, capfd):
    config = supervised
    config.objective.dpo_weight, config.objective.alpha = 1.0, 0.0
    config.data.eval_shards, config.data.eval_share = "", 0.34
    config.train.num_steps, config.train.eval_every = 6, 2
    config.train.checkpoint_every = config.train.keep_checkpoints = 1
    config.train.keep_best = "max:eval/losses/total"  # not the last one
    train(config, tmp_path)
    losses = {r["step"]: r["eval/losses/total"] for r in metrics(tmp_path) if "eval/pairs" in r}
    assert losses.keys() == {2, 4, 6} and len(set(losses.values())) == 3
    kept = {int(path.name) for path in (tmp_path / "checkpoints").iterdir()}
    assert kept == {max(losses, key=lambda step: losses[step]), 6}
    shown = capfd.readouterr().err
    assert shown.count("8 held-out pairs: ") == 3 and "data.eval_shards" not in shown


def test_a_metric_that_is_not_finite_stops_with_step_pairs_and_checkpoint(
    supervised, small_model, tiny_world, tmp_path
):
    supervised.model.checkpoint = str(small_model / "bad")
    with pytest.raises(InputError) as error:
        train(supervised, tmp_path)
    message = str(error.value)
    assert message.startswith("step 1: ") and "losses/total" in message
    assert message.endswith("last good checkpoint: none") and "\n" not in message
    pairs = message.partition("batch: ")[2].partition(";")[0].split(", ")
    assert len(set(pairs)) == 8
    assert not list((tmp_path / "checkpoints").iterdir())


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"train.batch_size": 12}, "12 rows per batch do not divide over data.fsdp=8; use 8 or 16"),
        ({"compute.micro_batches": 2}, "8 rows .* data.fsdp.micro_batches=16"),
        ({"compute.remat": "some"}, "compute.remat='some' is unknown"),
        ({"compute.remat": "qkv:disk"}, "places save, offload, recompute"),
        ({"compute.dtype": "float8"}, "compute.dtype='float8' must be one of"),
        ({"objective.beta": 0.0}, "objective.beta=0.0 must be above 0"),
        ({"objective.loss": "dpo"}, "objective.loss='dpo': no loss 'dpo'; there are sigmoid"),
        ({"train.num_epochs": 0}, "one of train.num_steps and train.num_epochs"),
        ({"train.log_every": 0}, "train.log_every=0 must be above 0"),
        ({"train.freeze": ("towers",)}, "train.freeze names .'towers'."),
        ({"train.freeze": ({},)}, "train.freeze names .{}."),
        ({"lora.targets": ({}, "q_proj")}, r"lora.targets=\({}, 'q_proj'\) must be some of"),
        ({"mesh.data": 3, "mesh.fsdp": 1}, "mesh .* does not fit 8 devices"),
        ({"model.preset": ""}, "one of model.checkpoint and model.preset"),
        ({"model.preset": "tiny"}, "model.preset='tiny' is unknown; choose one of"),
        ({"model.tokenizer": ""}, "needs model.tokenizer"),
        ({"train.warmup_ratio": 2.0}, "train.warmup_ratio=2.0 must be between 0 and 1"),
        (
            {"data.sampling": "often"},
            "must be one of uniform, fps, two_fps, two_fps_pairs, nearest, forced",
        ),
        ({"data.shards": "nowhere"}, "nowhere/manifest.json: no such file"),
        ({"data.eval_shards": "nowhere"}, "nowhere/manifest.json: no such file"),
        ({"data.eval_shards": ""}, "train.eval_every=2 needs held-out pairs: data.eval_shards or"),
        ({"data.eval_share": 0.5}, "data.eval_shards and data.eval_share are both given"),
        ({"data.eval_shards": "", "data.eval_share": 0.99}, "leaves none of 6 videos to train on"),
        ({"data.reference_view": "anchor"}, "reference_view=anchor is for an objective that reads"),
        ({"train.eval_every": -1}, "train.eval_every=-1 must not be negative"),
        ({"train.keep_best": "max:eval/rewards/margin"}, "no such metric; there are eval/"),
        (
            {"train.keep_best": "min:eval/losses/total", "train.eval_every": 0},
            "no such metric; there are grad_norm",
        ),
        (
            {"train.keep_best": "min:eval/losses/total", "train.checkpoint_every": 3},
            "of train.checkpoint_every=3 and train.eval_every=2 one must be a multiple",
        ),
    ],
)
def test_wrong_configs_are_named_before_anything_is_written(config, tmp_path, changes, message):
    with config.unlocked():
        config.update_from_flattened_dict(changes)
    config.objective.dpo_weight, config.objective.alpha = 0.0, 1.0
    with pytest.raises(InputError, match=message) as error:
        train(config, tmp_path)
    assert "\n" not in str(error.value)
    assert not list(tmp_path.iterdir())


def test_a_file_with_the_name_of_the_working_directory_is_named(config, tmp_path):
    (tmp_path / "work").write_text("mine")
    with pytest.raises(InputError, match="work cannot be a directory: File exists"):
        train(config, tmp_path / "work")
    assert (tmp_path / "work").read_text() == "mine"


@pytest.mark.parametrize("kind", ["pairs", "videos"])
def test_a_truncated_shard_is_named(config, tiny_world, tmp_path, kind):
    shards = tmp_path / "shards"
    shutil.copytree(tiny_world / "shards", shards)
    damaged = next(shards.rglob(f"tpo_{kind}-*array_record*"))
    damaged.write_bytes(damaged.read_bytes()[:-100])
    config.data.shards = str(shards)
    with pytest.raises(InputError, match=damaged.name) as error:
        train(config, tmp_path / "work")
    assert "\n" not in str(error.value)


def test_wrong_flags_give_one_line(tmp_path):
    expected = {
        "--config.objective.gama=1": "--config has no such field: gama",
        "--config.train.batch_size=many": "--config.train.batch_size=many: invalid literal",
        "--config=configs/nowhere.py": "No such file or directory: 'configs/nowhere.py'",
        "--config=gs://bucket/tiny.py": "gs://bucket/tiny.py: must be a file on this machine",
        "--config=configs/tiny.py:more": "unknown variant 'more'; there are tpo, ",
        "--distributed=somewhere": "--distributed=somewhere is neither 'auto' nor HOST:PORT",
        "--config.model.preset=tiny": "model.preset='tiny' is unknown; choose one of",
    }
    fixed, config = [f"--workdir={tmp_path / 'work'}"], ["--config=configs/tiny.py"]
    results = call_program(
        "train",
        *([*fixed, *config * (not flag.startswith("--config=")), flag] for flag in expected),
    )
    assert len(results) == len(expected)
    for (code, out, err), message in zip(results, expected.values(), strict=True):
        assert (code, out) == (2, "")
        assert err.startswith("error: ") and message in err and err.count("\n") == 1
    assert not list(tmp_path.iterdir())
