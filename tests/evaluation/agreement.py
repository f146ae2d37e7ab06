"""Generate predictions and compare the scorers on them with the published lmms-eval.

    python tests/evaluation/agreement.py

writes docs/results/evaluation.md. `LMMS_EVAL`, `LMMS_EVAL_0_3_2` and `LMMS_EVAL_PAPER_ERA` name
the folders of the extracted packages, `pip install --no-deps --target=DIR lmms-eval==VERSION`;
several folders of one era are separated by a colon, and a task is taken from the first that has it.
"""

import json
import os
import random
import subprocess
import sys
from importlib.metadata import distributions
from importlib.util import find_spec
from pathlib import Path

import numpy as np
import pytest

from tpo_jax.evaluation.prompts import TVBENCH_TASKS
from tpo_jax.evaluation.scorers import SCORING_RULES, Scorer
from tpo_jax.evaluation.scoring_rules import MLVU_TASKS
from tpo_jax.evaluation.verdicts import ERAS

HERE = Path(__file__).resolve().parent
TABLE = HERE.parents[1] / "docs/results/evaluation.md"
VARIABLES = dict(zip(ERAS, ("LMMS_EVAL", "LMMS_EVAL_0_3_2", "LMMS_EVAL_PAPER_ERA"), strict=True))

PIECES = (
    *("A", "B", "C", "D", "E", "F", "a", "b", "(A)", "(B)", "(C)", "(D)", "(E)", "(b)", "B)"),
    *("A.", "B.", "C:", "D)", "**B**", "$\\boxed{C}$", "AB", "BA", "CD", "Ｂ", "𝐀", "É", "A1"),
    *("The answer is", "the answer is", "THE ANSWER IS", "Answer:", "answer is", "The answer"),
    *("The best answer is", "The correct answer is", "The best option is", "Best answer:"),
    *("The correct option is", "Best option:", "The best option isThe correct option is"),
    *("Best answer:Best option:", "I choose", "i pick", "I select", "my choice is", "choice is"),
    *("옵션", "정답은", "답은", "답:", "答案是", "答案为", "选", "答えは", "答案:"),
    *("A man", "A dog.", "Because", "Blue", "Definitely", "dog", "none", "FAILED", "Option", "not"),
    *("<think>A or C</think>", "</think>", "[LMMS_EVAL_REQUEST_FAILED", "/data/AbC.mp4"),
    *("İ", "ß", "ﬁ", "\u200b", "\ud800", "\x00", "\u2028", "\x85", "\u3000", "\u00a0"),
    *(",", ".", "!", "?", ";", ":", "'", '"', "(", ")", "-", "\n", "\t", " ", "  ", "\n\n", "1"),
)
STRINGS = (
    *("", " ", "\n", ".", "'\"'", ". A .", "'A'", '"B".', "A,B", "A.B", "A. B.", ".;A;.", "A" * 50),
    *("ABCD", "DCBA", "The answer is B. A dog", "(C) Because of A", "I think it is B because C"),
    *("Not A. Not B. It must be D", "A. Yellow\nB. Red\nC. Green\nD. Blue", "Both A and B"),
    *("The options are A, B, C, D. The answer is B", "İİİ the answer is B C", "answer isA"),
    *("Video /data/videomme/data/AbCdEf.mp4 can not load, check the source", "E", "(F) green"),
    *("The answer is The answer is", "The The answeranswer is C", "B是正确的", "Best answer: D"),
)


def generate(seed: int, count: int) -> list[str]:
    """Return predictions: the fixed ones, then random strings of pieces and random characters."""
    draw = random.Random(seed)
    predictions = list(STRINGS)
    alphabet = "ABCDEabcde()., :;!?'\"\n*isanwer的选"
    while len(predictions) < count:
        if draw.random() < 0.8:
            glue = draw.choice(("", " ", " ", "\n"))
            predictions.append(glue.join(draw.choices(PIECES, k=draw.randint(1, 7))))
        else:
            predictions.append("".join(draw.choices(alphabet, k=draw.randint(1, 30))))
    return predictions[:count]


V2_OPTIONS = "A. dog\nB. A cat.\nC. Blue\nD. man\nE. none\nF. 2\nG. \nH. o"
STRUCTURES = ("[1, 2, 3, 4]", "[1, [2, 3], 4]", "[[1, 2], 3, 4]")


def make_docs(benchmark: str, seed: int, count: int) -> list[dict]:
    """Return rows of a benchmark with the columns that scoring reads."""
    draw = random.Random(seed)
    docs: list[dict] = []
    for i in range(count):
        answer = draw.choice("ABCD")
        if benchmark.startswith("videomme_v2"):
            doc = {
                "video_id": f"{i // 4:03}",
                "question_id": f"{i // 4:03}-{4 - i % 4}",
                "group_type": ("relevance", "logic")[i // 4 % 2],
                "group_structure": STRUCTURES[i // 8 % 3],
                "level": draw.choice((1, 2, 3)) if seed % 2 else draw.choice("123"),
                "second_head": draw.choice(("Order", "Change")),
                "third_head": draw.choice(("Motion", "Plot")),
                "options": V2_OPTIONS,
                "answer": draw.choice("ABCDEFGH"),
            }
        elif benchmark.startswith("videomme"):
            doc = {
                "question_id": f"{i:03}-1",
                "videoID": f"v{i // 3}",
                "duration": draw.choice(("short", "medium", "long")),
                "domain": draw.choice(("Knowledge", "Life Record", "Multilingual")),
                "sub_category": draw.choice(("Law", "Food", "Multilingual")),
                "task_type": draw.choice(("OCR Problems", "Temporal Reasoning")),
                "answer": answer,
            }
        elif benchmark.startswith("mlvu"):
            task = draw.choice(MLVU_TASKS[benchmark])
            doc = {"question": f"What {i}?", "task_type": task, "answer": answer}
        elif benchmark.startswith("longvideobench"):
            options = draw.randint(2, 5)
            doc = {f"option{k}": f"o{k}" if k < options else "N/A" for k in range(5)}
            doc |= {
                "id": f"x_{i}",
                "correct_choice": draw.randrange(options),
                "duration_group": draw.choice((15, 60, 600, 3600)),
                "question_category": draw.choice(("S2E", "T2A", "SSS")),
            }
        elif benchmark == "lvbench":
            doc = {"uid": i, "answer": answer}
        elif benchmark == "tvbench":
            options = draw.sample(
                ("dog", "A man", "blue", "none", "2", "3", "1"), draw.randint(1, 5)
            )
            doc = {
                "task": draw.choice(TVBENCH_TASKS),
                "video": f"v{i}.mp4",
                "candidates": options,
                "answer": draw.choice((*options, *options, "b", "not here", "0", " A  MAN ")),
            }
        elif benchmark.startswith("temporalbench"):
            doc = {
                "idx": f"q{i - i % 50 // 49}",  # now and then the one before again
                "video_name": f"v{i // 3}.mp4",
                "GT": draw.choice("ABb"),
                "dataset": draw.choice(("FineGym", "EgoExo4D")),
                "category": draw.choice(("Action Order", "Others")) if "short" in benchmark else "",
            }
        else:
            doc = {
                "video_id": f"v{i}",
                "question": "What?\nA. walk\nB. run\nC. sit\nD. lie",
                "answer": {"A": "A. walk", "B": "B. run", "C": "C. sit", "D": "D. lie"}[answer],
                "dim": draw.choice(("action", "direction", "speed", "order", "attribute_change")),
            }
        docs.append(doc)
    return docs


def packages(era: str) -> str:
    """Folders with the era's package, from the environment or what is installed; else skips."""
    variable = VARIABLES[era]
    if variable in os.environ:
        return os.environ[variable]
    if era == ERAS[0] and (spec := find_spec("lmms_eval")):
        assert spec.origin
        return str(Path(spec.origin).parents[1])
    pytest.skip(f"lmms-eval is not there: {variable} must name the folder of the package")


def versions(folders: str) -> str:
    """Of the packages in those folders."""
    found = distributions(path=folders.split(os.pathsep))
    return ", ".join(sorted({d.version for d in found if d.metadata["Name"] == "lmms_eval"}))


class Oracle:
    """`oracle.py` as a child process, as long as the `with` block lasts."""

    def __init__(self, era: str, **environment: str):
        self.child = subprocess.Popen(
            [sys.executable, str(HERE / "oracle.py"), packages(era)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            env=os.environ | environment,
        )

    def __enter__(self) -> "Oracle":
        return self

    def __exit__(self, *_) -> None:
        self.child.communicate()

    def __call__(self, task: str, kind: str, **arguments):
        print(json.dumps([task, kind, arguments]), file=self.child.stdin, flush=True)
        line = self.child.stdout.readline()
        assert line, "the oracle crashed, see standard error"
        return json.loads(line)


def differences(oracle: Oracle, era: str, name: str, docs: list[dict], predictions: list[str]):
    """Predictions for which any logged value is another one, and how far the means are apart."""
    theirs = oracle(name, "process", docs=docs, predictions=predictions)
    scorer = Scorer(name, era)
    verdicts = [scorer.judge(d, p) for d, p in zip(docs, predictions, strict=True)]
    wrong = [
        prediction
        for prediction, verdict, logged in zip(predictions, verdicts, theirs["logged"], strict=True)
        if json.loads(json.dumps(verdict.metrics)) != logged
    ]
    results = scorer.summary(docs, verdicts)["results"][name]
    apart = [
        np.abs(np.subtract(results[f"{metric},none"], value)).max()
        for metric, value in theirs["totals"].items()
    ]
    return wrong, max(apart)


HEAD = """# Agreement with lmms-eval

{count} predictions per benchmark and era, generated and adversarial, each for its own question:
letters in all forms, the extractor's phrases in four scripts, characters that change under case
mapping, invisible characters, and empty texts. All values that lmms-eval logs for a prediction are
compared, and the value of every metric. TempCompass runs without a key for GPT, LongVideoBench with
seed 0. What an old version lacks is compared with a later one that has its rule: LVBench with
0.7.1, TVBench and Video-MME-v2 with 0.7.3. 0.3.0 lists other task names for MLVU; those of the rows
replace them. TemporalBench's function fails for an empty text; it gets another wrong one.

Written by `python tests/evaluation/agreement.py`.

| era | lmms-eval | benchmark | predictions | different | metrics apart by |
|---|---|---|---|---|---|
"""


def main(count: int = 5000) -> None:
    """Writes the table."""
    lines = []
    for era in ERAS:
        with Oracle(era) as oracle:
            for i, name in enumerate(SCORING_RULES):
                docs, predictions = make_docs(name, i, count), generate(i, count)
                wrong, apart = differences(oracle, era, name, docs, predictions)
                cells = era, versions(packages(era)), name, count, len(wrong), f"{apart:.1g}"
                lines.append("| " + " | ".join(map(str, cells)) + " |")
    TABLE.write_text(HEAD.format(count=count) + "\n".join(lines) + "\n")


if __name__ == "__main__":
    main()
