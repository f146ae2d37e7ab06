r"""Summed log-probabilities of both answers of every pair of a list.

    python -m tpo_jax.score --checkpoint=DIR --pairs=FILE --videos=DIR --output=FILE.jsonl \
        --num_frames=32

One line per pair, in the order of the list: `id, chosen_logp, rejected_logp, chosen_tokens,
rejected_tokens`. An answer's tokens are its own, `<|im_end|>` and the newline after it.
"""

import functools
import json
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import jax
import numpy as np
from absl import flags, logging
from tokenizers import Tokenizer

from tpo_jax.checkpoints.models import load_config, load_model
from tpo_jax.data import images, prompts, sampling
from tpo_jax.data.pairs import Pair, read_pairs
from tpo_jax.data.tokenizer import load_tokenizer
from tpo_jax.data.video import VideoError
from tpo_jax.errors import InputError, run_door
from tpo_jax.models import vlm
from tpo_jax.models.config import ModelConfig, visual_tokens
from tpo_jax.parallel.mesh import make_mesh
from tpo_jax.parallel.sharding import ROWS, to_global

_CHECKPOINT = flags.DEFINE_string("checkpoint", None, "Model directory.", required=True)
_PAIRS = flags.DEFINE_string(
    "pairs", None, "List of pairs: .jsonl, .json, .csv, .yaml or .yml.", required=True
)
_VIDEOS = flags.DEFINE_string("videos", None, "Folder the pairs' videos lie in.", required=True)
_OUTPUT = flags.DEFINE_string("output", None, "JSON Lines file to write.", required=True)
_NUM_FRAMES = flags.DEFINE_integer("num_frames", 32, "Frames sampled per video.", lower_bound=1)
_SAMPLING = flags.DEFINE_enum("sampling", "uniform", sampling.RULES, "Which frames are sampled.")
_TIME = flags.DEFINE_enum(
    "time_instruction",
    None,
    prompts.TIME_INSTRUCTIONS,
    "Sentence on the frames' times: none, directly behind the video, or on the next line. Default: "
    "what the checkpoint asks for.",
)
_BATCH_SIZE = flags.DEFINE_integer(
    "batch_size", 8, "Pairs at a time, rounded up to a multiple of the devices.", lower_bound=1
)
_DTYPE = flags.DEFINE_enum("dtype", "float32", ["float32", "bfloat16"], "Compute dtype.")

# Lengths are rounded up to multiples of these, so that few shapes are compiled; the head is applied
# to as many response positions at a time.
_PREFIX_MULTIPLE, _RESPONSE_MULTIPLE = 64, 16


@functools.partial(jax.jit, static_argnames="config")
def _sums(config: ModelConfig, params: dict, batch: dict) -> jax.Array:
    """float32 `[B, 2]`: summed log-probabilities of the answers."""
    return (
        vlm.bind(config, params)
        .token_logps(batch, chunk=_RESPONSE_MULTIPLE)
        .sum(axis=(1, 3), dtype=np.float32)
    )


def read_row(
    pair: Pair,
    config: ModelConfig,
    tokenizer: Tokenizer,
    videos: str | Path,
    num_frames: int,
    rule: str = "uniform",
    time_instruction: str = "none",
) -> dict[str, np.ndarray]:
    """One pair as a row of a batch, `Q` = 1, without `B` and without padding of the texts.

    Raises:
        InputError: the video or the texts; the message begins with the place of the pair.
    """
    try:
        clip, timestamps, duration = sampling.read_frames(
            Path(videos) / pair.video, rule, num_frames
        )
        opening = prompts.time_opening(time_instruction, timestamps.tolist(), duration)
        visual = visual_tokens(config, len(clip))
        row = prompts.build_row(
            tokenizer, [pair.question], [[pair.chosen, pair.rejected]], visual, opening=opening
        )
    except (InputError, VideoError) as error:
        raise InputError(f"{pair.where}: {error}") from error
    used = row.prefix_ids.size + row.input_ids.shape[-1]
    if used > config.max_length:
        fit = (config.max_length - used + visual) // config.tokens_per_frame
        raise InputError(
            f"{pair.where}: prompt and answer take {used} tokens, the model's context holds "
            f"{config.max_length}; {max(fit, 0)} frames would fit (--num_frames)"
        )
    side, missing = config.tower.image_size, num_frames - len(clip)
    frames = np.zeros((num_frames, side, side, 3), np.uint8)
    frames[: len(clip)] = images.preprocess(clip, config.tower)
    # A newline token behind the whole video comes after the frames that are not there, too.
    row.visual_index[row.visual_index >= len(clip) * config.tokens_per_frame] += (
        missing * config.tokens_per_frame
    )
    return {"frames": frames, **row._asdict()}


def stack(rows: list[dict[str, np.ndarray]], size: int) -> dict[str, np.ndarray]:
    """A batch of `size` rows, texts padded to one length; rows beyond those given are empty."""
    P = max(len(row["prefix_ids"]) for row in rows)
    R = max(row["input_ids"].shape[-1] for row in rows)
    lengths = {"prefix": -(-P // _PREFIX_MULTIPLE) * _PREFIX_MULTIPLE}
    lengths["response"] = -(-R // _RESPONSE_MULTIPLE) * _RESPONSE_MULTIPLE
    batch = {}
    for name, first in rows[0].items():
        shape, value = first.shape, -1 if name == "visual_index" else 0
        if name != "frames":
            kind = "response" if name.startswith(("input", "target")) else "prefix"
            shape = (*shape[:-1], lengths[kind])
        batch[name] = np.full((size, *shape), value, first.dtype)
        for target, row in zip(batch[name], rows, strict=False):
            target[..., : row[name].shape[-1]] = row[name]
    return batch


def score(
    config: ModelConfig,
    params: dict,
    pairs: list[Pair],
    read,
    mesh: jax.sharding.Mesh,
    batch_size: int,
) -> Iterator[dict]:
    """The result of every pair, in order; the next videos are read while the device computes.

    Args:
        config: of the model.
        params: in the compute dtype, laid out over `mesh`.
        pairs: to be scored.
        read: a pair to its row, as `read_row`.
        mesh: rows of a batch are split over it.
        batch_size: pairs at a time, rounded up to what the mesh asks for.
    """
    parts = int(np.prod([mesh.shape[axis] for axis in ROWS]))
    size = -(-batch_size // parts) * parts
    running: list[tuple] = []
    with ThreadPoolExecutor() as pool:
        for start in range(0, len(pairs), size):
            rows = list(pool.map(read, pairs[start : start + size]))
            sums = _sums(config, params, to_global(stack(rows, size), mesh))
            counts = [row["target_mask"].sum(axis=(0, 2)) for row in rows]
            running.append((pairs[start : start + size], sums, counts))
            if len(running) > 1:
                yield from _results(*running.pop(0))
        for batch in running:
            yield from _results(*batch)


def _results(pairs, sums, counts) -> Iterator[dict]:
    for pair, values, tokens in zip(pairs, np.asarray(sums).tolist(), counts, strict=False):
        yield {
            "id": pair.id,
            "chosen_logp": values[0],
            "rejected_logp": values[1],
            "chosen_tokens": int(tokens[0]),
            "rejected_tokens": int(tokens[1]),
        }


def main() -> None:
    """Scores the list and prints where to."""
    output = Path(_OUTPUT.value)
    if not output.parent.is_dir():
        raise InputError(f"--output={output}: no such directory {output.parent}")
    pairs, rejections = read_pairs(_PAIRS.value)
    if rejections:
        more = f" (and {len(rejections) - 1} more)" if len(rejections) > 1 else ""
        raise InputError(f"{rejections[0].where}: {rejections[0].reason}{more}")
    config = load_config(_CHECKPOINT.value)
    tokenizer = load_tokenizer(_CHECKPOINT.value, config.decoder.vocab_size)
    read = functools.partial(
        read_row,
        config=config,
        tokenizer=tokenizer,
        videos=_VIDEOS.value,
        num_frames=_NUM_FRAMES.value,
        rule=_SAMPLING.value,
        time_instruction=_TIME.value or config.time_instruction,
    )
    read(pairs[0])  # what is wrong with all pairs shows before the weights are read
    mesh = make_mesh({"data": 1, "fsdp": -1, "tensor": 1, "context": 1})
    loaded = load_model(_CHECKPOINT.value, mesh=mesh, dtype=_DTYPE.value)
    temporary = output.with_name(f".{output.name}.partial")
    try:
        with (
            jax.default_matmul_precision("highest" if _DTYPE.value == "float32" else "default"),
            temporary.open("w", encoding="utf-8") as file,
        ):
            results = score(config, loaded.params, pairs, read, mesh, _BATCH_SIZE.value)
            for number, result in enumerate(results, 1):
                file.write(json.dumps(result) + "\n")
                if number % 100 == 0:
                    logging.info("%d of %d pairs", number, len(pairs))
        temporary.rename(output)
    finally:
        temporary.unlink(missing_ok=True)
    print(f"{output}: {len(pairs)} pairs")


if __name__ == "__main__":
    run_door(main)
