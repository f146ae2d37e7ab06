from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tpo_jax.data.order import epoch_order, held_out_videos, select
from tpo_jax.data.records import KINDS, PairRecord, Provenance
from tpo_jax.errors import InputError


def index(kinds, videos=None):
    videos = videos or range(len(kinds))
    return [
        PairRecord(str(i), f"v{v}", k, "q", "c", "r", "clip", (), (), 1.0, 1.0)
        for i, (k, v) in enumerate(zip(kinds, videos, strict=True))
    ]


@given(
    st.lists(st.integers(0, 4), min_size=1, max_size=30),
    st.integers(1, 5),
    st.integers(1, 4),
    st.integers(0, 9),
    st.booleans(),
)
def test_every_pair_once_and_rows_of_one_video(videos, rows, q, seed, shuffle):
    pairs = index(["other"] * len(videos), videos)
    args = pairs, select(pairs), rows, q
    order = epoch_order(*args, seed=seed, epoch=0, shuffle=shuffle)
    assert order.shape[1:] == (rows, q)
    assert sorted(order[order >= 0].tolist()) == list(range(len(videos)))
    for row in order.reshape(-1, q).tolist():
        used = [p for p in row if p >= 0]
        assert row == used + [-1] * (q - len(used))
        assert len({videos[p] for p in used}) <= 1
    # Only the end is incomplete, and no batch is empty.
    filled = (order[..., 0] >= 0).reshape(-1)
    assert filled[: filled.sum()].all() and (order[-1] >= 0).any()
    assert (order == epoch_order(*args, seed=seed, epoch=0, shuffle=shuffle)).all()


def test_epochs_and_seeds_differ_and_no_shuffle_keeps_the_order():
    pairs = index(["other"] * 40)
    orders = [
        epoch_order(pairs, select(pairs), 4, seed=s, epoch=e).reshape(-1).tolist()
        for s in (0, 1)
        for e in (0, 1)
    ]
    assert len({tuple(o) for o in orders}) == 4
    order = epoch_order(pairs, select(pairs), 4, seed=0, epoch=1, shuffle=False)
    assert order.reshape(-1).tolist() == list(range(40))


@given(
    st.lists(st.sampled_from(KINDS), max_size=60),
    st.tuples(st.integers(0, 5), st.integers(0, 5)).filter(any),
    st.integers(0, 40),
)
def test_mixing_is_exact_to_one_pair_and_as_large_as_it_can_be(kinds, mixing, limit):
    shares = np.array(mixing) / sum(mixing)
    have = np.array([kinds.count("localized"), kinds.count("comprehensive")])
    total = min([limit or len(kinds), *(have[shares > 0] / shares[shares > 0])])
    try:
        chosen = select(index(kinds), mixing, limit)
    except InputError:
        assert (total * shares < 1).all()
        return
    assert len(set(chosen.tolist())) == len(chosen) <= (limit or len(kinds))
    got = np.array([sum(kinds[i] == k for i in chosen) for k in KINDS[:2]])
    assert got.sum() == len(chosen)
    assert (np.abs(got - total * shares) < 1).all()
    for kind, count in zip(KINDS[:2], got, strict=True):
        first = [i for i, k in enumerate(kinds) if k == kind][:count]
        assert [i for i in chosen if kinds[i] == kind] == first


def test_limit_takes_the_first_and_nothing_left_is_an_error():
    pairs = index(["other", "localized", "other"])
    assert select(pairs, limit=2).tolist() == [0, 1]
    assert select(pairs, limit=9).tolist() == [0, 1, 2]
    with pytest.raises(InputError, match="no pair is left of 1 localized, 0 comprehensive"):
        select(pairs, (1, 1))


@given(st.lists(st.sampled_from(KINDS[:3]), min_size=3, max_size=60), st.booleans(), st.data())
def test_subsets_are_nested_and_drawn(kinds, mixed, data):
    pairs = index([*kinds, "localized", "comprehensive"])
    small, large = sorted(data.draw(st.tuples(*[st.integers(2, 62)] * 2)))
    mixing = (1.0, 1.0) if mixed else ()
    chosen = [set(select(pairs, mixing, n, subset_seed=3).tolist()) for n in (small, large)]
    assert chosen[0] <= chosen[1]
    if not mixed:
        assert len(chosen[0]) == min(small, len(pairs))
        everything = select(pairs, mixing, 0, subset_seed=3)
        assert everything.tolist() == list(range(len(pairs)))


def test_a_subset_belongs_to_its_seed_and_to_the_pairs_not_to_their_places():
    pairs = index(["other"] * 100)
    drawn = [tuple(select(pairs, limit=20, subset_seed=seed)) for seed in (1, 2)]
    assert drawn[0] != drawn[1] and drawn[0] != tuple(range(20))
    turned = select(pairs[::-1], limit=20, subset_seed=1)
    assert sorted(99 - turned) == list(drawn[0])


@given(st.lists(st.sampled_from([0, 2, 4, 8, 16]), min_size=1, max_size=40), st.integers(1, 3))
def test_a_curriculum_goes_from_easy_to_hard(levels, q):
    pairs = [
        replace(
            pair, provenance=Provenance(manipulation=f"full / drop:{m}" if m else "full / rest")
        )
        for pair, m in zip(index(["other"] * len(levels), [0] * len(levels)), levels, strict=True)
    ]
    args = pairs, select(pairs), 2, q
    orders = [
        epoch_order(*args, seed=0, epoch=e, curriculum=True).reshape(-1, q) for e in (0, 0, 1)
    ]
    assert (orders[0] == orders[1]).all()
    for order in orders:
        assert sorted(order[order >= 0].tolist()) == list(range(len(levels)))
        rows = [[levels[p] for p in row if p >= 0 and levels[p]] for row in order]
        assert all(len(set(row)) <= 1 for row in rows)
        seen = [row[0] for row in rows if row]
        assert seen == sorted(seen, reverse=True)


@given(
    st.lists(st.integers(0, 20), min_size=2, max_size=60).filter(lambda x: len(set(x)) > 1),
    st.floats(0, 0.99),
    st.integers(0, 9),
)
def test_held_out_videos_are_whole_and_a_function_of_ids_and_seed(videos, share, seed):
    pairs, count = index(["other"] * len(videos), videos), len(set(videos))
    expected = max(1, round(share * count)) if share else 0
    if expected >= count:
        with pytest.raises(InputError, match="leaves none of"):
            held_out_videos(pairs, share, seed)
        return
    held_out = held_out_videos(pairs, share, seed)
    assert len(held_out) == expected
    trained = {pairs[i].video_id for i in select(pairs, excluded=held_out)}
    assert trained == {pair.video_id for pair in pairs} - held_out
    assert held_out_videos(pairs[::-1], share, seed) == held_out


def test_the_seed_draws_the_held_out_videos():
    pairs = index(["other"] * 100)
    assert held_out_videos(pairs, 0.2, 1) != held_out_videos(pairs, 0.2, 2)
