"""Hugging Face checkpoint to native model directory or back, whichever the input is not.

python -m tpo_jax.convert --input=LongVA-7B-TPO --output=longva_native
python -m tpo_jax.convert --input=workdir/model --output=for_transformers

Tokenizer files are checked and copied along. If there are none, the weights are converted all the
same, with a note on standard error.
"""

import sys
from pathlib import Path

from absl import flags

from tpo_jax import families
from tpo_jax.checkpoints import hub
from tpo_jax.checkpoints import huggingface_export as export
from tpo_jax.checkpoints.models import KEPT, Loaded, is_native, open_model, save_model
from tpo_jax.data.tokenizer import has_tokenizer, load_tokenizer
from tpo_jax.errors import InputError, run_command
from tpo_jax.io.files import replacing_directory
from tpo_jax.io.paths import define_path

_INPUT = define_path("input", None, "Model directory, of either layout.", required=True)
_OUTPUT = define_path("output", None, "New directory, of the other layout.", required=True)
_DTYPE = flags.DEFINE_enum(
    "dtype",
    None,
    ["float32", "bfloat16", "float16"],
    "Export: dtype of every tensor. Default: the original checkpoint's where that loses nothing, "
    "else as stored.",
)
_LAYOUT = flags.DEFINE_enum(
    "layout",
    None,
    list(dict.fromkeys(name for family in families.FAMILIES.values() for name in family.layouts)),
    "Export: names and config.json of the original code or of transformers "
    "(LlavaOnevisionForConditionalGeneration). Default: that of the checkpoint it came from, else "
    "original.",
)
_TOWER = define_path(
    "tower",
    None,
    "Import: folder of a Hugging Face vision tower, for a checkpoint without its own.",
)
# What a checkpoint's config.json may leave open (or say wrongly); given here, it takes precedence.
_SETTINGS = {
    "pooling": flags.DEFINE_enum(
        "pooling",
        None,
        families.choices("pooling"),
        "Import: frame pooling. Default: config.json's, else average.",
    ),
    "newline": flags.DEFINE_enum(
        "newline",
        None,
        families.choices("newline"),
        "Import: where newline tokens go. Default: config.json's, else one_token if the merge type "
        "is spatial_unpad and none if not.",
    ),
    "time_instruction": flags.DEFINE_enum(
        "time_instruction",
        None,
        ["none", "inline", "newline"],
        "Import: sentence on the frames' times. Default: newline if config.json asks for it.",
    ),
    "max_length": flags.DEFINE_integer(
        "max_length",
        None,
        "Import: tokens at most. Default: config.json's, else that of the published models.",
        1,
    ),
    "frame_tokens": flags.DEFINE_integer(
        "frame_tokens",
        None,
        "Import, of a model that takes frames in pairs: visual tokens of a pair, and of an image, "
        "at most. Default: video_preprocessor_config.json's, else 768.",
        1,
    ),
    "text_after": flags.DEFINE_enum(
        "text_after",
        None,
        families.choices("text_after"),
        "Import, of a model with the times of frames in positions (Qwen2.5-VL): where text "
        "continues after a video, after the longer side of a frame (transformers 5) or after its "
        "times, too (the training of the published weights, vLLM). Default: side.",
    ),
    "rope_theta": flags.DEFINE_float(
        "rope_theta",
        None,
        "Import: rotary base. Default: config.json's, else that of the published models.",
    ),
}


def main() -> None:
    """Convert, and print the new directory."""
    source, output = hub.folder(_INPUT.value), Path(_OUTPUT.value)
    if output.exists():
        raise InputError(f"--output={output} exists; name a new directory")
    settings = {name: flag.value for name, flag in _SETTINGS.items() if flag.value is not None}
    native = is_native(source)
    if native and settings:
        raise InputError(f"--{min(settings)} is for Hugging Face input; {source} is native")
    for name, flag in (("dtype", _DTYPE), ("layout", _LAYOUT)):
        if not native and flag.value:
            raise InputError(f"--{name} is for native input; {source} is a Hugging Face checkpoint")
    opened = open_model(source, _TOWER.value, **settings)
    _check_tokenizer(opened)
    if native:
        _export(output, opened)
    else:
        tokenizer, tower = opened.tokenizer_directory, _TOWER.value
        save_model(output, opened.config, opened.params, tokenizer, tower)
    print(output)


def _check_tokenizer(opened: Loaded) -> None:
    if has_tokenizer(opened.tokenizer_directory):
        load_tokenizer(opened.tokenizer_directory, opened.config)
    else:
        print(
            f"note: {opened.tokenizer_directory} has no tokenizer files (tokenizer.json, or "
            "vocab.json and merges.txt), and neither will the output; to ask or train the model "
            "copy the tokenizer's there",
            file=sys.stderr,
        )


def _export(output: Path, opened: Loaded) -> None:
    source = opened.tokenizer_directory
    kept = source / KEPT if (source / KEPT).is_dir() else None
    with replacing_directory(output) as temporary:
        export.copy_files(source, temporary, export.SIDE_FILES)
        export.export_model(
            temporary, opened.config, opened.params, kept, _DTYPE.value, _LAYOUT.value or ""
        )


if __name__ == "__main__":
    run_command(main)
