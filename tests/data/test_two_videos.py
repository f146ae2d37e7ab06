"""Pairs of one answer and two videos from a list to the rows of a batch."""

import dataclasses
import json
import shutil

import cv2
import numpy as np
import pytest

from tests.data.test_pipeline import equal, joined, make, tokenizer
from tpo_jax.data import preparation
from tpo_jax.data.config import DataConfig
from tpo_jax.data.shards import open_shards, shard_names, write_metadata, write_shard
from tpo_jax.data.two_videos import select_two_videos
from tpo_jax.errors import InputError

__all__ = ["tokenizer"]  # a fixture
FRAMES, VIDEOS, ANSWERS, TWO = 4, 4, 6, 5


@pytest.fixture(scope="module")
def world(tmp_path_factory):
    """Six pairs of two answers and five of two videos, over three videos and, as a rejected one
    alone, a fourth.
    """
    root = tmp_path_factory.mktemp("two")
    rng = np.random.default_rng(0)
    for v in range(VIDEOS):
        code = cv2.VideoWriter_fourcc(*"mp4v")
        writer = cv2.VideoWriter(str(root / f"{v}.mp4"), code, 8.0, (64, 48))
        for _ in range(12 if v < 3 else 900):
            tiles = rng.integers(0, 256, (3, 4, 3), np.uint8)
            writer.write(np.kron(tiles, np.ones((16, 16, 1), np.uint8)))
        writer.release()
    answers = [
        {"video": f"{i % 3}.mp4", "prompt": f"Who is {i}?", "chosen": "He is.", "rejected": "No."}
        for i in range(ANSWERS)
    ]
    two = [
        {
            "id": f"two-{i}",
            "video": f"{i % 3}.mp4",
            "rejected_video": "3.mp4" if i == 4 else f"{(i + 1) % 3}.mp4",
            "prompt": f"What happens in {i}?",
            "chosen": f"It {'very ' * i}turns.",
        }
        for i in range(TWO)
    ]
    (root / "pairs.json").write_text(json.dumps([*answers[:3], *two, *answers[3:]]))
    for encoding in ("clip", "png"):
        settings = preparation.Settings("uniform", FRAMES, encoding)
        preparation.prepare(
            root / "pairs.json", root, root / encoding, settings, preparation.Work()
        )
    return root


@pytest.fixture(scope="module")
def config(world):
    return DataConfig(
        **{"batch_size": 2, "num_epochs": 2, "seed": 0, "answers": 2, "phrases": False},
        shards=str(world / "clip"),
        num_frames=FRAMES,
        video_pairs=2,
        prefix_multiple=16,
        workers=0,
    )


def test_a_pair_is_two_rows_with_one_answer_each(config, tokenizer):
    pipeline = make(config, tokenizer, shuffle=False)
    batch = pipeline[0]
    index = pipeline.shards.index
    assert batch.pair_index[:, 0].tolist() == [3, 3, 4, 4, 0, 1]
    answered = batch.target_mask.any(-1)[:, 0].tolist()
    assert answered == [[True, False], [False, True]] * 2 + [[True, True]] * 2
    for first in (0, 2):
        one, two = batch.target_mask[first, 0, 0], batch.target_mask[first + 1, 0, 1]
        assert (batch.target_ids[first, 0, 0][one] == batch.target_ids[first + 1, 0, 1][two]).all()
        assert not batch.input_mask[first, 0, 1].any()
        assert not batch.input_mask[first + 1, 0, 0].any()
        assert (batch.prefix_ids[first] == batch.prefix_ids[first + 1]).all()
        assert (batch.frames[first] != batch.frames[first + 1]).any()
        # The rows of the videos are those that pairs of two answers on them have.
        pair = index[batch.pair_index[first, 0]]
        for row, digest in ((first, pair.video_digest), (first + 1, pair.rejected_video_digest)):
            assert (batch.frames[row] == frames_of(config, tokenizer, digest)).all()


def frames_of(config, tokenizer, digest):
    """The frames that a pair of two answers on a video gives."""
    pipeline = make(config, tokenizer, shuffle=False).once()
    for k in range(len(pipeline)):
        batch = pipeline[k]
        for row in range(4, 6):
            position = int(batch.pair_index[row, 0])
            if position >= 0 and pipeline.shards.index[position].video_digest == digest:
                return batch.frames[row]
    raise AssertionError(digest)


def test_an_epoch_of_answers_and_videos_that_begin_again(config, tokenizer, tmp_path):
    """Answers are those of a run without the other pairs; these go round, each once a cycle."""
    pipeline = make(config, tokenizer, num_epochs=4)
    batches = [pipeline[k] for k in range(len(pipeline))]
    assert len(batches) == 4 * 3
    alone = rewritten(config, tmp_path / "a", lambda ps: [p for p in ps if p.kind != "video"])
    plain = make(config, tokenizer, num_epochs=4, video_pairs=0, shards=alone)
    positions = [0, 1, 2, 8, 9, 10]  # of the same pairs in these shards
    for k, batch in enumerate(batches):
        expected = [positions[i] for i in plain[k].pair_index[:, 0].tolist()]
        assert batch.pair_index[4:, 0].tolist() == expected
    taken = np.concatenate([b.pair_index[:4:2, 0] for b in batches])
    cycles = taken[: TWO * 4].reshape(4, TWO)
    assert all(sorted(cycle) == [3, 4, 5, 6, 7] for cycle in cycles.tolist())
    assert len({tuple(cycle) for cycle in cycles.tolist()}) > 1
    other = make(config, tokenizer, seed=1)
    assert [other[k].pair_index[:4:2, 0].tolist() for k in range(3)] != [
        batch.pair_index[:4:2, 0].tolist() for batch in batches[:3]
    ]


def rewritten(config, directory, change):
    """Shards of the same videos, and of what a function makes of the pairs."""
    source = open_shards(config.shards)
    shutil.copytree(source.directory, directory)
    for shard in source.manifest["shards"]:
        (directory / shard["name"]).unlink()
    records = change(list(source))
    entry = write_shard(directory / shard_names(1)[0], records)
    write_metadata(directory, (r.to_json() for r in records), source.manifest | {"shards": [entry]})
    return str(directory)


def test_once_has_every_pair_of_either_kind_once(config, tokenizer):
    for sizes in ({"batch_size": 2, "video_pairs": 1}, {"batch_size": 6, "video_pairs": 3}):
        once = make(config, tokenizer, **sizes).once()
        batches = [once[k] for k in range(len(once))]
        assert len(batches) == (5 if sizes["video_pairs"] == 1 else 2)
        rows = 2 * sizes["video_pairs"]
        two = [i for b in batches for i in b.pair_index[:rows:2, 0].tolist() if i >= 0]
        assert two == [3, 4, 5, 6, 7]
        assert all((b.pair_index[:rows:2] == b.pair_index[1:rows:2]).all() for b in batches)
        answers = [i for b in batches for i in b.pair_index[rows:, 0].tolist() if i >= 0]
        assert answers == [0, 1, 2, 8, 9, 10]
        for batch in batches:
            assert not batch.target_mask[batch.pair_index < 0].any()


@pytest.mark.parametrize(("hosts", "workers"), [(2, 1), (3, 0)])
def test_hosts_share_rows_and_workers_and_resuming_change_nothing(
    config, tokenizer, hosts, workers
):
    sizes = {"batch_size": 2 * hosts, "video_pairs": hosts}
    whole = make(config, tokenizer, **sizes)
    parts = [make(config, tokenizer, host=(i, hosts), **sizes) for i in range(hosts)]
    for k in range(len(whole)):
        assert equal(joined(*(part[k] for part in parts)), whole[k])
    one = iter(whole)
    assert equal(next(one), whole[0])
    state = one.get_state()
    other = iter(make(config, tokenizer, workers=workers, **sizes))
    other.set_state(state)
    assert equal(next(other), whole[1])
    for batches in (one, other):
        batches.close()


@pytest.mark.parametrize("q", [1, 2])
@pytest.mark.parametrize("style", ["inference", "dpo_trainer"])
def test_questions_of_one_row_and_labels_of_the_prefix(config, tokenizer, q, style):
    made = make(config, tokenizer, pairs_per_row=q, batch_size=2 * q, prompt_style=style)
    batch = made[0]
    answered = batch.target_mask.any(-1)[:4]
    assert answered[:, 0].tolist() == [[True, False], [False, True]] * 2
    assert not answered[:, 1:].any()


def test_the_longer_side_is_measured(config, tokenizer):
    """Times of a long rejected video take more tokens: the only video of the longest prefix."""
    made = make(config, tokenizer, time_instruction="inline", prefix_multiple=1, batch_size=2)
    shorter = make(
        config, tokenizer, time_instruction="inline", prefix_multiple=1, limit=4, batch_size=2
    )
    assert made.shape.prefix > shorter.shape.prefix
    used = [made.once()[k].prefix_mask.sum(-1).max() for k in range(len(made.once()))]
    assert max(used) == made.shape.prefix
    with pytest.raises(InputError, match=r"pair 'two-4' \(3.mp4\): the prefix has"):
        make(config, tokenizer, time_instruction="inline", max_prefix=shorter.shape.prefix)


def test_limit_and_seed_choose_among_each_kind(config, tokenizer):
    small = make(config, tokenizer, limit=2)
    assert (small.pairs.tolist(), small.two_videos.pairs.tolist()) == ([0, 1], [3, 4])
    index = small.shards.index
    drawn = [select_two_videos(index, n, subset_seed=3).tolist() for n in (2, 4)]
    assert set(drawn[0]) < set(drawn[1]) and drawn[0] != [3, 4]


def test_held_out_videos_are_on_neither_side(config, tokenizer):
    made = make(config, tokenizer, eval_share=0.3)
    (held,) = made._videos
    index = made.shards.index
    for position in made.two_videos.pairs:
        assert held not in (index[position].video_id, index[position].rejected_video_id)
    other = made.held_out()
    assert other.two_videos.pairs.tolist() == [
        i for i, p in enumerate(index) if p.kind == "video" and p.video_id == held
    ]
    assert len(other.two_videos.pairs)


def damaged(config, tmp_path, changes):
    """Shards with one record changed, that of `two-0`."""
    return rewritten(
        config,
        tmp_path / "damaged",
        lambda pairs: [dataclasses.replace(p, **changes) if p.id == "two-0" else p for p in pairs],
    )


@pytest.mark.parametrize("side", ["video_digest", "rejected_video_digest"])
def test_a_pair_with_a_video_that_cannot_be_read_is_left_out_whole(
    config, tokenizer, tmp_path, side, capfd
):
    shards = damaged(config, tmp_path, {side: "0" * 64})
    whole = make(config, tokenizer, shuffle=False)[0]
    batch = make(config, tokenizer, shards=shards, shuffle=False, on_error="skip_and_count")[0]
    assert batch.pair_index[:, 0].tolist() == [-5, -1, 4, 4, 0, 1]
    assert not batch.target_mask[:2].any()
    assert (batch.target_mask[2:] == whole.target_mask[2:]).all()
    assert capfd.readouterr().err.count("pair 'two-0' is skipped") == 1
    with pytest.raises(InputError, match="pair 'two-0'|damaged"):
        make(config, tokenizer, shards=shards, shuffle=False)[0]


def test_two_videos_that_are_one_are_refused(config, world, tokenizer, tmp_path):
    index = open_shards(config.shards).index
    same = index[3].video_digest
    shards = damaged(config, tmp_path, {"rejected_video_digest": same})
    with pytest.raises(InputError, match="pair 'two-0': 0.mp4 and 1.mp4, its two videos, are the"):
        make(config, tokenizer, shards=shards)
    videos = tmp_path / "videos"
    videos.mkdir()
    for name in ("0.mp4", "copy.mp4"):
        shutil.copy(world / "0.mp4", videos / name)
    pair = {"video": "0.mp4", "rejected_video": "copy.mp4", "prompt": "What?", "chosen": "A ball."}
    (tmp_path / "pairs.json").write_text(json.dumps([pair]))
    with pytest.raises(InputError, match="0.mp4 and copy.mp4, its two videos, are the same video"):
        preparation.prepare(
            tmp_path / "pairs.json",
            videos,
            tmp_path / "out",
            preparation.Settings(),
            preparation.Work(),
        )


def test_stored_images_need_the_times_of_both_videos(config, world, tokenizer):
    stored = make(config, tokenizer, shards=str(world / "png"), limit=4)
    clips = make(config, tokenizer, limit=4)
    assert equal(stored[0], clips[0])
    with pytest.raises(InputError, match=r"pair 'two-4' \(1.mp4\).*3.mp4.*--frames=clip"):
        make(config, tokenizer, shards=str(world / "png"))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"video_pairs": -1}, "data.video_pairs=-1 must not be negative"),
        ({"batch_size": 3}, "is 3; with data.video_pairs=2 it must be even"),
        (
            {"video_pairs": 0},
            "5 of 11 pairs are .* set objective.video_weight and data.video_pairs",
        ),
        ({"host": (0, 6)}, "6 rows of a batch cannot be shared by 6 hosts"),
    ],
)
def test_what_does_not_fit_is_named(config, tokenizer, changes, message):
    with pytest.raises(InputError, match=message):
        make(config, tokenizer, **changes)


def test_answers_are_needed_beside_them(config, tokenizer, tmp_path):
    two = rewritten(config, tmp_path / "two", lambda ps: [p for p in ps if p.kind == "video"])
    with pytest.raises(InputError, match="all pairs are one answer on two videos; a batch needs"):
        make(config, tokenizer, shards=two)


def test_pairs_of_every_number_of_frames_are_those_of_its_batches(config, tokenizer):
    made = make(config, tokenizer, num_frames=(2, 4), num_epochs=4)
    parts = {part.config.frames.most: part for part in made.seen(6)}
    assert parts.keys() == {made.frames_of(k) for k in range(6)} == {2, 4}
    for num_frames, part in parts.items():
        batches = [made[k] for k in range(6) if made.frames_of(k) == num_frames]
        taken = sorted({int(i) for b in batches for i in b.pair_index[:4].ravel() if i >= 0})
        assert part.two_videos.pairs.tolist() == taken
        assert all(b.frames.shape[1] == part.shape.frames for b in batches)
