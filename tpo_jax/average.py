"""The weighted mean of models: between a trained one and the one it started from.

    python -m tpo_jax.average --models=LongVA-7B,run/model --shares=0.3,0.7 --output=averaged

The mean of a trained model and its start keeps most of what training taught, and loses less of what
training cost elsewhere.
"""

from pathlib import Path

from absl import flags

from tpo_jax.checkpoints import hub
from tpo_jax.checkpoints.averaging import average
from tpo_jax.checkpoints.models import load_config
from tpo_jax.data.tokenizer import has_tokenizer, load_tokenizer
from tpo_jax.errors import InputError, run_command
from tpo_jax.io.paths import define_path, define_paths

_MODELS = define_paths("models", [], "Model directories of one shape, of either layout.")
_SHARES = flags.DEFINE_list("shares", None, "Of each model, in their order. Default: equal.")
_OUTPUT = define_path("output", None, "New model directory.", required=True)


def _shares(models: list[str]) -> list[float]:
    if _SHARES.value is None:
        return [1.0] * len(models)
    try:
        shares = [float(share) for share in _SHARES.value]
    except ValueError:
        shares = []
    if len(shares) != len(models) or not all(0 <= x < float("inf") for x in shares):
        raise InputError(
            f"--shares={','.join(_SHARES.value)} must be one number of 0 or more for each of "
            f"{len(models)} models"
        )
    if not 0 < sum(shares) < float("inf"):
        raise InputError(f"--shares={','.join(_SHARES.value)}: the sum is {sum(shares):g}")
    return shares


def _check_tokenizers(models: list[Path]) -> None:
    found = {
        load_tokenizer(model, load_config(model)).to_str()
        for model in models
        if has_tokenizer(model)
    }
    if len(found) > 1:
        raise InputError(f"--models: {', '.join(map(str, models))} differ in their tokenizers")


def main() -> None:
    """Average, and print the new directory."""
    named, output = _MODELS.value, Path(_OUTPUT.value)
    if len(named) < 2:
        raise InputError(f"--models={','.join(named)} must be two directories or more")
    shares = _shares(named)
    if output.exists():
        raise InputError(f"--output={output} exists; name a new directory")
    models = [hub.folder(name) for name in named]
    _check_tokenizers(models)
    average(models, shares, output)
    print(output)


if __name__ == "__main__":
    run_command(main)
