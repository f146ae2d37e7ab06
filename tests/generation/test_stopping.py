"""Stop strings: an answer that grows ends where the whole one does, and never shows part of one."""

from hypothesis import given
from hypothesis import strategies as st

from tpo_jax.generation.stopping import first_stop, held_back

TEXT = st.text("ab\n", max_size=12)
STOP = st.lists(st.text("ab\n", min_size=1, max_size=4), max_size=4)


@given(TEXT, STOP, st.data())
def test_a_growing_answer_ends_where_the_whole_one_does(text, stop, data) -> None:
    end = first_stop(text, stop)
    if end is None:
        assert not any(s in text for s in stop)
    else:
        # It ends before the first stop string that a character completes.
        complete = next(n for n in range(len(text) + 1) if any(s in text[:n] for s in stop))
        assert any(text[end:complete] == s for s in stop)
    final = text if end is None else text[:end]
    shown = 0
    for n in sorted(data.draw(st.sets(st.integers(0, len(text))))):
        if (found := first_stop(text[:n], stop)) is not None:
            assert found == end
            break
        now = n - held_back(text[:n], stop)
        assert shown <= now <= len(final)
        shown = now


@given(TEXT, STOP)
def test_only_what_may_become_a_stop_string_is_held_back(text, stop) -> None:
    held = held_back(text, stop)
    assert not held or any(s.startswith(text[-held:]) for s in stop)
