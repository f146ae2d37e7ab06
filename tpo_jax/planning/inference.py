"""Compile the programs of the commands that answer and score, for a TPU slice that is not there."""

import dataclasses
import math
from typing import NamedTuple

import jax
import numpy as np
from ml_collections import ConfigDict

from tpo_jax import families
from tpo_jax.curation import local_client
from tpo_jax.curation.config import Local, Role
from tpo_jax.errors import InputError
from tpo_jax.evaluation.runner import PROMPT_MULTIPLE
from tpo_jax.generation.decode import Limits, decode, prefill
from tpo_jax.generation.sampling import Sampling
from tpo_jax.inference.generator import ANSWER_MULTIPLE, Decoding, round_up
from tpo_jax.inference.scoring import RESPONSE_MULTIPLE, score_batch
from tpo_jax.models.batch import Batch, BatchShape
from tpo_jax.models.config import ModelConfig
from tpo_jax.models.quantized import quantize_params
from tpo_jax.models.vlm import cast
from tpo_jax.parallel.attention import prefix_multiple
from tpo_jax.parallel.mesh import AXES, make_mesh
from tpo_jax.parallel.sharding import ROWS, batch_sharding, parameter_shardings, placed
from tpo_jax.planning.chips import CHIPS, devices_of
from tpo_jax.planning.plan import (
    RESPONSE_TOKENS,
    TEXT_TOKENS,
    Plan,
    fill,
    minimum_flops,
    prefix_tokens,
)
from tpo_jax.planning.program import GIB, Program, compile_program
from tpo_jax.serving.models import QUESTION_MULTIPLE
from tpo_jax.serving.settings import ServerSettings
from tpo_jax.training import experiment
from tpo_jax.training.experiment import Source
from tpo_jax.training.step import Compute


class Command(NamedTuple):
    """How a command lays out its batches, where its flags do not say otherwise."""

    axis: str  # of the mesh, which all devices are on
    rows: int  # at a time, rounded up to a multiple of the devices that do not share one
    question: int  # a question's tokens are rounded up to a multiple of this
    answer: int  # most tokens of an answer
    flag: str = ""  # flag that sets the rows; empty: there is none


COMMANDS = {
    "generate": Command("context", 1, Decoding().question_multiple, RESPONSE_TOKENS),
    "score": Command("fsdp", 8, RESPONSE_MULTIPLE, RESPONSE_TOKENS, "--batch_size"),
    "evaluate": Command("fsdp", 1, PROMPT_MULTIPLE, 16, "--batch_size"),
    "curate": Command(
        "fsdp",
        Local().batch_rows,
        local_client.PROMPT_MULTIPLE,
        Role().max_new_tokens,
        "--config.local.batch_rows",
    ),
    "serve": Command(
        "context",
        ServerSettings().max_batch,
        QUESTION_MULTIPLE,
        ServerSettings().max_new_tokens,
        "--max_batch",
    ),
}


def compile_command(
    config: ConfigDict, model: ModelConfig, topology: str, name: str, rows: int = 0
) -> Plan:
    """Compile the programs that a command runs for every batch.

    Args:
        config: as `train` takes it. Only frames, lengths, questions of a row, the compute dtype and
            `model.weights` are read; the mesh is the command's own.
        topology: of the slice.
        name: one of `COMMANDS`.
        rows: at a time; 0: the command's default.

    Raises:
        InputError: the config cannot run on this slice.
    """
    devices, command = devices_of(topology), COMMANDS[name]
    mesh = make_mesh({**dict.fromkeys(AXES, 1), command.axis: -1}, devices)
    dtype = experiment.take(Compute, config.compute).dtype
    source = experiment.take(Source, config.model)
    answer = config.data.max_response or command.answer
    parts = math.prod(mesh.shape[axis] for axis in ROWS)
    shape = _batch_shape(config, model, name, prefix_multiple(mesh, zigzag=name == "score"))
    shape = dataclasses.replace(shape, rows=round_up(rows or command.rows, parts))
    chip = CHIPS[topology.split(":")[0]]
    plan = Plan(
        topology,
        len(devices),
        len(devices) // chip.devices,
        dict(mesh.shape),
        shape.rows * shape.questions,
        config.data.num_frames,
        shape.prefix,
        answer,
        fits=False,
        limit=chip.hbm * GIB,
        peak=0.0,
        of=name,
        rows=shape.rows,
        flags=f"{command.flag}={shape.rows}" if command.flag else "",
    )
    params = _weights(model, source.weights, dtype, mesh)
    batch = jax.tree.map(lambda x: placed(x, batch_sharding(mesh)), shape.abstract())
    if name == "score":
        with jax.set_mesh(mesh):
            lowered = score_batch.lower(model, params, batch)
        programs = {"score": compile_program(lowered, mesh)}
        plan.minimum_flops = minimum_flops(model, shape, backward=False)
    else:
        programs = _answering(model, params, batch, answer, mesh)
        plan.minimum_flops = _answering_flops(model, shape, answer)
    fill(plan, programs, chip)
    return plan


def _batch_shape(config: ConfigDict, model: ModelConfig, name: str, multiple: int) -> BatchShape:
    """Return the shape of a batch of one row; InputError if it exceeds the model's context."""
    data, command = config.data, COMMANDS[name]
    tokens = prefix_tokens(model, data.num_frames)
    scores, questions = name == "score", data.pairs_per_row
    if scores:
        questions, response = 1, data.max_response or command.answer
    else:  # a single question is a part of the prefix
        response = TEXT_TOKENS if questions > 1 else 1
    shape = BatchShape(
        rows=1,
        prefix=data.max_prefix or round_up(tokens, multiple),
        questions=questions,
        answers=2 if scores else 1,
        response=round_up(response, command.question),
        frames=model.batch_frames(data.num_frames),
        frame_shape=model.frame_shape,
    )
    if shape.prefix + shape.response > model.max_length:
        raise InputError(
            f"{shape.prefix} prefix and {shape.response} more tokens exceed the model's context of "
            f"{model.max_length}"
        )
    return shape


def _weights(model: ModelConfig, weights: str, dtype: str, mesh: jax.sharding.Mesh) -> dict:
    """Return the abstract parameters as `tpo_jax.load` lays them out."""

    def loaded(params: dict) -> dict:
        params = cast(params, dtype)
        return quantize_params(params, weights) if weights else params

    abstract = jax.eval_shape(loaded, families.abstract_params(model))
    return jax.tree.map(placed, abstract, parameter_shardings(mesh, abstract))


def _answering(
    model: ModelConfig, params: dict, batch: Batch, answer: int, mesh: jax.sharding.Mesh
) -> dict[str, Program]:
    """Return the programs of answers of `answer` tokens; without `decode` if `prefill` is too
    large.
    """
    rows, questions = batch.input_ids.shape[:2]
    everywhere = batch_sharding(mesh)

    def array(dtype: str, *shape: int) -> jax.ShapeDtypeStruct:
        return jax.ShapeDtypeStruct(shape, np.dtype(dtype), sharding=everywhere)

    batch = dataclasses.replace(batch, seeds=array("uint32", rows))
    limits = Limits(array("int32", rows, questions), np.zeros(2, np.int32), 1)
    arguments, space = (Sampling(), limits), round_up(answer, ANSWER_MULTIPLE)
    with jax.set_mesh(mesh):
        lowered = prefill.lower(model, params, batch, *arguments, new_tokens=space)
    first = compile_program(lowered, mesh)
    if not first.compiled:
        return {"prefill": first}
    begun = jax.tree.map(placed, lowered.out_info, first.compiled.output_shardings)
    with jax.set_mesh(mesh):
        lowered = decode.lower(model, params, *begun, batch.seeds, *arguments, answer - 1)
    more = compile_program(lowered, mesh, answer - 1)
    # The frames stay on the devices until the answers are finished.
    frames = batch.frames.size / mesh.devices.size
    return {"prefill": first, "decode": dataclasses.replace(more, peak=more.peak + frames)}


def _answering_flops(model: ModelConfig, shape: BatchShape, answer: int) -> float:
    """Return the FLOPs of `minimum_flops` for answers: the head reads no token of a question."""
    whole = dataclasses.replace(shape, response=shape.response + answer - 1)
    head = 2 * model.decoder.width * model.decoder.vocab_size
    unread = shape.rows * shape.questions * (shape.response - 1)
    return minimum_flops(model, whole, backward=False) - head * unread
