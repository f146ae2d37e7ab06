"""Frames are those of frame-exact readers, wherever they are and however one gets there."""

import os
import shutil
import wave

import av
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.video import clips
from tpo_jax.video.decode import VideoError, decode, opened, probe
from tpo_jax.video.files import FileReader

# decord loses frames of transport streams and edited files, refuses files that do not tell their
# length, and takes other chroma filters where the height is odd or a sample has ten bits.
NOT_FOR_DECORD = {
    *("broadcast.ts", "fields.ts", "headless.ts", "trimmed.mp4"),
    *("animation.gif", "stream.h264"),
    *("odd.webm", "ten_bits.mp4"),
}


@pytest.fixture(scope="session")
def clip(tmp_path_factory):
    folder = tmp_path_factory.mktemp("clips")

    def get(name):
        path = folder / name
        return path if path.exists() else clips.VIDEOS[name](path)

    return get


def some_indices(num_frames: int, seed: int = 0) -> np.ndarray:
    """Unsorted, with repeats, near and far, and the last frame."""
    rng = np.random.default_rng(seed)
    return np.append(rng.integers(0, num_frames, 6), [num_frames - 1, num_frames // 2] * 2)


@pytest.mark.parametrize("name", clips.VIDEOS)
def test_frames_counts_and_times_are_those_of_pyav(clip, name):
    path = clip(name)
    frames, times = clips.read(path)
    if name == "rotated.mp4":
        frames = np.rot90(frames, k=-1, axes=(1, 2))
    info = probe(path)
    assert (info.num_frames, info.height, info.width) == frames.shape[:3]
    for seed in range(3):
        indices = some_indices(info.num_frames, seed)
        np.testing.assert_array_equal(decode(path, indices), frames[indices])
    # One frame alone is the longest jump.
    np.testing.assert_array_equal(decode(path, [info.num_frames - 1])[0], frames[-1])
    if None not in times and np.all(np.diff(times) > 0):
        with opened(path) as video:
            np.testing.assert_allclose(
                video.timestamps, (times - times[0]).astype(float), atol=2e-3
            )
            assert info.duration >= video.timestamps[-1]


@pytest.mark.parametrize("name", sorted(clips.VIDEOS.keys() - NOT_FOR_DECORD))
def test_frames_are_those_of_decord(clip, name):
    decord = clips.import_decord()
    reader = decord.VideoReader(str(clip(name)))
    indices = some_indices(len(reader))
    assert probe(clip(name)).num_frames == len(reader)
    # In order: its own jumps into open groups of pictures are not exact.
    frames = np.stack([reader[i].asnumpy() for i in range(len(reader))])
    np.testing.assert_array_equal(decode(clip(name), indices), frames[indices])


@pytest.mark.parametrize("name", ["dc_demo.mp4", "jobs.mp4", "short_clip.mp4"])
def test_real_clips_are_those_of_decord(shared_media, name):
    decord = clips.import_decord()
    path = shared_media / name
    reader = decord.VideoReader(str(path))
    info = probe(path)
    assert (info.num_frames, info.fps) == (len(reader), pytest.approx(reader.get_avg_fps()))
    indices = np.linspace(0, len(reader) - 1, 6, dtype=int)
    expected = reader.get_batch(indices).asnumpy()
    np.testing.assert_array_equal(decode(path, indices), expected)


streams = st.builds(
    clips.Stream,
    num_frames=st.integers(1, 60),
    gop=st.integers(1, 30),
    b_frames=st.integers(0, 5),
    suffix=st.sampled_from(["mp4", "mkv", "ts", "avi", "flv"]),
)


@settings(max_examples=12)
@given(stream=streams, data=st.data())
def test_any_frames_of_any_stream(tmp_path_factory, stream, data):
    path = stream.write(tmp_path_factory.mktemp("any"))
    num_frames = stream.num_frames
    indices = data.draw(st.lists(st.integers(0, num_frames - 1), max_size=5))
    frames, _ = clips.read(path)
    assert probe(path).num_frames == len(frames) == num_frames
    np.testing.assert_array_equal(decode(path, indices), frames[np.array(indices, int)])


def test_one_jump_lands_without_decoding_what_lies_before(clip, monkeypatch):
    """Of 200 frames in groups of 100, the last is reached through its own group only."""
    decoded = []
    grab = FileReader.grab
    monkeypatch.setattr(FileReader, "grab", lambda reader: decoded.append(1) or grab(reader))
    expected = decode(clip("long_group.mp4"), [199])
    assert len(decoded) < 105
    # Also backwards, from behind it.
    with opened(clip("long_group.mp4")) as video:
        video.select(lambda _: np.array([199]))
        before = len(decoded)
        video.select(lambda _: np.array([110]))
        assert len(decoded) - before < 20
        np.testing.assert_array_equal(video.select(lambda _: np.array([199]))[1], expected)


@pytest.mark.parametrize("name", ["constant.mp4", "variable.webm", "h264.avi"])
def test_bytes_are_as_good_as_a_file(clip, name):
    data = clip(name).read_bytes()
    assert probe(data) == probe(clip(name))
    indices = some_indices(probe(data).num_frames)
    np.testing.assert_array_equal(decode(data, indices), decode(clip(name), indices))


def test_av1(shared_cases):
    """OpenCV's wheel has no decoder for it."""
    path = shared_cases / "videos/av1.mp4"
    frames, times = clips.read(path)
    with opened(path) as video:
        assert video.info == (60, 30.0, 320, 180, 2.0)
        np.testing.assert_allclose(video.timestamps, times.astype(float), atol=1e-9)
    np.testing.assert_array_equal(decode(path, [59, 0, 31]), frames[[59, 0, 31]])


@pytest.mark.parametrize("head", [b"RIFF", b"RIFF\0\0\0"])
def test_a_file_of_a_few_bytes_is_one_clear_line(head, tmp_path):
    (tmp_path / "a.avi").write_bytes(head)
    with pytest.raises(VideoError, match="a.avi"):
        probe(tmp_path / "a.avi")


def test_the_cover_of_an_album_is_no_video(shared_cases):
    with pytest.raises(VideoError, match="audio only: its picture is a cover"):
        probe(shared_cases / "videos/audio_with_cover.m4a")


def test_pictures_and_sound_are_a_video(tmp_path):
    album(tmp_path / "slides.mp4", frames=2)
    assert probe(tmp_path / "slides.mp4").num_frames == 2


def test_name_that_is_not_unicode(clip, tmp_path):
    path = os.fsencode(tmp_path) + b"/\xff 12:30.mp4"
    shutil.copy(clip("constant.mp4"), path)
    assert probe(os.fsdecode(path)) == probe(clip("constant.mp4"))


def test_average_rate_of_a_variable_one(clip):
    info = probe(clip("variable.mkv"))
    with opened(clip("variable.mkv")) as video:
        assert info.fps == pytest.approx(89 / video.timestamps[-1])
        assert info.duration == pytest.approx(90 / info.fps)


def cut(path, suffix):
    clips.write(path, codec="libvpx-vp9" if suffix == "webm" else "libx264", options=None)
    path.write_bytes(path.read_bytes()[:-700])


def audio_only(path):
    with wave.open(str(path), "wb") as out:
        out.setnchannels(1)
        out.setsampwidth(2)
        out.setframerate(8000)
        out.writeframes(bytes(16000))


def album(path, frames=1):
    """Sound, and a stream of pictures that does not say it is a cover."""
    with av.open(str(path), "w") as out:
        sound, pictures = out.add_stream("aac", rate=8000), out.add_stream("mjpeg", rate=25)
        pictures.width, pictures.height, pictures.pix_fmt = 64, 48, "yuvj420p"
        samples = av.AudioFrame.from_ndarray(np.zeros((1, 8000), np.float32), "fltp", "mono")
        samples.sample_rate = 8000
        picture = av.VideoFrame.from_ndarray(np.zeros((48, 64, 3), np.uint8), "rgb24")
        for stream, frame in [(sound, samples), *[(pictures, picture)] * frames]:
            out.mux(stream.encode(frame))
        out.mux([*sound.encode(), *pictures.encode()])


def without_frames(path):
    with av.open(str(path), "w", format="mp4") as out:
        stream = out.add_stream("libx264", rate=30)
        stream.width, stream.height = 64, 48
        out.start_encoding()


BROKEN = {
    "missing.mp4": (lambda path: None, "no such file"),
    "folder.mp4": (lambda path: path.mkdir(), "not a file"),
    "empty.mp4": (lambda path: path.touch(), "empty"),
    "text.mp4": (lambda path: path.write_text("no video at all\n" * 99), "no video stream"),
    "cut.mp4": (lambda path: cut(path, "mp4"), "truncated"),
    "cut.avi": (lambda path: cut(path, "avi"), "truncated"),
    "cut.webm": (lambda path: cut(path, "webm"), "truncated"),
    "audio.wav": (audio_only, "audio only: no picture"),
    "album.mp4": (album, "audio only: its picture is a cover"),
    # The rate of a container that knows none is that of its clock.
    "clock.mp4": (lambda path: clips.write(path, 1, rate=90000), "no usable frame rate"),
    "without_frames.mp4": (without_frames, "no"),
}


@pytest.mark.parametrize("name", BROKEN)
def test_broken_files_are_one_clear_line(tmp_path, name, capfd):
    make, reason = BROKEN[name]
    make(tmp_path / name)
    capfd.readouterr()
    for read in (probe, lambda path: decode(path, [0])):
        with pytest.raises(VideoError, match=reason) as error:
            read(tmp_path / name)
        assert str(tmp_path / name) in str(error.value) and "\n" not in str(error.value)
    assert capfd.readouterr() == ("", "")


def test_damage_in_the_middle_never_hangs_or_crashes(clip, tmp_path):
    rng = np.random.default_rng(0)
    for trial in range(8):
        data = bytearray(clip("constant.mp4").read_bytes())
        places = rng.integers(0, len(data), 30)
        for place in places:
            data[place] = rng.integers(256)
        path = tmp_path / f"{trial}.mp4"
        path.write_bytes(data)
        try:
            info = probe(path)
            assert len(decode(path, [info.num_frames - 1])) == 1
        except VideoError as error:
            assert str(path) in str(error)


def test_memory_that_ffmpeg_does_not_get_is_one_clear_line(clip, monkeypatch):
    """A damaged header may ask for any amount. Python's own error is not taken for that."""
    path = clip("no_b_frames.mp4")

    def refuse(error):
        def fail(*_, **__):
            raise error

        monkeypatch.setattr(av, "open", fail)

    refuse(av.error.MemoryError(12, "Cannot allocate memory"))
    with pytest.raises(VideoError, match="no_b_frames.mp4: damaged, or too large: FFmpeg asks for"):
        decode(path, [0])
    refuse(MemoryError())
    with pytest.raises(MemoryError):
        decode(path, [0])


@pytest.mark.parametrize("name", ["ntsc.mkv", "odd.webm"])
def test_a_cluster_that_breaks_off_is_an_error(clip, tmp_path, name):
    """FFmpeg passes over the rest of it; damage inside a picture is the decoder's to conceal."""
    data = clip(name).read_bytes()
    with av.open(str(clip(name))) as container:
        *_, block, end = (p.pos for p in list(container.demux(video=0))[:41] if p.size)
    path = tmp_path / name
    path.write_bytes(data[:block] + b"\xff" * (end - block) + data[end:])
    with av.open(str(path)) as container:  # so frames are missing indeed
        assert sum(p.size > 0 for p in container.demux(video=0)) < 85
    with pytest.raises(VideoError, match=f"{name}: damaged: cannot be read on at byte"):
        probe(path)
    path.write_bytes(data[: block + 8] + b"\xff" * 4 + data[block + 12 :])
    assert probe(path).num_frames == 90


def test_times_of_an_avi_do_not_depend_on_what_was_decoded(clip):
    """Its decoder gives them in disorder, so that its frames are counted."""
    with opened(clip("h264.avi")) as video:
        before = video.timestamps
        video.select(lambda _: np.arange(90))
        assert not video.timeline.trusted
        np.testing.assert_array_equal(video.timestamps, before)


def test_an_index_outside_is_an_error(clip):
    for index in (90, -1):
        with pytest.raises(IndexError, match="constant.mp4.*90 frames"):
            decode(clip("constant.mp4"), [0, index])


def test_no_indices_no_frames(clip):
    assert decode(clip("constant.mp4"), []).shape == (0, 96, 128, 3)
