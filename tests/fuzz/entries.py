"""What the commands do with their files before they need a model, as commands of their own.

`train` reads shards and `evaluate run` a benchmark's folder, but both compile a model first, which
would take seconds per input.
"""

from pathlib import Path

from absl import flags

from tpo_jax import families
from tpo_jax.data.config import DataConfig
from tpo_jax.data.images import read_pictures
from tpo_jax.data.pipeline import Pipeline
from tpo_jax.data.tokenizer import load_tokenizer
from tpo_jax.errors import InputError, Subcommand, run_command
from tpo_jax.evaluation import benchmarks

_INPUT = flags.DEFINE_string("input", None, "File or folder.", required=True)
_TOKENIZER = flags.DEFINE_string("tokenizer", None, "records: directory of a tokenizer.")
_BENCHMARK = flags.DEFINE_string("benchmark", None, "benchmark: its name.")


def records() -> None:
    """Decode all batches of an epoch of shards."""
    pipeline = Pipeline(
        DataConfig(
            **{"batch_size": 1, "num_epochs": 1, "seed": 0, "answers": 2, "phrases": False},
            shards=_INPUT.value,
            num_frames=2,
            prefix_multiple=1,
            workers=0,
        ),
        families.preset("tiny_longva"),
        load_tokenizer(_TOKENIZER.value),
    )
    batches = iter(pipeline)
    print(sum(1 for _ in batches))
    batches.close()


def benchmark() -> None:
    """Read the questions of a benchmark, with their subtitles."""
    questions, problems = benchmarks.ask(Path(_INPUT.value), _BENCHMARK.value)
    if not questions:
        raise InputError(f"no question can be asked: {problems[0] if problems else 'no rows'}")
    print(len(questions), len(problems))


def picture() -> None:
    """Preprocess the views of an image."""
    print(read_pictures([_INPUT.value], families.preset("tiny_longva")).tokens)


COMMANDS = {name.__name__: Subcommand(name) for name in (records, benchmark, picture)}

if __name__ == "__main__":
    run_command(COMMANDS)
