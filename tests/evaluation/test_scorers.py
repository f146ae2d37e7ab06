"""Letters, scores and means equal those of the published lmms-eval."""

import hypothesis
import hypothesis.strategies as st
import numpy as np
import pytest

from tests.evaluation.agreement import Oracle, differences, generate, make_docs
from tpo_jax.errors import InputError
from tpo_jax.evaluation import extraction
from tpo_jax.evaluation.scorers import SCORING_RULES, Scorer
from tpo_jax.evaluation.verdicts import ERAS


@pytest.fixture(scope="module", params=ERAS)
def oracle(request):
    with Oracle(request.param) as oracle:
        yield request.param, oracle


@pytest.mark.parametrize("benchmark", SCORING_RULES)
def test_agrees_with_lmms_eval(oracle, benchmark) -> None:
    era, ask = oracle
    docs, predictions = make_docs(benchmark, 3, 2000), generate(4, 2000)
    wrong, apart = differences(ask, era, benchmark, docs, predictions)
    assert not wrong
    assert apart < 1e-12


@pytest.mark.parametrize(
    "benchmark",
    ["mlvu_dev", "longvideobench_val_v", "tempcompass_multi_choice", "tvbench", "videomme_v2"],
)
def test_agrees_on_any_text(oracle, benchmark) -> None:
    era, ask = oracle
    if era != "lmms_eval_0.7" and benchmark in ("tvbench", "videomme_v2"):
        return  # one rule only
    texts = st.text(st.sampled_from("ABCDEab().:; the answer is\n") | st.characters(), max_size=40)

    @hypothesis.given(st.lists(texts, min_size=1, max_size=20))
    @hypothesis.settings(max_examples=50)
    def agrees(predictions):
        docs = make_docs(benchmark, 0, len(predictions))
        wrong, apart = differences(ask, era, benchmark, docs, predictions)
        assert not wrong
        assert apart < 1e-12

    agrees()


@pytest.mark.parametrize(
    ("text", "today", "before", "longvideobench"),
    [
        ("B", "B", "B", "B"),
        ("  (b) ", "", "", ""),
        ("Best answer: C", "C", "B", "C"),
        ("The answer is C: Apple", "A", "C", "C"),
        ("C is wrong, so it must be (D), not B!", "C", "C", "C"),
        ("Is it A? I choose the first, D.", "D", "A", "A"),
        ("E", "", "", "E"),
        ("ADC", "C", "A", "A"),
        ("FAILED to see it", "D", "A", "A"),
        ("답은 B 입니다", "B", "B", "B"),
        ('".,"', "", "", ""),
    ],
)
def test_letters(text, today, before, longvideobench) -> None:
    assert extraction.ranked(text) == today
    assert extraction.first(text, "ABCD", extraction.PAPER_ERA_OPENINGS) == before
    assert extraction.first(text, "ABCDE", extraction.LONGVIDEOBENCH_OPENINGS) == longvideobench


@hypothesis.given(st.text())
def test_a_letter_is_in_the_text(text) -> None:
    assert extraction.ranked(text) in {"", *text} & {"", *"ABCD"}


def test_guesses_are_seeded_and_counted() -> None:
    docs = make_docs("longvideobench_val_v", 0, 400)

    def score(seed):
        scorer = Scorer("longvideobench_val_v", seed=seed)
        verdicts = [scorer.judge(doc, "no idea") for doc in docs]
        return [v.extracted for v in verdicts], scorer.summary(docs, verdicts)

    letters, summary = score(0)
    assert score(0) == (letters, summary)
    assert score(1)[0] != letters
    assert summary["no_answer"] == 400
    assert summary["score_without_guessing"] == 0
    assert 0.2 < summary["score"] < 0.5  # two to five options


def test_mlvu_averages_tasks_now_and_questions_in_the_paper_era() -> None:
    docs = [{"question": "Q", "task_type": t, "answer": "A"} for t in ("count", "count", "ego")]
    scores = {}
    for era in ERAS:
        scorer = Scorer("mlvu_dev", era)
        verdicts = [scorer.judge(doc, text) for doc, text in zip(docs, "AAB", strict=True)]
        scores[era] = scorer.summary(docs, verdicts)["score"]
    tasks, questions = 100 / 7, pytest.approx(200 / 3)
    assert scores == {"lmms_eval_0.7": tasks, "lmms_eval_0.3.2": tasks, "paper_era": questions}


def test_mlvu_took_whole_answers_for_letters() -> None:
    """And any letter counted, also those of the test set's six options that today's rule lacks."""
    for text, between, today in (
        *(("B", "B", "B"), ("B.", "B.", "B"), ("(B) a dog", "B", "B"), ("E", "E", "")),
        *(("A dog (or B)", "B", "A"), (") A", "", "A"), ("", "", "")),
    ):
        doc = {"question": "Q", "task_type": "order", "answer": "B"}
        verdict = Scorer("mlvu_test", "lmms_eval_0.3.2").judge(doc, text)
        assert verdict.extracted == between
        assert verdict.score == (between == "B")
        assert verdict.answered == (between in ("B", "E"))
        assert Scorer("mlvu_test").judge(doc, text).extracted == today


def test_digits_of_tvbench_number_an_option() -> None:
    """As in lmms-eval, also where another option is the digit itself."""
    doc = {"candidates": ["2", "3", "4"], "answer": "2", "task": "action_count"}
    assert [Scorer("tvbench").judge(doc, text).score for text in ("A", "C", "(c) 4")] == [0, 1, 1]
    assert Scorer("tvbench").judge(doc | {"answer": "4"}, "C").score == 1


def test_temporalbench_counts_videos_with_right_answers_only() -> None:
    docs = [
        {"idx": i, "GT": "A", "video_name": f"{i // 2}.mp4", "dataset": "d", "category": "c"}
        for i in range(6)
    ]
    scorer = Scorer("temporalbench_short_qa")
    answers = ("A", "A", "a", "B", "", "A")
    verdicts = [scorer.judge(doc, text) for doc, text in zip(docs, answers, strict=True)]
    summary = scorer.summary(docs, verdicts)
    assert summary["score"] == pytest.approx(100 * 4 / 6)
    assert summary["multiple_binary_accuracy"] == pytest.approx(100 / 3)
    assert summary["no_answer"] == 1


@pytest.mark.parametrize(
    ("structure", "right", "worth"),
    [
        ("relevance", "1010", 25),
        ("[1, 2, 3, 4]", "1101", 25),
        ("[1, [2, 3], 4]", "1011", 100 / 3),
        ("[1, [2, 3], 4]", "1111", 100),
        ("[[1, 2], 3, 4]", "0111", 10),
        ("[[1,2],3,4]", "0000", 0),
    ],
)
def test_groups_of_videomme_v2(structure, right, worth) -> None:
    kind = "relevance" if structure == "relevance" else "logic"
    docs = [
        {"video_id": "1", "question_id": f"1-{i}", "group_type": kind, "options": "A. a\nB. b"}
        | {"group_structure": structure, "answer": "A", "level": i}
        for i in range(1, 5)
    ]
    scorer = Scorer("videomme_v2")
    verdicts = [scorer.judge(doc, "AB"[x == "0"]) for doc, x in zip(docs, right, strict=True)]
    summary = scorer.summary(docs[::-1], verdicts[::-1])
    assert summary["score"] == pytest.approx(worth)
    accuracy = summary["results"]["videomme_v2"]["videomme_v2_level_2_acc,none"]
    assert accuracy == 100 * int(right[1])


def test_breakdown_and_errors_by_hand() -> None:
    docs = make_docs("videomme", 0, 30)
    scorer = Scorer("videomme")
    verdicts = [scorer.judge(doc, "ABCD"[i % 4]) for i, doc in enumerate(docs)]
    summary = scorer.summary(docs, verdicts)
    right = np.array([v.score for v in verdicts])
    results = summary["results"]["videomme"]
    clt = results["videomme_perception_score_stderr_clt,none"]
    assert clt == pytest.approx(right.std(ddof=1) / 30**0.5)
    away = (right - right.mean()).reshape(10, 3)  # three questions on each video
    between = sum(np.outer(a, a).sum() - (a**2).sum() for a in away)
    clustered = results["videomme_perception_score_stderr_clustered,none"]
    assert clustered == pytest.approx((clt**2 + between / 30**2) ** 0.5)
    for column, groups in summary["breakdown"].items():
        assert sum(g["questions"] for g in groups.values()) == 30
        for value, group in groups.items():
            of_group = [
                v.score for v, doc in zip(verdicts, docs, strict=True) if doc[column] == value
            ]
            assert group["percent"] == pytest.approx(100 * np.mean(of_group))


@pytest.mark.parametrize(
    ("benchmark", "doc", "message"),
    [
        ("videomme", {"answer": 1}, "'answer'"),
        ("longvideobench_val_i", {"option0": "N/A", "correct_choice": 0}, "'option0'"),
        ("longvideobench_val_i", {"option0": "x", "correct_choice": "A"}, "'correct_choice'"),
        ("longvideobench_val_i", {"option0": "x", "correct_choice": -(2**70)}, "'correct_choice'"),
        ("tempcompass_multi_choice", {"answer": "A. x"}, "'dim'"),
        ("tvbench", {"answer": "A"}, "'candidates'"),
        ("tvbench", {"answer": "A", "candidates": []}, "'candidates'"),
        ("temporalbench_long_qa", {"GT": "A", "video_name": "a.mp4"}, "'idx'"),
        ("videomme_v2", {"options": "", "answer": "A", "group_type": "pair"}, "'group_type'"),
        (
            "videomme_v2",
            {"options": "", "answer": "A", "group_type": "logic", "group_structure": "[4]"},
            "'group_structure'",
        ),
    ],
)
def test_rows_that_cannot_be_scored(benchmark, doc, message) -> None:
    with pytest.raises(InputError, match=message):
        Scorer(benchmark).judge(doc, "A")


def test_unknown_names_are_an_error() -> None:
    with pytest.raises(InputError, match="--benchmark=mlvu: unknown.*mlvu_dev"):
        Scorer("mlvu")
    with pytest.raises(InputError, match="--scorer=old: unknown.*paper_era"):
        Scorer("mlvu_dev", "old")
    scorer = Scorer("mlvu_dev")
    doc = {"answer": "A", "task_type": "needleQA"}
    with pytest.raises(InputError, match="needleQA.*mlvu_dev"):
        scorer.summary([doc], [scorer.judge(doc, "A")])
