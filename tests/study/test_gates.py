"""Which types of question pairs can teach a base model."""

import math

from tpo_jax.study.gates import FRAMES, gate_table, gates, gates_of_seeds
from tpo_jax.study.records import Answer, Candidate


def answers(seconds, frames, type, kind, right):
    """Answers of which a share is right, of a hundred."""
    return [
        Answer(i, seconds, frames, type, kind, right=i < round(100 * right)) for i in range(100)
    ]


def made(type, kind, right):
    texts = "What?", "It is so.", "It is not."
    return [
        Candidate(str(i), type, kind, *texts, i < round(100 * right), False) for i in range(100)
    ]


def test_a_type_is_to_be_mastered_and_lost_among_all_frames():
    base, candidates = [], []
    for type, kind, short, window, *all_frames in (
        ("digits", "localized", 0.97, 0.91, 0.55, 0.50),
        ("hues", "localized", 0.99, 0.98, 0.95, 0.83),
        ("causes", "localized", 0.70, 0.60, 0.20, 0.20),
        ("shapes", "localized", 0.99, 0.98, 0.97, 0.84),
        ("ends", "comprehensive", 0.96, 0.50, 0.50, 0.50),
    ):
        base += answers(24, 8, type, kind, short)
        for frames, share in zip(FRAMES, all_frames, strict=True):
            base += answers(96, frames, type, kind, share)
        base += answers(96, 96, type, kind, 0.0) + answers(96, 0, type, kind, 0.0)
        candidates += made(type, kind, window)
    found = {gate.type: gate for gate in gates(base, candidates)}
    assert {name: gate.verdict for name, gate in found.items()} == {
        "digits": "holds",
        "hues": "holds",
        "causes": "not mastered",
        "shapes": "little to gain",
        "ends": "holds",
    }
    digits = found["digits"]
    assert (digits.short, digits.window, digits.all_frames) == (0.97, 0.91, (0.55, 0.50))
    assert ["digits", "localized", "0.97", "0.91", "0.55", "0.50", "holds"] in gate_table(
        found.values()
    )


def test_what_was_not_asked_is_not_mastered():
    base = answers(96, 32, "digits", "localized", 1.0)
    (gate,) = gates(base, made("digits", "localized", 1.0))
    assert math.isnan(gate.short) and gate.verdict == "not mastered"
    assert gate_table([gate])[1][2] == "–"


def test_gates_of_seeds_are_counted():
    found = []
    for short, all_frames in ((1.0, 0.5), (0.9, 0.5), (0.98, 0.95)):
        base = answers(24, 8, "digits", "localized", short)
        base += answers(96, FRAMES[0], "digits", "localized", all_frames)
        base += answers(96, FRAMES[1], "digits", "localized", all_frames - 0.04)
        found.append(gates(base, made("digits", "localized", 1.0)))
    [line] = gates_of_seeds(found)[1:]
    assert line == ["digits", "localized", "0.96", "0.90", "1.00", "0.65", "0.61", "1", "1", "1"]


def test_means_over_seeds_are_of_those_that_were_asked():
    asked = answers(24, 8, "digits", "localized", 0.9) + answers(
        96, FRAMES[0], "digits", "localized", 0.5
    )
    made_of_it = made("digits", "localized", 1.0)
    unasked = answers(96, FRAMES[0], "digits", "localized", 0.7)
    [line] = gates_of_seeds([gates(asked, made_of_it), gates(unasked, made_of_it)])[1:]
    assert line[2:7] == ["0.90", "0.90", "1.00", "0.60", "–"]
