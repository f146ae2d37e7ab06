"""Answers to questions about a video, about images, or about neither.

    python -m tpo_jax.generate --checkpoint=DIR --video=FILE --prompt=TEXT --num_frames=32
    python -m tpo_jax.generate --checkpoint=DIR --image=FILE[,FILE] --prompt=TEXT

The answer goes to standard output, piece by piece as it comes. With several `--prompt` the video is
encoded once and the answers are printed in order, a blank line between them. Images come before the
question, or where its `<image>` placeholders are, one for each.
"""

from typing import Any

from absl import flags

from tpo_jax.data.processor import Processor, Visual
from tpo_jax.errors import InputError, run_command
from tpo_jax.generation.sampling import Sampling
from tpo_jax.inference.flags import define_model, define_prompts
from tpo_jax.inference.model import load, load_processor
from tpo_jax.io.paths import define_path, define_paths
from tpo_jax.parallel.programs import keep_programs
from tpo_jax.video import sampling

_MODEL = define_model(dtype="float32")
_PROMPTS = define_prompts()
_VIDEO = define_path("video", None, "Video file or directory of frames.")
_IMAGE = define_paths("image", [], "Image files instead of a video; none: text alone.")
_PROMPT = flags.DEFINE_multi_string("prompt", None, "Question; may be repeated.", required=True)
_NUM_FRAMES = flags.DEFINE_integer("num_frames", 32, "Frames sampled.", lower_bound=1)
_SAMPLING = flags.DEFINE_enum("sampling", "uniform", sampling.RULES, "Which frames are sampled.")
_MAX_NEW_TOKENS = flags.DEFINE_integer("max_new_tokens", 128, "Longest answer, in tokens.", 1)
_TEMPERATURE = flags.DEFINE_float("temperature", 0.0, "0: greedy.")
_TOP_K = flags.DEFINE_integer("top_k", 0, "Sample among so many tokens; 0: all.")
_TOP_P = flags.DEFINE_float("top_p", 1.0, "Sample from the most probable tokens of this mass.")
_PENALTY = flags.DEFINE_float(
    "repetition_penalty", 1.0, "Divides logits of generated tokens; 1: none."
)
_SEED = flags.DEFINE_integer("seed", 0, "Of the draws.", lower_bound=0)


def read_visual(processor: Processor) -> tuple[Visual, list[str]]:
    """Return the video or images, and the questions on them."""
    if not all(map(str.strip, _PROMPT.value)):
        raise InputError('--prompt="" asks nothing; give a question')
    if not _VIDEO.value:
        if _PROMPTS.time_instruction.value not in (None, "none"):
            raise InputError(
                f"--time_instruction={_PROMPTS.time_instruction.value} is for a --video"
            )
        return processor.pictures(_IMAGE.value), _PROMPT.value
    if _IMAGE.value:
        raise InputError("give one of --video and --image")
    clip = processor.video(_VIDEO.value, _NUM_FRAMES.value, _SAMPLING.value)
    return clip, [processor.without_placeholder(prompt) for prompt in _PROMPT.value]


def main() -> None:
    """Print the answers."""
    settings = Sampling(_TEMPERATURE.value, _TOP_K.value, _TOP_P.value, _PENALTY.value)
    settings.check()
    processor = load_processor(
        _MODEL.checkpoint.value,
        time_instruction=_PROMPTS.time_instruction.value,
        prompt_style=_PROMPTS.prompt_style.value,
        tower=_MODEL.tower.value,
    )
    visual, questions = read_visual(processor)
    processor.prompts(questions, visual)  # wrong input is reported before the weights are read
    keep_programs(_MODEL.compilation_cache.value)
    model = load(
        _MODEL.checkpoint.value,
        dtype=_MODEL.dtype.value,
        processor=processor,
        tower=_MODEL.tower.value,
        adapters=_MODEL.adapters.value,
        weights=_MODEL.weights.value,
    )
    how: dict[str, Any] = {
        "max_new_tokens": _MAX_NEW_TOKENS.value,
        "sampling": settings,
        "seed": _SEED.value,
    }
    if len(questions) == 1:
        for piece in model.stream(visual, questions[0], **how):
            print(piece, end="", flush=True)
        print()
    else:
        print("\n\n".join(model.answer(visual, questions, **how)))


if __name__ == "__main__":
    run_command(main)
