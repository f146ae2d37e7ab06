r"""Summed log-probabilities of both answers of every pair of a list.

    python -m tpo_jax.score --checkpoint=DIR --pairs=FILE --videos=DIR --output=FILE.jsonl \
        --num_frames=32

A pair may have `image` or `images`, paths in the same folder, in place of `video`, or none of them.
For a pair of two videos, `rejected_logp` is that of its answer on `rejected_video`.
The output has one line per pair, in the order of the list: `id, chosen_logp, rejected_logp,
chosen_tokens, rejected_tokens`. An answer's tokens are its own, `<|im_end|>` and the newline after
it; with `--prompt_style=dpo_trainer`, also the six of the template that the original trainer
labels.
"""

import dataclasses
import json

from absl import flags

from tpo_jax.errors import run_command
from tpo_jax.inference.flags import define_model, define_prompts
from tpo_jax.inference.model import load, load_processor
from tpo_jax.inference.scoring import FrameSource, read_list, read_row, score
from tpo_jax.io.files import replacing
from tpo_jax.io.paths import define_path, output_file
from tpo_jax.parallel.programs import keep_programs
from tpo_jax.video import sampling

_MODEL = define_model(dtype="float32")
_PROMPTS = define_prompts()
_PAIRS = define_path(
    "pairs", None, "List of pairs, in a format that `prepare` reads.", required=True
)
_VIDEOS = define_path(
    "videos",
    None,
    "Folder the pairs' videos and images lie in, or a directory of shards that holds the videos.",
    required=True,
)
_OUTPUT = define_path("output", None, "JSON Lines file to write.", required=True)
_NUM_FRAMES = flags.DEFINE_integer("num_frames", 32, "Frames sampled per video.", lower_bound=1)
_SAMPLING = flags.DEFINE_enum("sampling", "uniform", sampling.RULES, "Which frames are sampled.")
_BATCH_SIZE = flags.DEFINE_integer(
    "batch_size", 8, "Pairs at a time, rounded up to a multiple of the devices.", lower_bound=1
)


def main() -> None:
    """Score the list and print where the results are."""
    output, pairs = output_file(_OUTPUT.value), read_list(_PAIRS.value, _VIDEOS.value)
    processor = load_processor(
        _MODEL.checkpoint.value,
        time_instruction=_PROMPTS.time_instruction.value,
        prompt_style=_PROMPTS.prompt_style.value,
        tower=_MODEL.tower.value,
    )
    source = FrameSource(_VIDEOS.value, _NUM_FRAMES.value, _SAMPLING.value)
    read_row(processor, pairs[0], source)  # what is wrong with all pairs shows before the weights
    keep_programs(_MODEL.compilation_cache.value)
    model = load(
        _MODEL.checkpoint.value,
        dtype=_MODEL.dtype.value,
        mesh={"fsdp": -1},
        processor=processor,
        tower=_MODEL.tower.value,
        adapters=_MODEL.adapters.value,
        weights=_MODEL.weights.value,
    )
    with replacing(output) as file:
        for result in score(model, pairs, source, _BATCH_SIZE.value):
            file.write(json.dumps(dataclasses.asdict(result)) + "\n")
    repeated = sum(bool(pair.repeated_id) for pair in pairs)
    print(
        f"{_OUTPUT.value}: {len(pairs)} pairs"
        + (f"; {repeated} repeated ids got a suffix" if repeated else "")
    )


if __name__ == "__main__":
    run_command(main)
