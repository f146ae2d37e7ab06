"""`evaluate`: a video encoded once for all its questions against once per question, and the time
that scoring takes.

    python benchmarks/evaluate.py [--media=FOLDER] [--repeats=3] [--predictions=100000] \
        [--output=FILE.md]

A small model with random weights, real clips, decoding included; both ways in one run, in turn, the
best of the repeats. Prints Markdown tables.
"""

import dataclasses
import json
import os
import sys
import tempfile
import time
from pathlib import Path

import jax
from absl import app, flags

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from tests.evaluation.agreement import generate, make_docs
from tpo_jax import families
from tpo_jax.data.processor import Processor
from tpo_jax.evaluation import rescoring, runner
from tpo_jax.evaluation.benchmarks import Question
from tpo_jax.evaluation.scorers import SCORING_RULES, Scorer
from tpo_jax.families.llava_qwen.config import TowerConfig
from tpo_jax.inference.generator import Decoding
from tpo_jax.inference.model import place
from tpo_jax.worlds.tokenizer import train_tokenizer

_MEDIA = flags.DEFINE_string("media", "../shared/media", "folder of clips")
_REPEATS = flags.DEFINE_integer("repeats", 3, "repeats of every measurement", lower_bound=1)
_PREDICTIONS = flags.DEFINE_integer("predictions", 100_000, "to score, of every benchmark")
_OUTPUT = flags.DEFINE_string("output", None, "file for the tables, besides standard output")

FRAMES, NEW_TOKENS = 32, 16
# A ViT of 4 layers on 112 pixels, 16 tokens per frame, a decoder of 4 layers.
MODEL = dataclasses.replace(
    families.preset("tiny_longva"),
    tower=TowerConfig("clip", 112, 14, width=192, layers=4, heads=3, mlp_width=768),
    decoder=dataclasses.replace(
        families.preset("tiny_longva").decoder, width=256, layers=4, mlp_width=704
    ),
    max_length=4096,
)


def make_questions(clips: list[Path], each: int) -> list[Question]:
    """Make questions as long as those of Video-MME."""
    text = (
        "Select the best answer to the following multiple-choice question based on the video. "
        "What happens in part {}?\nA. Nothing.\nB. Someone speaks.\nC. Someone leaves.\n"
        "D. Two people meet.\nAnswer with the option's letter from the given choices directly."
    )
    pairs = [(clip, i) for clip in clips for i in range(each)]
    return [Question(n, {}, text.format(i), clip) for n, (clip, i) in enumerate(pairs)]


def asking(clips: list[Path], each: int) -> dict[str, float]:
    """Return questions per second, all questions of a video together and one by one."""
    questions = make_questions(clips, each)
    tokenizer = train_tokenizer([q.prompt for q in questions], vocab_size=500)
    params = families.init_params(MODEL, 0)
    processor = Processor(MODEL, tokenizer)
    read = runner.make_reader(processor, FRAMES)
    together = runner.make_groups(questions, processor)
    alone = [group for q in questions for group in runner.make_groups([q], processor)]
    multiple = runner.PROMPT_MULTIPLE
    decoding = Decoding(NEW_TOKENS, batch_rows=1, question_multiple=multiple)
    generator = place(processor, params).generator(decoding)
    best = {}
    answers = {}
    for repeat in range(_REPEATS.value + 1):  # the first one compiles
        for name, groups in (("once per video", together), ("once per question", alone)):
            start = time.perf_counter()
            rows = [row for part, _ in runner.answer(groups, read, generator) for row in part]
            seconds = time.perf_counter() - start
            answers[name] = sorted(rows)
            if repeat:
                best[name] = min(best.get(name, seconds), seconds)
    first, second = answers.values()
    assert first == second and len(first) == len(questions)
    return {name: len(questions) / seconds for name, seconds in best.items()}


def scoring(benchmark: str, folder: Path) -> tuple[float, float]:
    """Return seconds to score a file of predictions, by the clock and of the processor."""
    n = _PREDICTIONS.value
    docs, texts = make_docs(benchmark, 0, n), generate(0, n)
    file = folder / f"{benchmark}.jsonl"
    with file.open("w") as lines:
        for doc, text in zip(docs, texts, strict=True):
            lines.write(json.dumps({"doc": doc, "prediction": text}) + "\n")
    start = time.perf_counter(), time.process_time()
    summary = rescoring.rescore(Scorer(benchmark), file, folder / "scored.jsonl")
    seconds = time.perf_counter() - start[0], time.process_time() - start[1]
    assert summary["questions"] == n
    return seconds


def main(_: list[str]) -> None:
    """Measure and print."""
    clips = sorted(Path(_MEDIA.value).glob("*.mp4"))
    lines = [
        "| questions on a clip | once per video | once per question | ratio |",
        "|---|---|---|---|",
    ]
    for each in (3, 8):
        rates = asking(clips, each)
        once, every = rates.values()
        lines.append(f"| {each} | {once:.2f}/s | {every:.2f}/s | {once / every:.2f} |")
        print(lines[-1], file=sys.stderr, flush=True)
    lines += ["", "| benchmark | predictions | seconds | of the processor |", "|---|---|---|---|"]
    with tempfile.TemporaryDirectory() as folder:
        for benchmark in SCORING_RULES:
            clock, own = scoring(benchmark, Path(folder))
            lines.append(f"| {benchmark} | {_PREDICTIONS.value:,} | {clock:.1f} | {own:.1f} |")
            print(lines[-1], file=sys.stderr, flush=True)
    lines += ["", f"{len(clips)} clips, {os.cpu_count()} cores, jax {jax.__version__}."]
    text = "\n".join(lines)
    print(text)
    if _OUTPUT.value:
        Path(_OUTPUT.value).write_text(text + "\n")


if __name__ == "__main__":
    app.run(main)
