"""The step compiled by the TPU compiler, without a TPU."""

import dataclasses
import shutil
from pathlib import Path

import hypothesis
import hypothesis.strategies as st
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import P

from tests.commands import call_program
from tests.memory import free_programs
from tests.planning import figures
from tests.planning.slice import SLICE, experiment
from tpo_jax import families
from tpo_jax.checkpoints.models import save_model
from tpo_jax.errors import InputError
from tpo_jax.models.batch import BatchShape
from tpo_jax.models.vlm import cast
from tpo_jax.parallel.mesh import make_mesh
from tpo_jax.plan import report
from tpo_jax.planning import hlo
from tpo_jax.planning import program as planned_program
from tpo_jax.planning.inference import compile_command
from tpo_jax.planning.plan import (
    CHIPS,
    Plan,
    batch_shape,
    compile_step,
    devices_of,
    minimum_flops,
)
from tpo_jax.planning.program import (
    Program,
    cached_program,
    memory_asked,
    without_source_lines,
)
from tpo_jax.planning.search import frames_of, most_frames, smallest_slice
from tpo_jax.training.experiment import Source, base, read
from tpo_jax.training.weights import open_weights, stored_weights

ROOT = Path(__file__).resolve().parents[2]
PLAN = ROOT / "docs/results/plan.md"


@pytest.fixture(scope="module")
def libtpu():
    pytest.importorskip("libtpu", reason="the TPU compiler is not installed (pip install libtpu)")
    jax.devices()  # with the flags of these tests, of which libtpu does not know all
    with pytest.MonkeyPatch.context() as patch, jax.default_matmul_precision("default"):
        patch.setenv("XLA_FLAGS", "--xla_backend_optimization_level=0")
        yield  # the precision is that outside of tests


@pytest.fixture(autouse=True)
def drop_plans(request):
    """Free what a slow test compiled: the compiler's memory adds up to 3 GB."""
    yield
    if request.node.get_closest_marker("slow"):
        free_programs()


@pytest.fixture
def kept(tmp_path):
    """A copy of the figures that were kept; a program that they lack is compiled."""
    return shutil.copytree(figures.FOLDER, tmp_path / "figures")


TWO_SLICES = {"mesh__data": 2, "train__batch_size": 8}


@pytest.mark.tpu_compiler
@pytest.mark.slow
def test_step_of_two_slices(libtpu):
    plan, compiled = compile_step(experiment(**TWO_SLICES), SLICE, "v5e:2x4", 2)
    assert plan.fits and (plan.devices, plan.chips) == (16, 16)
    assert "16 chips" in report(plan)
    # Donated: the new state lies where the old one lay.
    assert plan.memory["alias"] >= 0.99 * plan.memory["output"]
    # The weights are gathered, in bf16, for forward and backward pass, and not more often.
    weights = sum(
        x.size for x in jax.tree.leaves(families.abstract_params(SLICE)["decoder"]["layers"])
    )
    gathered = plan.collectives["all-gather"][1]
    assert 2 * 2 * weights <= gathered <= 3 * 2 * weights + 2e7
    # Full remat and scores; blocks half masked and answers on every chip are the rest.
    assert 1.2 <= plan.flops / plan.minimum_flops <= 1.8
    once = plan.flops - plan.recomputed - plan.scores
    assert plan.recomputed and plan.scores and 1.0 <= once / plan.minimum_flops <= 1.2
    text = compiled.as_text()
    assert "splash_mha_dkv" in text and "splash_mha_dq" in text
    # No chip holds the scores of the prefix, nor all of its positions at full width.
    for bad in ("1536,1536]", "1,1536,512]"):
        assert bad not in text


@pytest.mark.tpu_compiler
def test_live_reference_is_planned(libtpu, monkeypatch):
    """What is compiled takes a copy of the trained weights and has their forward
    pass. Compiling it would take a minute.
    """

    class Lowered(Exception):
        pass

    def stop(lowered, mesh):
        raise Lowered(lowered)

    monkeypatch.setattr("tpo_jax.planning.plan.compile_program", stop)

    def lowered(**changes):
        with pytest.raises(Lowered) as found:
            compile_step(experiment(**TWO_SLICES, **changes), SLICE, "v5e:2x4", 2)
        return found.value.args[0]

    cached, live = lowered(), lowered(objective__loss="rrpo", objective__token_kl=0.01)
    _, named = live.args_info
    (state, _), _ = cached.args_info
    trained = {k: v for k, v in state.params.items() if k != "tower"}
    shapes = lambda tree: jax.tree.map(lambda x: x.shape, tree)  # noqa: E731
    assert shapes(named["reference"]) == shapes(trained)
    assert {x.dtype for x in jax.tree.leaves(named["reference"])} == {jnp.dtype("bfloat16")}
    products = [program.as_text().count("stablehlo.dot_general") for program in (cached, live)]
    assert products[1] > 1.1 * products[0]


@pytest.mark.tpu_compiler
@pytest.mark.slow
def test_step_of_chips_that_are_two_devices(libtpu, kept):
    plan = figures.chips_that_are_two_devices(kept)
    assert plan.fits and (plan.devices, plan.chips) == (8, 4)
    assert "4 chips" in report(plan)


@pytest.mark.tpu_compiler
@pytest.mark.slow
def test_programs_that_answer(libtpu):
    config = experiment(data__max_prefix=0, data__max_response=0, data__num_frames=8)
    config.model.weights = "int8"
    plan = compile_command(config, SLICE, "v5e:2x4", "evaluate")
    assert plan.fits and plan.pairs == 8 and list(plan.seconds) == ["prefill", "decode"]
    # Fifteen runs of the decoder after the first token, whose loop ends by its data.
    assert 1.0 <= plan.flops / plan.minimum_flops <= 1.05


def published():
    """The rows of docs/results/plan.md by model and frames."""
    rows = [line.split("|")[1:-1] for line in PLAN.read_text().splitlines() if line[:2] == "| "]
    head, *rows = ([cell.strip() for cell in row] for row in rows)
    return {(row[0], row[2]): dict(zip(head, row, strict=True)) for row in rows}


@pytest.mark.parametrize(("weights", "most"), [("", 16.1e9), ("int8", 9.6e9), ("int4", 6.6e9)])
def test_a_7b_base_counts_as_it_was_published_or_quantized(weights, most):
    source = Source(preset="llava_video_7b", weights=weights)
    stored = jax.tree.leaves(stored_weights(source, families.preset(source.preset)))
    bits = sum(x.size * jax.dtypes.itemsize_bits(x.dtype) for x in stored)
    assert most - 0.2e9 < bits / 8 < most


@pytest.mark.parametrize("source", ["preset", "checkpoint", "quantized checkpoint"])
def test_weights_count_as_train_loads_them(tmp_path, tiny_world, monkeypatch, source):
    config, model = base(), families.preset("tiny_longva")
    config.train.freeze = ("tower", "decoder")
    if source == "preset":
        dtypes = families.of(model).preset_dtypes
        monkeypatch.setitem(dtypes, "tiny_longva", "bfloat16")
        config.model.preset = "tiny_longva"
        config.model.tokenizer = str(tiny_world / "tokenizer")
    else:
        params = cast(families.init_params(model, 0), "bfloat16")
        params["tower"] = cast(params["tower"], "float32")  # a tower that was stored elsewhere
        save_model(tmp_path / "model", model, params, None)
        config.model.checkpoint = str(tmp_path / "model")
        config.model.weights = "int4" if source.startswith("quantized") else ""
    wanted = read(config)
    mesh = make_mesh(dataclasses.asdict(wanted.mesh))
    begin = open_weights(wanted, mesh)
    assert jax.tree.map(lambda x: x.dtype, begin.load()) == jax.tree.map(
        lambda x: x.dtype, stored_weights(wanted.source, begin.model)
    )


def test_figures_are_found_wherever_the_project_lies(tmp_path, monkeypatch):
    """A kernel of the same lines in another file is the same program; one of others is not."""
    source = """
import jax
import jax.numpy as jnp
from jax.experimental import pallas as pl

def kernel(x, y):
    y[...] = x[...] + {added}

def program(x):
    return pl.pallas_call(kernel, out_shape=jax.ShapeDtypeStruct(x.shape, x.dtype))(x)
"""
    monkeypatch.setattr(planned_program, "compile_program", lambda *_: Program(1.0))
    monkeypatch.setattr(planned_program.importlib.metadata, "version", lambda _: "1")
    folder, mesh = tmp_path / "figures", jax.sharding.Mesh(jax.devices(), "all")

    def kept(file, added):
        made = {}
        exec(compile(source.format(added=added), file, "exec"), made)
        traced = jax.jit(made["program"]).trace(jax.ShapeDtypeStruct((8, 128), jnp.float32))
        with without_source_lines():
            lowered = traced.lower(lowering_platforms=("tpu",))
        cached_program(lowered, mesh, folder)
        return {path.name for path in folder.iterdir()}

    one = kept("/here/kernel.py", added=1)
    assert len(one) == 1 and kept("/there/long/name.py", added=1) == one
    assert len(kept("/here/kernel.py", added=2)) == 2


def test_every_published_row_fits():
    rows = published()
    assert set(rows) >= {
        ("llava_onevision_0.5b", "32"),
        ("llava_onevision_7b", "32"),
        ("llava_video_7b", "32"),
        ("llava_onevision_72b", "32"),
        ("llava_video_72b", "32"),
        ("llava_video_7b", "64"),
        ("llava_video_7b", "128"),
        ("llava_video_7b", "512"),
        ("longva_7b", "1,024"),
        ("longva_7b", "3,000"),
    }
    for name, row in rows.items():
        assert float(row["peak, GiB"]) <= float(row["limit"]), name


@pytest.mark.tpu_compiler
@pytest.mark.slow
def test_a_published_row_is_what_the_compiler_says(libtpu, kept):
    """As `benchmarks/plan.py` compiles it."""
    line = figures.benchmark.line(figures.benchmark.ROWS[0], figures.published_row(kept))
    assert line in PLAN.read_text().splitlines()


@pytest.mark.tpu_compiler
@pytest.mark.parametrize(
    ("topology", "slices", "devices"),
    [
        ("v4:2x2x1", 1, 4),
        ("v5e:4x4", 2, 32),
        ("v5p:2x2x1", 1, 4),
        ("v6e:2x4", 1, 8),
        ("tpu7x:2x2x1", 1, 8),  # two devices a chip
    ],
)
def test_memory_limit_of_each_chip_is_the_compilers(libtpu, topology, slices, devices):
    found = devices_of(topology, slices)
    assert len(found) == devices
    mesh = jax.sharding.Mesh(np.array(found), ("all",))
    huge = jax.ShapeDtypeStruct((2**38,), jnp.int8, sharding=jax.NamedSharding(mesh, P()))
    limit = CHIPS[topology.split(":")[0]].hbm
    message = rf"available HBM \({limit:.2f}G\)"
    with pytest.raises(jax.errors.JaxRuntimeError, match=message) as raised:
        jax.jit(lambda x: x + 1).lower(huge).compile()
    assert memory_asked(raised.value) >= 2**38
    with pytest.raises(ValueError, match="another"):
        memory_asked(ValueError("another"))


@pytest.mark.tpu_compiler
def test_only_rows_are_split_over_the_network_between_slices(libtpu):
    devices = devices_of("v5e:2x4", 2)
    mesh = make_mesh({"data": 4, "fsdp": -1, "tensor": 1, "context": 1}, devices)
    slices = np.vectorize(lambda device: device.slice_index)(mesh.devices)
    assert mesh.devices.shape == (4, 4, 1, 1)
    assert (slices == np.array([0, 0, 1, 1]).reshape(4, 1, 1, 1)).all()
    # Axes of the mesh that no axis of a slice is as long as.
    split = make_mesh({"data": 2, "fsdp": 8, "tensor": 1, "context": 2}, devices_of("v5e:4x4", 2))
    assert split.devices.shape == (2, 8, 1, 2)
    with pytest.raises(InputError, match="mesh.data=1 must be a multiple of the 2 slices"):
        make_mesh({"data": 1, "fsdp": -1, "tensor": 1, "context": 1}, devices)


@pytest.mark.tpu_compiler
def test_work_of_a_known_program(libtpu):
    mesh = make_mesh({"data": 1, "fsdp": 8, "tensor": 1, "context": 1}, devices_of("v5e:2x4"))
    L, n = 5, 1024

    def program(x, weights):
        return jax.lax.scan(lambda x, w: (jnp.tanh(x @ w), None), x, weights)[0]

    def placed(shape, *spec):
        return jax.ShapeDtypeStruct(shape, jnp.bfloat16, sharding=jax.NamedSharding(mesh, P(*spec)))

    arguments = placed((4096, n), "fsdp"), placed((L, n, n), None, "fsdp")
    work = hlo.work(jax.jit(program).lower(*arguments).compile().as_text())
    assert work.flops == 2 * L * 4096 * n * n / 8
    moved = work.collectives["all-gather"][1] + work.collectives["collective-permute"][1]
    assert 0.8 <= moved / (2 * L * n * n) <= 1.1


@pytest.mark.parametrize(
    ("wrap", "products"), [(jax.checkpoint, (8, 2)), (lambda layer: layer, (6, 0))]
)
def test_recomputed_products_are_counted(wrap, products):
    L, n, rows = 5, 64, 32

    @wrap
    def layer(x, w):
        return jnp.tanh(jnp.tanh(x @ w) @ w), None

    step = jax.jit(jax.grad(lambda weights, x: jax.lax.scan(layer, x, weights)[0].sum()))
    text = step.lower(jnp.ones((L, n, n)), jnp.ones((rows, n))).compile().as_text()
    work, one = hlo.work(text), 2 * L * rows * n * n
    assert (work.flops / one, work.recomputed / one) == products


def test_loops_count_as_often_as_they_run():
    def program(x, weights):
        return jax.lax.scan(lambda x, w: (jnp.tanh(x @ w), None), x, weights)[0]

    compiled = jax.jit(program).lower(jnp.ones((32, 64)), jnp.ones((5, 64, 64))).compile()
    assert hlo.work(compiled.as_text()).flops == 2 * 5 * 32 * 64 * 64


@pytest.mark.tpu_compiler
@pytest.mark.parametrize(
    ("changes", "topology", "message"),
    [
        ({}, "v5e:3x5", "slices of v5e are 1x1 2x2"),
        ({}, "v5e:0x4", "slices of v5e"),
        ({}, "v4:4x4", "slices of v4 are 2x2x1"),
        ({}, "v9:4x4", "one of v4, v5e"),
        ({}, "v5e:4x4", "does not fit 16 devices"),
        ({"train__batch_size": 6}, "v5e:2x4", "use 4 or 8 rows"),
        ({"mesh__tensor": 4, "mesh__fsdp": 2, "mesh__context": 1}, "v5e:2x4", "tensor may be 1, 2"),
        ({"data__max_prefix": 1000}, "v5e:2x4", "nearest legal values are 512 and 1024"),
    ],
)
def test_configs_that_cannot_run_are_named(libtpu, changes, topology, message):
    with pytest.raises(InputError, match=message):
        compile_step(experiment(**changes), SLICE, topology)


def test_pairs_of_two_videos_are_two_rows_each():
    more = {"data__video_pairs": 4, "objective__video_weight": 1.0}
    shapes = [batch_shape(read(experiment(**changes)), SLICE) for changes in ({}, more)]
    assert shapes[1] == dataclasses.replace(shapes[0], rows=shapes[0].rows + 8)


def test_minimum_is_linear_in_rows_and_answers():
    sizes = {
        "prefix": 1024,
        "answers": 2,
        "response": 128,
        "frames": 8,
        "frame_shape": (112, 112, 3),
    }

    def flops(rows, questions):
        return minimum_flops(SLICE, BatchShape(rows=rows, questions=questions, **sizes))

    one = flops(1, 1)
    assert flops(3, 1) == 3 * one
    assert one < flops(1, 2) < 2 * one  # the prefix is shared


def test_of_several_numbers_of_frames_the_largest_is_planned():
    several = read(experiment(data__num_frames=(8, 60, 32)))
    assert batch_shape(several, SLICE) == batch_shape(read(experiment()), SLICE)


def test_wrong_flags_are_one_line():
    expected = {
        "--topology=nowhere": "--topology=nowhere is not of the form",
        "--config.data.num_frames=8,16,8": "data.num_frames=8,16,8: 8 is there twice",
    }
    given = ["--config=configs/longva_tpo.py", "--topology=v5e:2x4"]
    given.append("--config.model.preset=longva_7b")
    results = call_program("plan", *([*given, flag] for flag in expected))
    for result, message in zip(results, expected.values(), strict=True):
        assert result.code == 2
        assert message in result.err.splitlines()[-1]


@hypothesis.given(st.integers(1, 4000), st.floats(0.2, 1.3), st.integers(1, 600), st.booleans())
@hypothesis.settings(max_examples=200, deadline=None)
def test_search_finds_the_most_frames_that_fit(most, bend, start, shared):
    """The chip is simulated: its memory grows with a power of the frames."""
    model, asked = families.preset("longva_7b"), []

    def compile_at(frames):
        asked.append(frames)
        peak = 10.0 + 90 * (frames / most) ** bend
        return Plan("", 1, 1, {}, 1, frames, 0, 0, fits=frames <= most, limit=100.0, peak=peak)

    context = 8 if shared else 1
    best, beyond = most_frames(compile_at, model, 512, context, start, 256)
    assert len(set(asked)) == len(asked) <= 24
    unit = 2048 if shared else 512
    assert best is None or best.frames <= most
    assert beyond is None or beyond.frames > most
    frames = [plan.frames if plan else None for plan in (best, beyond)]
    if None not in frames:  # neighbours: no prefix length lies between them
        assert (
            frames_of(model, unit * (-(-(model.visual_tokens(frames[0]) + 100) // unit)))
            == (frames[0])
        )
        assert model.visual_tokens(frames[1]) - model.visual_tokens(frames[0]) <= unit + 144
    elif best is None:
        assert beyond.frames == frames_of(model, unit)
    else:
        assert model.visual_tokens(best.frames) + unit + 144 + 256 > model.max_length


def test_smallest_slice_skips_slices_that_cannot_run():
    told = []

    def compile_on(topology):
        if topology == "v5e:2x4":
            raise InputError("rows do not divide")
        fits = topology in ("v5e:4x8", "v5e:8x8")
        return Plan(topology, 1, 1, {}, 1, 1, 1, 1, fits=fits, limit=1.0, peak=1.0)

    assert smallest_slice(compile_on, "v5e", told.append).topology == "v5e:4x8"
    assert told == [
        "v5e:1x1: does not fit",
        "v5e:2x2: does not fit",
        "v5e:2x4: rows do not divide",
        "v5e:4x4: does not fit",
    ]
    # No larger slice: the plan of the largest one, and an error where none can run at all.
    assert not smallest_slice(compile_on, "v6e", told.append).fits

    def refuse(topology):
        raise InputError("6 rows do not divide")

    with pytest.raises(InputError, match="no slice can run this experiment; 6 rows"):
        smallest_slice(refuse, "v6e", told.append)
    with pytest.raises(InputError, match="--topology=v5e:4x4: a search over slices takes one of"):
        smallest_slice(compile_on, "v5e:4x4", told.append)
