"""Letters, scores and means equal those of the published lmms-eval."""

import hypothesis
import hypothesis.strategies as st
import numpy as np
import pytest

from tests.evaluation.agreement import Oracle, differences, generate, make_docs
from tpo_jax.errors import InputError
from tpo_jax.evaluation import extraction
from tpo_jax.evaluation.scorers import BENCHMARKS, Scorer
from tpo_jax.evaluation.verdicts import ERAS


@pytest.fixture(scope="module", params=ERAS)
def oracle(request):
    with Oracle(request.param) as oracle:
        yield request.param, oracle


@pytest.mark.parametrize("benchmark", BENCHMARKS)
def test_agrees_with_lmms_eval(oracle, benchmark) -> None:
    era, ask = oracle
    docs, predictions = make_docs(benchmark, 3, 2000), generate(4, 2000)
    wrong, apart = differences(ask, era, benchmark, docs, predictions)
    assert not wrong
    assert apart < 1e-12


@pytest.mark.parametrize(
    "benchmark", ["mlvu_dev", "longvideobench_val_v", "tempcompass_multi_choice"]
)
def test_agrees_on_any_text(oracle, benchmark) -> None:
    era, ask = oracle
    texts = st.text(st.sampled_from("ABCDEab().:; the answer is\n") | st.characters(), max_size=40)

    @hypothesis.given(st.lists(texts, min_size=1, max_size=20))
    @hypothesis.settings(max_examples=100)
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
