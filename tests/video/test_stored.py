"""A video that was taken apart gives the frames of its file, from the parts that they need."""

import dataclasses
import itertools

import av
import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from tests.video import clips
from tests.video.test_video import clip, some_indices, streams  # noqa: F401
from tpo_jax.video import dissection
from tpo_jax.video.decode import VideoError, opened
from tpo_jax.video.dissection import dissect
from tpo_jax.video.files import FileReader
from tpo_jax.video.packets import Header, Part, StoredVideo, add_side_data
from tpo_jax.video.sampling import RULES, sample_frames

SMALL = 4 << 10  # bytes of a part: the clips are small
WHOLE = 64 << 20  # groups of pictures are not divided, as in shards of the first version


class Parts:
    """A stored video in memory; `read` are the numbers of the parts that were read."""

    def __init__(self, path, small=SMALL, medium=2 * SMALL):
        with pytest.MonkeyPatch.context() as patch, opened(path) as video:
            patch.setattr(dissection, "SMALL", small)
            patch.setattr(dissection, "MEDIUM", medium)
            *parts, header = dissect(video)
        self.parts, self.read = [part.encode() for part in parts], []
        self.header = Header.decode(*header.encode())
        self.video = StoredVideo(str(path), self.header, self._read)

    def _read(self, numbers):
        self.read.append(list(numbers))
        return [Part.decode(*self.parts[number]) for number in numbers]


def assert_same_frames(path, stored, all_frames=True):
    with opened(path) as file, opened(stored) as video:
        assert video.info == file.info
        np.testing.assert_array_equal(video.timestamps, file.timestamps)
        n = file.info.num_frames
        wanted = [some_indices(n, seed) for seed in range(3)] if all_frames else []
        wanted += [np.array([n - 1]), np.arange(n if all_frames else 9), np.zeros(0, np.int64)]
        for indices in wanted:
            one, other = (v.select(lambda _, i=indices: i)[1] for v in (file, video))
            assert np.array_equal(one, other)


@pytest.mark.parametrize("name", clips.VIDEOS)
def test_frames_are_those_of_the_file(clip, name):  # noqa: F811
    assert_same_frames(clip(name), Parts(clip(name)).video)


@pytest.mark.parametrize("name", ["dc_demo.mp4", "jobs.mp4", "short_clip.mp4"])
def test_real_clips(shared_media, name):
    assert_same_frames(shared_media / name, Parts(shared_media / name).video, False)


@pytest.mark.parametrize("name", ["av1.mp4", "clip.mp4"])
def test_more_real_clips(shared_cases, name):
    path = shared_cases / "videos" / name
    assert_same_frames(path, Parts(path).video)


@settings(max_examples=12)
@given(
    stream=streams,
    small=st.integers(1, 40_000),
    medium=st.integers(1, 80_000),
    span=st.tuples(st.floats(0, 2), st.floats(0.1, 2)),
)
# The times say that the last two frames come in the order in which they are stored.
@example(
    stream=clips.Stream(num_frames=3, gop=3, b_frames=1, suffix="avi"),
    small=1,
    medium=1,
    span=(0.0625, 1),
)
def test_any_frames_of_any_stream(tmp_path_factory, stream, small, medium, span):
    """By every rule, of the whole video, of a segment and of what is left without it."""
    path = stream.write(tmp_path_factory.mktemp("any"))
    stored = Parts(path, small, medium).video
    segment = (span[0], span[0] + span[1])
    for rule in RULES:
        for choice in ({}, {"segment": segment}, {"exclude": segment}):
            try:
                expected = sample_frames(path, rule, 5, **choice)
            except ValueError as error:
                with pytest.raises(ValueError) as found:
                    sample_frames(stored, rule, 5, **choice)
                assert str(found.value) == str(error)
                continue
            found = sample_frames(stored, rule, 5, **choice)
            assert all(np.array_equal(a, b) for a, b in zip(found, expected, strict=True))


def test_only_the_parts_of_the_frames_are_read_and_in_one_batch(clip):  # noqa: F811
    """Of 200 frames in groups of 100; the groups of 24 are open, so a frame may need two."""
    stored = Parts(clip("long_group.mp4"), medium=WHOLE)
    assert len(stored.header.starts) == 2
    with opened(stored.video) as video:
        assert video.info.num_frames == 200 and not stored.read  # nothing is read to describe it
        video.select(lambda _: np.array([150, 199, 120]))
        assert stored.read == [[1]]
        video.select(lambda _: np.array([3]))
        assert stored.read == [[1], [0]]
    names = "constant.mp4", "open_groups.mp4", "hevc.mp4", "odd.webm"
    for name, medium in itertools.product(names, (1, WHOLE)):
        stored = Parts(clip(name), small=1, medium=medium)
        header = stored.header
        assert len(header.starts) > 2
        for index in range(0, 90, 7):
            stored.read.clear()
            with opened(stored.video) as video:
                video.select(lambda _, i=index: np.array([i, i]))
            key = header.timeline.keys[header.timeline.keys <= index][-1]
            needed = [header.packet_of[key], header.packet_of[: index + 1].max()]
            first, last = np.searchsorted(header.starts, needed, side="right") - 1
            assert stored.read == [list(range(first, last + 1))]


@pytest.mark.parametrize("cores", [1, 3, 64])
def test_groups_are_decoded_at_once(clip, monkeypatch, cores):  # noqa: F811
    """By as many readers as there are cores and groups; each part is read by one of them."""
    monkeypatch.setattr("os.cpu_count", lambda: cores)
    for name in ("no_b_frames.mp4", "open_groups.mp4", "broadcast.ts", "odd.webm"):
        assert_same_frames(clip(name), Parts(clip(name)).video)
    stored = Parts(clip("no_b_frames.mp4"), small=1, medium=WHOLE)
    keys = stored.header.timeline.keys
    with opened(stored.video) as video:
        video.select(lambda _: keys[::-1] + 1)
    assert len(stored.read) == min(cores, len(keys)) > 0
    assert sorted(sum(stored.read, [])) == list(range(len(keys)))


def test_shards_of_the_first_version_are_read(clip):  # noqa: F811
    """They hold whole groups of pictures; only the places of the cuts are others."""
    path = clip("long_group.mp4")
    stored, now = Parts(path, medium=WHOLE), Parts(path)
    assert len(stored.header.starts) < len(now.header.starts)
    assert stored.header.digest == now.header.digest
    assert_same_frames(path, stored.video)


def test_packets_in_memory_are_bounded(clip, monkeypatch):  # noqa: F811
    stored = Parts(clip("no_b_frames.mp4"), small=1, medium=WHOLE)
    monkeypatch.setattr("tpo_jax.video.stored.WINDOW", int(stored.header.sizes[:2].sum()))
    with opened(stored.video) as video:
        video.select(lambda _: np.arange(90))
    assert stored.read == [[0, 1], [2, 3]]


def test_memory_that_a_decoder_does_not_get_is_one_clear_line(clip, monkeypatch):  # noqa: F811
    stored = Parts(clip("no_b_frames.mp4"))

    def refuse(*_):
        raise av.error.MemoryError(12, "Cannot allocate memory")

    monkeypatch.setattr("tpo_jax.video.stored.make_packet", refuse)
    with opened(stored.video) as video, pytest.raises(VideoError, match="mp4: damaged, or too lar"):
        video.select(lambda _: np.arange(3))


def test_a_group_larger_than_a_part_is_divided(clip, monkeypatch):  # noqa: F811
    path = clip("long_group.mp4")
    stored = Parts(path, medium=20_000)
    assert len(stored.header.starts) > 3 and stored.header.sizes.max() <= 20_000
    assert_same_frames(path, stored.video)
    monkeypatch.setattr(dissection, "LARGE", 1000)
    with pytest.raises(VideoError, match="long_group.mp4: a packet of .* bytes"):
        Parts(path)


def test_packets_are_those_of_the_file(clip):  # noqa: F811
    """Nothing is encoded again: the bytes are the file's, and so is their hash."""
    for name in ("constant.mp4", "broadcast.ts", "odd.webm"):
        stored, again = Parts(clip(name)), Parts(clip(name), small=1, medium=1)
        with av.open(str(clip(name))) as container:
            packets = [bytes(packet) for packet in container.demux(video=0) if packet.size]
        parts = [Part.decode(*part) for part in stored.parts]
        assert [packet for part in parts for packet in part.packets] == packets
        assert stored.header.digest == again.header.digest != Parts(clip("two.mp4")).header.digest
        assert stored.header.sizes.sum() == sum(map(len, packets))


@pytest.mark.parametrize("name", ["broadcast.ts", "stream.h264", "mpeg2.mpg"])
def test_a_video_cut_off_inside_a_group(clip, tmp_path, name):  # noqa: F811
    """Containers do not tell. What a decoder makes of the packet that is cut off depends on where
    decoding began, in the file as well.
    """
    data = clip(name).read_bytes()
    path = tmp_path / name
    path.write_bytes(data[: len(data) * 2 // 3 + 77])
    with opened(path) as file, opened(Parts(path).video) as video:
        assert video.info == file.info and 40 < file.info.num_frames < 75
        indices = np.arange(file.info.num_frames - 1)
        one, other = (v.select(lambda _: indices)[1] for v in (file, video))
        assert np.array_equal(one, other)


def test_parameters_that_change_in_the_middle(tmp_path):
    """Told by the stream they are the decoder's; another size of the pictures is an error."""
    for size, same in (((128, 96), True), ((64, 48), False)):
        path = tmp_path / f"{size[0]}.h264"
        first = clips.write(tmp_path / "a.h264", 60)
        second = clips.write(tmp_path / "b.h264", 60, size=size, options={"crf": "40"})
        path.write_bytes(first.read_bytes() + second.read_bytes())
        stored = Parts(path).video
        if same:
            assert_same_frames(path, stored)
            continue
        for source in (path, stored):
            with opened(source) as video, pytest.raises(VideoError, match="is 64x48 pixels"):
                video.select(lambda _: np.array([100]))


def test_parameters_that_the_container_changes(clip, monkeypatch):  # noqa: F811
    """The container tells them once; decoding may begin at any key frame behind."""
    path, walk = clip("constant.mp4"), FileReader.walk
    with opened(path) as file:
        extradata = file.reader.context.extradata
        expected = file.select(lambda _: np.array([50, 80]))[1]

    def changing(reader):
        for number, packet in enumerate(walk(reader)):
            if number == 30:
                add_side_data(packet, "new_extradata", extradata)
            yield packet

    monkeypatch.setattr(FileReader, "walk", changing)
    stored = Parts(path, small=1, medium=WHOLE)
    decoded = [Part.decode(*part) for part in stored.parts]
    assert [[number for number, _, _ in part.side] for part in decoded] == [[], [6], [0], [0]]
    blank = stored.header._replace(extradata=b"")
    with opened(dataclasses.replace(stored.video, header=blank)) as video:
        assert np.array_equal(video.select(lambda _: np.array([50, 80]))[1], expected)


def test_a_header_or_part_that_is_damaged(clip):  # noqa: F811
    stored = Parts(clip("two.mp4"))
    text, items = stored.header.encode()
    missing = text.replace("trusted", "believed")
    for damaged in (("{}", items), (text, items[:3]), (text, (b"", *[b"x"] * 5)), (missing, items)):
        with pytest.raises(ValueError):
            Header.decode(*damaged)
    text, items = stored.parts[0]
    for damaged in ((text, ()), (text, items[:-1]), ("no JSON", items), (text, (b"x", *items[1:]))):
        with pytest.raises(ValueError):
            Part.decode(*damaged)
    unknown = dataclasses.replace(stored.video, header=stored.header._replace(codec="nonsense"))
    with pytest.raises(VideoError, match="no decoder"), opened(unknown):
        pass
    for parameters in ({"pix}fmt": "yuv420p"}, {"framerate": "1/0"}, {"width": "wide"}):
        header = stored.header._replace(parameters=parameters)
        damaged = dataclasses.replace(stored.video, header=header)
        with pytest.raises(VideoError, match="damaged: .* in its header"), opened(damaged):
            pass
