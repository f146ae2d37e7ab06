"""Answers to questions about a video, about images, or about neither.

    python -m tpo_jax.generate --checkpoint=DIR --video=FILE --prompt=TEXT --num_frames=32
    python -m tpo_jax.generate --checkpoint=DIR --image=FILE[,FILE] --prompt=TEXT

The answer goes to standard output, piece by piece as it comes. With several `--prompt` the video is
encoded once and the answers follow one another, a blank line between them. Images stand in front of
the question, or where it has as many `<image>`.
"""

import jax
import numpy as np
from absl import flags

from tpo_jax.checkpoints.models import load_config, load_model
from tpo_jax.data import prompts
from tpo_jax.data.processor import Processor
from tpo_jax.data.rows import Row
from tpo_jax.data.tokenizer import load_tokenizer
from tpo_jax.errors import InputError, run_command
from tpo_jax.families.template import STYLES, TIME_INSTRUCTIONS
from tpo_jax.generation.sampling import Sampling
from tpo_jax.inference.generator import Generator
from tpo_jax.io.paths import define_path, define_paths
from tpo_jax.models.pictures import Pictures
from tpo_jax.parallel.mesh import make_mesh
from tpo_jax.video import sampling

_CHECKPOINT = define_path("checkpoint", None, "Model directory.", required=True)
_VIDEO = define_path("video", None, "Video file or directory of frames.")
_IMAGE = define_paths("image", [], "Image files instead of a video; none: text alone.")
_PROMPT = flags.DEFINE_multi_string("prompt", None, "Question; may be repeated.", required=True)
_NUM_FRAMES = flags.DEFINE_integer("num_frames", 32, "Frames sampled.", lower_bound=1)
_SAMPLING = flags.DEFINE_enum("sampling", "uniform", sampling.RULES, "Which frames are sampled.")
_TIME = flags.DEFINE_enum(
    "time_instruction",
    None,
    TIME_INSTRUCTIONS,
    "Sentence on the frames' times: none, directly behind the video, or on the next line. Default: "
    "what the checkpoint asks for.",
)
_STYLE = flags.DEFINE_enum(
    "prompt_style",
    "inference",
    STYLES,
    "Prompts: of the original inference code, or those of the original DPO trainer.",
)
_MAX_NEW_TOKENS = flags.DEFINE_integer("max_new_tokens", 128, "Longest answer, in tokens.", 1)
_TEMPERATURE = flags.DEFINE_float("temperature", 0.0, "0: greedy.")
_TOP_K = flags.DEFINE_integer("top_k", 0, "Sample among so many tokens; 0: all.")
_TOP_P = flags.DEFINE_float("top_p", 1.0, "Sample from the most probable tokens of this mass.")
_PENALTY = flags.DEFINE_float(
    "repetition_penalty", 1.0, "Divides logits of generated tokens; 1: none."
)
_SEED = flags.DEFINE_integer("seed", 0, "Of the draws.", lower_bound=0)
_DTYPE = flags.DEFINE_enum("dtype", "float32", ["float32", "bfloat16"], "Compute dtype.")


def read_input(processor: Processor) -> tuple[np.ndarray | Pictures, Row]:
    """Return frames uint8 `[F, S, S, 3]` or images, and the row of questions about them."""
    if not _VIDEO.value:
        if _TIME.value not in (None, "none"):
            raise InputError(f"--time_instruction={_TIME.value} is for a --video")
        pictures = processor.pictures(_IMAGE.value)
        return pictures, processor.prompts(_PROMPT.value, pictures)
    if _IMAGE.value:
        raise InputError("give one of --video and --image")
    questions = [prompts.strip_placeholder(prompt) for prompt in _PROMPT.value]
    clip = processor.video(_VIDEO.value, _NUM_FRAMES.value, _SAMPLING.value)
    return clip.frames, processor.prompts(questions, clip)


def main() -> None:
    """Prints the answers."""
    settings = Sampling(_TEMPERATURE.value, _TOP_K.value, _TOP_P.value, _PENALTY.value)
    settings.check()
    if not all(map(str.strip, _PROMPT.value)):
        raise InputError('--prompt="" asks nothing; give a question')
    config = load_config(_CHECKPOINT.value)
    tokenizer = load_tokenizer(_CHECKPOINT.value, config)
    visual, row = read_input(Processor(config, tokenizer, _TIME.value, _STYLE.value))

    # One video cannot be split by rows: all devices share the weights.
    mesh = make_mesh({"data": 1, "fsdp": 1, "tensor": 1, "context": -1})
    loaded = load_model(_CHECKPOINT.value, mesh=mesh, dtype=_DTYPE.value)
    generator = Generator(
        config,
        loaded.params,
        tokenizer,
        max_new_tokens=_MAX_NEW_TOKENS.value,
        sampling=settings,
        seed=_SEED.value,
        mesh=mesh,
    )
    with jax.default_matmul_precision("highest" if _DTYPE.value == "float32" else "default"):
        if len(row.input_ids) == 1:
            for piece in generator.stream(visual, row):
                print(piece, end="", flush=True)
            print()
        else:
            rows = [visual] if isinstance(visual, Pictures) else visual[None]
            print("\n\n".join(generator.answer(rows, [row])[0]))


if __name__ == "__main__":
    run_command(main)
