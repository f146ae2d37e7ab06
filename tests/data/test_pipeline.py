import dataclasses
import json
import re
import shutil

import cv2
import jax
import numpy as np
import pytest
from tokenizers import Tokenizer, models, pre_tokenizers

from tpo_jax import families
from tpo_jax.data import clips, preparation, prompts, shards
from tpo_jax.data import pipeline as pipeline_module
from tpo_jax.data.config import ON_ERROR, DataConfig
from tpo_jax.data.mixture import open_mixture
from tpo_jax.data.phrases import phrase_mask
from tpo_jax.data.pipeline import Pipeline
from tpo_jax.data.rows import Size
from tpo_jax.data.shards import open_shards, shard_names, write_metadata, write_shard
from tpo_jax.data.shown import Shown
from tpo_jax.errors import InputError
from tpo_jax.families.llava_qwen.config import PRESETS
from tpo_jax.families.llava_qwen.template import IM_END, IM_START, INFERENCE
from tpo_jax.families.template import TIME_INSTRUCTIONS, Message
from tpo_jax.video import sampling

MODEL = families.preset("tiny_llava_video")
FRAMES = 4


@pytest.fixture(scope="module")
def tokenizer():
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    tokenizer = Tokenizer(models.BPE({c: i + 1 for i, c in enumerate(alphabet)}, []))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.add_special_tokens([IM_START, IM_END])
    return tokenizer


@pytest.fixture(scope="module")
def world(tmp_path_factory):
    """Seven pairs over three videos, all different."""
    root = tmp_path_factory.mktemp("world")
    rng = np.random.default_rng(0)
    for v in range(3):
        code = cv2.VideoWriter_fourcc(*"mp4v")
        writer = cv2.VideoWriter(str(root / f"{v}.mp4"), code, 8.0, (64, 48))
        for _ in range(10 + v):
            tiles = rng.integers(0, 256, (3, 4, 3), np.uint8)
            writer.write(np.kron(tiles, np.ones((16, 16, 1), np.uint8)))
        writer.release()
    kinds = ["localized", "comprehensive", "localized", "other", "localized", "localized", "other"]
    records = [
        {
            "video": f"{i % 3}.mp4",
            "prompt": f"Who is {i}?",
            "chosen": f"It is {'so ' * i}good.",
            "rejected": f"No {i}.",
            "kind": kind,
        }
        for i, kind in enumerate(kinds)
    ]
    (root / "pairs.json").write_text(json.dumps(records))
    for encoding in ("clip", "png"):
        settings = preparation.Settings("uniform", FRAMES, encoding)
        preparation.prepare(
            root / "pairs.json", root, root / encoding, settings, preparation.Work(num_shards=2)
        )
    return root


@pytest.fixture(scope="module")
def config(world):
    return DataConfig(
        **{"batch_size": 2, "num_epochs": 2, "seed": 0, "answers": 2, "phrases": False},
        shards=str(world / "clip"),
        num_frames=FRAMES,
        prefix_multiple=16,
        workers=0,
    )


def make(config, tokenizer, *, model=MODEL, host=(0, 1), **changes):
    return Pipeline(dataclasses.replace(config, **changes), model, tokenizer, *host)


def equal(a, b):
    same = jax.tree.map(lambda x, y: (x == y).all(), a, b)  # with the same optional fields
    return all(jax.tree.leaves(same))


def joined(*batches):
    """The rows of several batches as one."""
    return jax.tree.map(lambda *parts: np.concatenate(parts), *batches)


def test_videos_without_pairs_do_not_train(world, config, tokenizer, tmp_path):
    (tmp_path / "in").mkdir()
    shutil.copy(world / "0.mp4", tmp_path / "in")
    preparation.prepare(None, tmp_path / "in", tmp_path / "store", preparation.Settings())
    with pytest.raises(InputError, match=r"store: holds videos, but no pairs; prepare takes --p"):
        make(config, tokenizer, shards=str(tmp_path / "store"))


def test_batches_keep_the_contract(config, tokenizer):
    pipeline = make(config, tokenizer)
    b, f, s, p, r = 2, FRAMES, 32, pipeline.shape.prefix, pipeline.shape.response
    assert p % 16 == 0 and r % 16 == 0
    batches = list(pipeline)
    assert len(batches) == len(pipeline) == 2 * pipeline.batches_per_epoch == 8
    for batch in batches:
        arrays = {key: value for key, value in vars(batch).items() if value is not None}
        shapes = {key: (value.dtype.name, value.shape) for key, value in arrays.items()}
        assert shapes == {
            "frames": ("uint8", (b, f, s, s, 3)),
            "prefix_ids": ("int32", (b, p)),
            "prefix_mask": ("bool", (b, p)),
            "visual_index": ("int32", (b, p)),
            **{f"{n}_ids": ("int32", (b, 1, 2, r)) for n in ("input", "target")},
            **{f"{n}_mask": ("bool", (b, 1, 2, r)) for n in ("input", "target")},
            "pair_index": ("int32", (b, 1)),
        }


def test_kept_clips_change_no_batch_and_are_read_once(config, tokenizer, monkeypatch):
    read = []

    def counted(shards, pair, *how):
        read.append(pair)
        return clips.read_clip(shards, pair, *how)

    monkeypatch.setattr("tpo_jax.data.shown.read_clip", counted)
    batches = []
    for room in (0, 1):  # seven pairs of three videos, two epochs
        read.clear()
        pipeline = make(config, tokenizer, batch_size=4, cache_mib=room)
        batches.append([pipeline[k] for k in range(len(pipeline))])
        # Pairs of one video in a batch share its frames.
        shared = [len({i % 3 for i in b.pair_index.ravel() if i >= 0}) for b in batches[-1]]
        assert len(read) == (3 if room else sum(shared)) and sum(shared) < 14
    assert all(equal(a, b) for a, b in zip(*batches, strict=True))


def test_no_more_clips_are_kept_than_there_is_room_for():
    clip = clips.Clip(np.zeros((4, 256, 512, 1), np.uint8), range(4), 4.0)  # half a MiB
    kept, read = clips.ClipCache(1), []
    for video in "abcabcabc":
        assert kept.get(video, lambda v=video: read.append(v) or clip) is clip
    assert read == ["a", "b", "c", "c", "c"]


@pytest.mark.parametrize(("encoding", "style"), [("clip", "inference"), ("png", "dpo_trainer")])
def test_rows_are_the_video_and_its_texts(config, world, tokenizer, encoding, style):
    changes = {"time_instruction": "inline", "prompt_style": style}
    pipeline = make(config, tokenizer, shards=str(world / encoding), **changes)
    seen = set()
    for batch in list(pipeline)[: pipeline.batches_per_epoch]:
        for row in range(2):
            if (i := int(batch.pair_index[row, 0])) < 0:
                continue
            seen.add(i)
            clip, times, duration = sampling.read_frames(world / f"{i % 3}.mp4", "uniform", FRAMES)
            assert (batch.frames[row] == families.of(MODEL).preprocess(clip, MODEL)).all()
            texts = prompts.build_row(
                tokenizer,
                [f"Who is {i}?"],
                [(f"It is {'so ' * i}good.", f"No {i}.")],
                MODEL.visual_tokens(FRAMES),
                opening=INFERENCE.time_opening("inline", times, duration),
                template=families.of(MODEL).templates[style],
                size=Size(pipeline.shape.prefix, pipeline.shape.response),
            )
            assert all((getattr(batch, k)[row] == v).all() for k, v in texts.arrays().items())
    assert seen == set(range(7))


def test_what_is_missing_has_no_target(config, tokenizer):
    pipeline = make(config, tokenizer, batch_size=4, pairs_per_row=2)
    for batch in pipeline:
        none = batch.pair_index < 0
        assert (batch.target_mask.any((2, 3)) == ~none).all()
        assert batch.prefix_mask.any(1).all()
    assert none.any()


TURNS = [Message("user", "<video> Who?"), Message("assistant", "A man.")]
CONTEXTS = [[], [Message("system", "Brief.")], TURNS, [Message("system", "Brief."), *TURNS]]


@pytest.fixture(scope="module")
def conversations(world):
    """A data set of two pairs for each of four contexts, all on one video."""
    records = [
        {
            "video": "0.mp4",
            "prompt": [*(m._asdict() for m in context), {"role": "user", "content": f"{i}?"}],
            "chosen": f"It is {i}.",
            "rejected": "<video> is a tag.",
        }
        for i, context in enumerate(CONTEXTS * 2)
    ]
    path = world / "conversations.json"
    path.write_text(json.dumps(records))
    settings = preparation.Settings("uniform", FRAMES, "clip")
    preparation.prepare(path, world, world / "conversations", settings)
    return world / "conversations"


@pytest.mark.parametrize("style", ["inference", "dpo_trainer"])
@pytest.mark.parametrize("q", [1, 2])
def test_conversations_are_rendered_whole(config, tokenizer, conversations, style, q):
    """In rows of one pair and in rows of several, which have the same messages before the video."""
    changes = {"shards": str(conversations), "batch_size": 2 * q, "pairs_per_row": q}
    pipeline = make(config, tokenizer, **changes, prompt_style=style, time_instruction="none")
    index, seen = pipeline.shards.index, set()
    for k in range(pipeline.batches_per_epoch):
        batch = pipeline[k]
        for row, positions in enumerate(batch.pair_index.tolist()):
            if not (used := [i for i in positions if i >= 0]):
                continue
            seen |= {*used}
            assert len({index[i].before_video for i in used}) == 1
            texts = prompts.build_row(
                tokenizer,
                [(*CONTEXTS[i % 4], Message("user", f"{i}?")) for i in used],
                [(f"It is {i}.", "<video> is a tag.") for i in used],
                MODEL.visual_tokens(FRAMES),
                template=families.of(MODEL).templates[style],
                cut="answer" if q == 1 else "video",
                size=Size(pipeline.shape.prefix, pipeline.shape.response),
            )
            for name, values in texts.arrays().items():
                found = getattr(batch, name)[row]
                assert (found[: len(used)] == values if values.ndim > 1 else found == values).all()
    assert seen == set(range(8))


def test_shards_with_conversations_are_of_the_next_format(world, conversations):
    formats = [
        json.loads((d / "manifest.json").read_text())["format"]
        for d in (world / "clip", conversations)
    ]
    assert formats == [shards.FORMAT, shards.FORMAT_WITH_HISTORY]
    opened = open_shards(conversations, verify=True)
    contexts = [(*context[:-1], context[-1]) if context else () for context in CONTEXTS * 2]
    assert [opened[i].history for i in range(8)] == [
        tuple(m._replace(content=m.content.replace("<video> ", "<video>\n")) for m in context)
        for context in contexts
    ]
    tfds = pytest.importorskip("tensorflow_datasets", reason="TFDS opens what it describes")
    source = tfds.builder_from_directory(str(conversations)).as_data_source(split="train")
    assert [[role.decode() for role in pair["history"]["role"]] for pair in source] == [
        [m.role for m in context] for context in contexts
    ]


@pytest.mark.parametrize("q", [1, 2])
@pytest.mark.parametrize("hosts", [1, 2])
def test_every_pair_once_an_epoch_in_parts_of_the_global_batch(config, tokenizer, q, hosts):
    changes = {"batch_size": 2 * q, "pairs_per_row": q}
    whole = make(config, tokenizer, **changes)
    parts = [make(config, tokenizer, host=(h, hosts), **changes) for h in range(hosts)]
    seen = []
    for k in range(whole.batches_per_epoch):
        batch = joined(*(part[k] for part in parts))
        assert equal(batch, whole[k])
        seen += batch.pair_index[batch.pair_index >= 0].tolist()
    assert sorted(seen) == list(range(7))


def test_rows_of_several_pairs_spell_the_same_sequences(config, tokenizer):
    def sequences(pipeline):
        found = {}
        for k in range(pipeline.batches_per_epoch):
            batch = pipeline[k]
            for row, q in zip(*np.nonzero(batch.pair_index >= 0), strict=True):
                visual = batch.visual_index[row]
                prefix = np.where(visual >= 0, -2 - visual, batch.prefix_ids[row])
                prefix = prefix[batch.prefix_mask[row]].tolist()
                for a in (0, 1):
                    inputs = batch.input_ids[row, q, a][batch.input_mask[row, q, a]]
                    found[int(batch.pair_index[row, q]), a] = prefix + inputs.tolist()
        return found

    several = make(config, tokenizer, batch_size=4, pairs_per_row=2)
    assert sequences(several) == sequences(make(config, tokenizer))


@pytest.mark.parametrize(("num_frames", "before", "after"), [(FRAMES, 1, 0), ((FRAMES, 2), 0, 2)])
def test_workers_and_resuming_change_nothing(config, tokenizer, num_frames, before, after):
    config = dataclasses.replace(config, num_frames=num_frames)
    whole = list(make(config, tokenizer))
    iterator = iter(make(config, tokenizer, workers=before))
    assert all(equal(next(iterator), batch) for batch in whole[:3])
    state = json.loads(json.dumps(iterator.get_state()))
    assert state == {"next_batch": 3, "skipped": 0}  # whatever the number of workers
    iterator.close()
    # On with two hosts, one of them with other workers.
    halves = []
    for host, workers in ((0, after), (1, before)):
        iterator = iter(make(config, tokenizer, host=(host, 2), workers=workers))
        iterator.set_state(state)
        halves.append(list(iterator))
        assert iterator.get_state() == {"next_batch": len(whole), "skipped": 0}
        iterator.close()
    found = [joined(*parts) for parts in zip(*halves, strict=True)]
    assert len(found) == len(whole) - 3
    assert all(map(equal, found, whole[3:]))


def test_seed_epoch_and_mixing_decide_the_pairs(config, tokenizer):
    def pairs(**changes):
        pipeline = make(config, tokenizer, **changes)
        return pipeline.order(0).tolist(), pipeline.order(1).tolist()

    assert pairs() == pairs()
    assert len({str(o) for seed in (0, 1) for o in pairs(seed=seed)}) == 4
    assert sorted(np.ravel(pairs(mixing=(1, 1))[0])) == [0, 1]
    assert sorted(np.ravel(pairs(limit=4)[0])) == [0, 1, 2, 3]


@pytest.mark.parametrize("q", [1, 2])
def test_a_batch_is_that_of_its_number_of_frames(config, tokenizer, q):
    """Of several numbers, batch k is batch k of the run with one of them, shapes and all."""
    changes = {"batch_size": 2, "pairs_per_row": q, "num_epochs": 5, "cache_mib": 1}
    counts, weights = (2, 9, FRAMES), (1.0, 2.0, 1.0)
    mixed = make(config, tokenizer, num_frames=counts, num_frames_weights=weights, **changes)
    each = {n: make(config, tokenizer, num_frames=n, **changes) for n in counts}
    used = [mixed.frames_of(k) for k in range(len(mixed))]
    assert set(used) == set(counts) and len(mixed) == len(each[2])
    assert all(equal(mixed[k], each[n][k]) for k, n in enumerate(used))
    assert all(mixed.shape_with(n) == each[n].shape for n in counts)
    assert mixed.shape == each[9].shape  # what is read ahead is bounded by the largest

    # What the reference must know: every pair with every number of frames that it is seen with.
    seen = mixed.seen(5)
    expected = {
        (n, p) for k, n in enumerate(used[:5]) for p in mixed[k].pair_index.ravel().tolist()
    }
    found = [(part.config.num_frames, p) for part in seen for p in part.pairs.tolist()]
    assert sorted(found) == sorted(pair for pair in expected if pair[1] >= 0)
    for part in seen:
        assert part.shape == each[part.config.num_frames].shape
        assert {batch.frames.shape[1] for batch in part} == {part.config.num_frames}
    assert each[2].seen(5) == [each[2]]


def test_several_numbers_of_frames_are_evaluated_with_the_most(config, world, tokenizer):
    for changes in ({"eval_share": 0.4}, {"eval_shards": str(world / "clip")}):
        of_most = make(config, tokenizer, num_frames=9, **changes).held_out()
        found = make(config, tokenizer, num_frames=(9, 2), **changes).held_out()
        assert found.config.num_frames == 9 and len(found) == len(of_most)
        assert all(map(equal, found, of_most))


def mix(config, tokenizer, *, host=(0, 1), **changes):
    return open_mixture(dataclasses.replace(config, **changes), MODEL, tokenizer, *host)


def test_a_batch_is_the_next_one_of_a_directory(config, conversations, tokenizer):
    replayed = {"shards": str(conversations), "num_epochs": 0}
    sole = [make(config, tokenizer, num_epochs=9), make(config, tokenizer, **replayed)]
    mixed = mix(
        config, tokenizer, num_epochs=9, replay=(str(conversations),), replay_weights=(1.0, 2.0)
    )
    assert [len(part.shards) for part in mixed.parts] == [7, 8]
    assert [pair.id for pair in mixed.pairs[7:]] == [pair.id for pair in sole[1].shards.index]
    at, length = [0, 0], mixed.parts[0].shape
    assert length == mixed.parts[1].shape  # one program
    assert length.prefix == max(part.shape.prefix for part in sole)
    for k in range(len(mixed)):
        part, number = mixed.place(k)
        assert number == at[part]
        at[part] += 1
        expected, found = sole[part][number], mixed[k]
        there = expected.pair_index >= 0
        assert (found.pair_index == np.where(there, expected.pair_index + 7 * part, -1)).all()
        P, R = expected.prefix_ids.shape[1], expected.target_ids.shape[-1]
        assert (found.prefix_ids[:, :P] == expected.prefix_ids).all()
        assert (found.target_ids[..., :R] == expected.target_ids).all()
        assert not found.prefix_ids[:, P:].any() and (found.frames == expected.frames).all()
    # The run ends with the last epoch of the first directory; the other has two thirds.
    assert at[0] == 9 * 4 and mixed.place(len(mixed) - 1) == (0, at[0] - 1)
    assert 1 < at[1] / at[0] < 3
    assert [[part.pairs.size for part in parts] for parts in mixed.seen(1)].count([]) == 1
    assert [[part.pairs.size for part in parts] for parts in mixed.seen(9)] == [[7], [8]]


@pytest.mark.parametrize(("num_frames", "workers"), [(FRAMES, 0), ((FRAMES, 2), 1)])
def test_mixtures_resume_with_other_workers_and_hosts(
    config, conversations, tokenizer, num_frames, workers
):
    changes = {"replay": (str(conversations),), "num_frames": num_frames}
    whole = list(mix(config, tokenizer, **changes))
    iterator = iter(mix(config, tokenizer, workers=workers, **changes))
    iterator.set_state({"next_batch": 3})
    assert all(equal(next(iterator), batch) for batch in whole[3:])
    iterator.close()
    hosts = [mix(config, tokenizer, host=(h, 2), **changes) for h in (0, 1)]
    assert all(equal(joined(hosts[0][k], hosts[1][k]), whole[k]) for k in range(len(whole)))


def test_skipped_pairs_of_a_mixture_keep_their_places(config, damaged, tokenizer):
    changes = {"on_error": "skip_and_count", "num_epochs": 3}
    mixed = mix(config, tokenizer, replay=(str(damaged),), **changes)
    found = {i for batch in mixed for i in batch.pair_index.ravel().tolist()}
    assert found >= {-2 - 7 - p for p in (0, 1, 3, 6)} | {7 + p for p in (2, 4, 5)} | set(range(7))


@pytest.mark.parametrize(
    ("replay", "weights", "message"),
    [
        ("again", (), "data.replay: .*/clip and .*/clip hold the same pairs; leave one out"),
        ("nowhere", (), "nowhere/manifest.json: no such file"),
        ("other", (1.0,), "=1.0: not as many weights as in data.shards,data.replay=.*/clip,"),
        ("other", (0.0, 0.0), "data.replay_weights=0.0,0.0 must be numbers of at least 0, one"),
        ("other", (1.0, -1.0), "data.replay_weights=1.0,-1.0 must be numbers of at least 0"),
        ("other", (0.0, 1.0), "data.replay_weights=0.0,1.0: the first is that of data.shards"),
    ],
)
def test_wrong_directories_and_weights_are_one_line(
    config, conversations, tokenizer, replay, weights, message
):
    path = {"again": config.shards, "other": str(conversations)}.get(replay, replay)
    with pytest.raises(InputError, match=message) as error:
        mix(config, tokenizer, replay=(path,), replay_weights=weights)
    assert "\n" not in str(error.value)


@pytest.fixture(scope="module")
def anchored(world, tmp_path_factory):
    """The shards with a segment, in seconds, for every localized pair."""
    spans = {
        0: (0.2, 0.5),
        2: (0.0, 1.0),
        4: (0.5, 1.1),
        5: (0.25, 0.8),
    }
    return with_segments(world / "clip", tmp_path_factory.mktemp("anchored"), spans)


def with_segments(shards, target, spans):
    """Copy shards, each pair with a segment if there is one for its position."""
    source = open_shards(shards)
    shutil.copytree(shards, target, dirs_exist_ok=True)
    records = [dataclasses.replace(source[i], segment=spans.get(i)) for i in range(len(source))]
    entry = write_shard(target / shard_names(1)[0], records)
    manifest = {**source.manifest, "shards": [entry]}
    write_metadata(target, [record.to_json() for record in records], manifest)
    return target


def test_an_anchored_reference_sees_the_segment_of_a_localized_pair(config, anchored, tokenizer):
    changes = {"shards": str(anchored), "num_frames": (2, FRAMES), "cache_mib": 1}
    plain = make(config, tokenizer, **changes)
    assert plain.for_reference() is plain
    policy = make(config, tokenizer, reference_view="anchor", **changes)
    for part in policy.seen(20):
        n, shown = part.config.num_frames, part.for_reference()
        assert shown.shape.frames == part.shape.frames and len(shown) == len(part)
        differ = set()
        for batch, whole in zip(shown, part, strict=True):
            assert (batch.pair_index == whole.pair_index).all()
            for row, position in enumerate(batch.pair_index[:, 0].tolist()):
                if position < 0:  # the last batch
                    continue
                pair = plain.shards.index[position]
                segment = pair.segment if pair.kind == "localized" else None
                video = plain.shards.videos.video(pair.video_digest)
                frames, times, duration = sampling.read_frames(video, "uniform", n, segment)
                assert not segment or times[-1] < segment[1]
                rate = sampling.rate_of(times, duration)
                expected = part.shown.processor.resize(frames, rate=rate)
                assert (batch.frames[row, : len(expected)] == expected).all()
                if not (batch.frames[row] == whole.frames[row]).all():
                    differ.add(position)
        assert differ == {p for p in part.pairs.tolist() if plain.shards.index[p].segment}


@pytest.mark.parametrize(
    ("spans", "changes", "message"),
    [
        ({}, {}, r"pair '1' \(0.mp4\): a localized pair without a segment, which data.reference_"),
        ({0: (8.0, 9.0), 2: (0, 1), 4: (0, 1), 5: (0, 1)}, {}, "no frame of the video is in its"),
        ({}, {"reference_view": "window"}, "reference_view='window' must be same or anchor"),
        ({}, {"pairs_per_row": 2}, "reference_view=anchor needs data.pairs_per_row=1, not 2"),
    ],
)
def test_a_view_that_a_pair_does_not_have_is_one_line(
    config, world, tokenizer, tmp_path, spans, changes, message
):
    shards = with_segments(world / "clip", tmp_path, spans)
    changes = {"reference_view": "anchor", "shards": str(shards), **changes}
    with pytest.raises(InputError, match=message) as error:
        make(config, tokenizer, **changes).for_reference()
    assert "\n" not in str(error.value)
    images = {"reference_view": "anchor", "shards": str(world / "png")}
    with pytest.raises(InputError, match="reference_view=anchor needs others; prepare with"):
        make(config, tokenizer, **images).for_reference()


def test_another_order_over_the_same_open_data(config, tokenizer, monkeypatch):
    pipeline = make(config, tokenizer, shuffle=True, cache_mib=1)
    fresh = make(config, tokenizer, shuffle=False, num_epochs=1)
    monkeypatch.setattr(pipeline_module, "open_shards", None)  # nothing is opened or measured again
    monkeypatch.setattr(Shown, "size", None)
    once = pipeline.once()
    assert len(once) == len(fresh) == 4 and once.shards is pipeline.shards
    assert all(equal(once[k], fresh[k]) for k in range(4))
    assert pipeline.order(0).tolist() != once.order(0).tolist()  # which stays as it was


def test_held_out_pairs_of_a_share_and_of_other_shards(config, world, tokenizer):
    whole = make(config, tokenizer)
    assert whole.held_out() is None
    pipeline = make(config, tokenizer, eval_share=0.4, mixing=(1.0, 0.0))
    held_out = pipeline.held_out()

    def videos(found):
        return {found.shards.index[i].video_id for i in found.pairs}

    assert len(videos(held_out)) == 1 and not videos(held_out) & videos(pipeline)
    everything = [i for i, p in enumerate(whole.shards.index) if p.video_id in videos(held_out)]
    assert held_out.pairs.tolist() == everything  # of all kinds
    order = held_out.order(0)
    assert sorted(order[order >= 0]) == everything and len(held_out) == len(order)

    one = make(config, tokenizer, limit=1)  # a short answer
    other = make(config, tokenizer, limit=1, eval_shards=str(world / "clip")).held_out()
    assert other.pairs.tolist() == list(range(7)) and one.shape.response <= other.shape.response
    same = make(config, tokenizer, eval_shards=str(world / "clip"), max_prefix=640).held_out()
    assert same.shape.prefix == 640 and same.shape.response == whole.shape.response


def test_supervised_training_has_the_chosen_answer_only(config, tokenizer):
    both, one = make(config, tokenizer)[0], make(config, tokenizer, answers=1)[0]
    width = one.input_ids.shape[-1]
    assert one.input_ids.shape[2] == 1
    assert (one.target_ids == both.target_ids[:, :, :1, :width]).all()


def test_phrases_are_where_the_answers_differ(config, tokenizer):
    batch = make(config, tokenizer, phrases=True)[0]
    assert make(config, tokenizer)[0].phrase_mask is None
    expected = phrase_mask(batch.target_ids, batch.target_mask)
    assert (batch.phrase_mask == expected).all() and expected.any()
    with pytest.raises(InputError, match="data.phrases needs data.answers=2"):
        make(config, tokenizer, phrases=True, answers=1)


def test_missing_frames_leave_their_tokens_out(config, tokenizer):
    model = dataclasses.replace(PRESETS["tiny_llava_video"], newline="one_token")
    batch = make(config, tokenizer, model=model, num_frames=9, sampling="fps")[0]
    # One frame a second of a clip of 10 frames at 8 frames a second: two of nine.
    assert not batch.frames[:, 2:].any() and batch.frames[:, :2].any((2, 3, 4)).all()
    for visual in batch.visual_index:
        assert visual[visual >= 0].tolist() == [0, 1, 9]


def test_pairs_that_do_not_fit_are_named_before_training(config, world, tokenizer):
    with pytest.raises(InputError, match=r"pair '\d' .*; [0-3] frames would fit instead of 4"):
        make(config, tokenizer, max_prefix=make(config, tokenizer, num_frames=1).shape.prefix - 30)
    with pytest.raises(InputError, match=r"more than the 5 of max_response"):
        make(config, tokenizer, max_response=5)
    short = dataclasses.replace(MODEL, max_length=150)
    for mode in TIME_INSTRUCTIONS:
        timed = {"time_instruction": mode, "response_multiple": 1}
        model = dataclasses.replace(MODEL, max_length=150 if mode == "none" else 900)
        with pytest.raises(InputError, match=r"exceed .* \d+ frames fit instead of 99") as error:
            make(config, tokenizer, model=model, num_frames=99, **timed)
        fit = int(re.search(r"(\d+) frames fit", str(error.value))[1])
        make(config, tokenizer, model=model, num_frames=fit, **timed)
        with pytest.raises(InputError, match=f" {fit} frames fit"):
            make(config, tokenizer, model=model, num_frames=fit + 1, **timed)
    with pytest.raises(InputError, match=r"exceed .* \d+ frames fit instead of 99$"):
        make(config, tokenizer, model=short, num_frames=(1, 99), response_multiple=1)
    with pytest.raises(InputError, match=r"holds 4 frames by uniform, not 8 by uniform"):
        make(config, tokenizer, shards=str(world / "png"), num_frames=(4, 8))
    pairs = families.preset("tiny_qwen3_vl")
    with pytest.raises(InputError, match=r"num_frames: 7 and 8 frames are the same 4 pairs of"):
        make(config, tokenizer, model=pairs, num_frames=(7, 2, 8))
    with pytest.raises(InputError, match="lower data.max_prefix"):
        make(config, tokenizer, model=short, max_prefix=149)
    with pytest.raises(InputError, match=r"manifest.json: holds 4 frames by uniform, not 8"):
        make(config, tokenizer, shards=str(world / "png"), num_frames=8)
    with pytest.raises(InputError, match=r"manifest.json: no such file"):
        make(config, tokenizer, shards=str(world / "nowhere"))
    with pytest.raises(InputError, match=r"2 rows of a batch cannot be shared by 3 hosts"):
        make(config, tokenizer, host=(0, 3))
    with pytest.raises(InputError, match=r"answers=3 must be 1 or 2"):
        DataConfig(batch_size=1, num_epochs=1, seed=0, answers=3, phrases=False)


def test_the_context_bounds_what_is_rounded_up(config, tokenizer):
    free = make(config, tokenizer, prefix_multiple=1, response_multiple=1)
    tight = dataclasses.replace(MODEL, max_length=free.shape.prefix + free.shape.response)
    fitted = make(config, tokenizer, model=tight, prefix_multiple=512, response_multiple=1)
    assert (fitted.shape.prefix, fitted.shape.response) == (free.shape.prefix, free.shape.response)


@pytest.fixture(scope="module")
def damaged(world, tmp_path_factory):
    """The pairs 0, 3 and 6, all of one video, and pair 1 name a video that is not there."""
    target = tmp_path_factory.mktemp("damaged")
    shutil.copytree(world / "clip", target, dirs_exist_ok=True)
    source = open_shards(target)
    records = [
        dataclasses.replace(record, video_digest=f"{i}" * 64) if i in (0, 1, 3, 6) else record
        for i, record in enumerate(source)
    ]
    entry = write_shard(target / shard_names(1)[0], records)
    manifest = source.manifest | {"shards": [entry]}
    write_metadata(target, (record.to_json() for record in records), manifest)
    return target


@pytest.mark.parametrize(("q", "phrases"), [(1, False), (2, True)])
def test_a_skipped_pair_is_absent_and_nothing_else_changes(
    config, damaged, tokenizer, capfd, q, phrases
):
    """Of two pairs in a row of the same video, one readable clip is enough for the other."""
    changes = {"batch_size": 2 * q, "pairs_per_row": q, "phrases": phrases}
    whole = make(config, tokenizer, **changes)
    skipping = make(config, tokenizer, shards=str(damaged), on_error="skip_and_count", **changes)
    seen, beside = set(), 0
    for k in range(len(whole)):
        expected, found = whole[k], skipping[k]
        index = found.pair_index
        gone = index < -1
        seen |= set((-2 - index[gone]).tolist())
        beside += int((gone.any(1) & (index >= 0).any(1)).sum())
        assert (np.where(gone, -2 - index, index) == expected.pair_index).all()
        assert not found.target_mask[gone].any() and not found.input_mask[gone].any()
        assert found.prefix_mask.any(1).all()
        arrays = {name: values for name, values in vars(expected).items() if values is not None}
        for name in arrays.keys() - {"pair_index"}:
            values = getattr(found, name)
            assert (values.dtype, values.shape) == (arrays[name].dtype, arrays[name].shape)
            there = ~gone if values.shape[:2] == gone.shape else (index >= 0).any(1)
            assert (values[there] == arrays[name][there]).all()
    assert seen == {0, 1, 3, 6} and (beside > 0) == (q == 2)
    said = capfd.readouterr().err
    for position in seen:
        assert f"pair '{skipping.shards.index[position].id}' is skipped: {damaged}: " in said


def test_skipping_is_the_same_with_workers_hosts_and_after_resuming(config, damaged, tokenizer):
    changes = {"shards": str(damaged), "on_error": "skip_and_count"}
    plain = list(make(config, tokenizer, **changes))
    batches = iter(make(config, tokenizer, workers=1, **changes))
    batches.set_state({"next_batch": 3})
    for expected in plain[3:]:
        assert equal(next(batches), expected)
    batches.close()
    hosts = [make(config, tokenizer, host=(h, 2), **changes)[1] for h in (0, 1)]
    assert equal(joined(*hosts), plain[1])


def test_a_pair_that_cannot_be_decoded_stops_without_the_policy(config, damaged, tokenizer):
    pipeline = make(config, tokenizer, shards=str(damaged))
    with pytest.raises(InputError, match=r"damaged0: pair '\d' .*; run prepare again"):
        for k in range(len(pipeline)):
            pipeline[k]
    with pytest.raises(InputError, match="data.on_error='skip' must be error or skip_and_count"):
        make(config, tokenizer, on_error="skip")


def test_a_video_that_the_model_refuses_is_named(config, tokenizer, monkeypatch, capfd):
    """As a family does that keeps aspect ratios."""

    def refuse(frames, pad=False, rate=0.0):
        raise InputError("64x48 pixels: cannot be resized")

    for on_error in ON_ERROR:
        pipeline = make(config, tokenizer, on_error=on_error)
        monkeypatch.setattr(pipeline.shown.processor, "resize", refuse)
        name = re.escape(f"{config.shards}: pair ") + r"'\d' \(\d.mp4\): 64x48 pixels: cannot be"
        if on_error == "error":
            with pytest.raises(InputError, match=f"^{name}"):
                pipeline[0]
        else:
            assert (pipeline[0].pair_index < -1).all()
            assert len(re.findall(f"is skipped: {name}", capfd.readouterr().err)) == 2


def test_lengths_are_measured_once_for_the_same_settings(
    config, world, tokenizer, tmp_path, monkeypatch
):
    """A large data set is opened without tokenizing; what the lengths depend on is in the key."""
    monkeypatch.setattr("tpo_jax.data.lengths._FEW", 0)
    shards = shutil.copytree(world / "clip", tmp_path / "shards")
    counted, built = [], Shown._of_pair
    monkeypatch.setattr(Shown, "_of_pair", lambda *a: counted.append(a[1]) or built(*a))

    def opened(**changes):
        counted.clear()
        made = make(config, tokenizer, shards=str(shards), **changes)
        return (made.shape.prefix, made.shape.response), len(counted)

    plain = make(config, tokenizer)
    sizes = plain.shape.prefix, plain.shape.response
    assert [opened(limit=3)[1] for _ in range(2)] == [3, 0]
    assert opened() == (sizes, 4) and opened() == (sizes, 0)
    for changes in ({"num_frames": 3}, {"time_instruction": "inline"}, {"answers": 1}):
        assert opened(**changes)[1] == 7
    with pytest.raises(InputError, match="would fit"):
        opened(max_prefix=sizes[0] // 2)
    for path in shards.glob("lengths-*.npz"):
        path.write_bytes(b"damaged")
    assert opened() == (sizes, 7) and opened() == (sizes, 0)


def test_read_ahead_is_bounded_in_bytes(config, tokenizer, monkeypatch):
    pipeline = make(config, tokenizer)
    size = sum(values.nbytes for values in vars(pipeline[0]).values() if values is not None)
    assert pipeline.shape.num_bytes == size
    expected = [pipeline[k] for k in range(3)]
    for room, ahead in ((2 * size, 2), (2 * size - 1, 1)):
        monkeypatch.setattr("tpo_jax.data.batches.READ_AHEAD", room)
        batches = iter(pipeline)
        assert batches._ahead == ahead
        assert all(equal(next(batches), batch) for batch in expected)
        batches.close()
