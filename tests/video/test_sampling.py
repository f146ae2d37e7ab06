"""The originals' rules, on whole videos, on segments and on what lies outside of them."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from tests.video import clips
from tpo_jax.video.decode import VideoError, decode, probe
from tpo_jax.video.sampling import RULES, read_frames, sample, within

counts = st.integers(1, 5000)


@given(available=counts, num_frames=st.integers(1, 300), rate=st.floats(0.1, 240))
def test_uniform_and_forced_cover_the_video(available, num_frames, rate):
    for rule in ("uniform", "forced"):
        indices = sample(rule, available, rate, num_frames)
        assert indices.dtype == np.int64 and len(indices) == num_frames
        exact = np.arange(num_frames) * (available - 1) / max(num_frames - 1, 1)
        # Truncated, never rounded; equal to a whole number, floating point may fall one short.
        assert np.all(indices <= exact + 1e-6) and np.all(indices > exact - 1 - 1e-6)
        assert indices[0] == 0 and (num_frames == 1 or indices[-1] == available - 1)


@given(available=counts, num_frames=st.integers(1, 300), rate=st.floats(0.1, 240))
def test_nearest_is_rounded_and_never_repeats(available, num_frames, rate):
    indices = sample("nearest", available, rate, num_frames)
    assert len(indices) == min(available, num_frames) and np.all(np.diff(indices) > 0)
    exact = np.linspace(0, available - 1, len(indices))
    assert np.all(np.abs(indices - exact) <= 0.5)


def test_truncation_and_repetition():
    assert sample("uniform", 10, 30, 4).tolist() == [0, 3, 6, 9]
    assert sample("uniform", 11, 30, 4).tolist() == [0, 3, 6, 10]
    assert sample("uniform", 3, 30, 6).tolist() == [0, 0, 0, 1, 1, 2]
    assert sample("uniform", 7, 30, 1).tolist() == [0]


@given(available=counts, num_frames=st.integers(1, 300), rate=st.floats(0.1, 240))
def test_one_per_second_up_to_the_cap(available, num_frames, rate):
    indices = sample("fps", available, rate, num_frames)
    stride = max(1, round(rate))
    if -(-available // stride) > num_frames:
        np.testing.assert_array_equal(indices, sample("uniform", available, rate, num_frames))
    else:
        assert indices[0] == 0 and available - indices[-1] <= stride
        assert np.all(np.diff(indices) == stride)


@pytest.mark.parametrize(
    ("arguments", "match"),
    [
        (("uniform", 10, 30.0, 0), "num_frames"),
        (("fps", 10, 30.0, -1), "num_frames"),
        (("middle", 10, 30.0, 4), "middle.*uniform"),
        (("uniform", 0, 30.0, 4), "no frame"),
    ],
)
def test_wrong_arguments(arguments, match):
    with pytest.raises(ValueError, match=match):
        sample(*arguments)


@given(
    times=st.lists(st.floats(0, 100), min_size=1, max_size=50),
    start=st.floats(0, 90),
    length=st.floats(0.1, 50),
)
def test_a_segment_and_its_complement_share_nothing_and_miss_nothing(times, start, length):
    times, span = np.sort(times), (start, start + length)
    inside, outside = within(times, segment=span), within(times, exclude=span)
    assert sorted([*inside, *outside]) == list(range(len(times)))
    assert np.all((times[inside] >= span[0]) & (times[inside] < span[1]))


def test_a_segment_must_have_a_length():
    with pytest.raises(ValueError, match="end after its start"):
        within(np.arange(5.0), segment=(3, 3))


@pytest.fixture(scope="module", params=["constant.mp4", "variable.mkv", "h264.avi"])
def path(request, tmp_path_factory):
    return clips.VIDEOS[request.param](tmp_path_factory.mktemp("clips") / request.param)


@pytest.mark.parametrize("rule", RULES)
def test_frames_times_and_duration_of_a_file(path, rule):
    info = probe(path)
    frames, timestamps, duration = read_frames(path, rule, 6)
    np.testing.assert_array_equal(frames, decode(path, sample(rule, info.num_frames, info.fps, 6)))
    assert (timestamps.dtype, duration) == (np.float64, info.duration)
    assert timestamps[0] == 0 and np.all(np.diff(timestamps) > 0) and timestamps[-1] < duration


def test_frames_of_a_segment_and_of_the_rest(path):
    duration = probe(path).duration
    span = (duration / 3, duration / 2)
    everything, all_times, _ = read_frames(path, "uniform", probe(path).num_frames)
    for choice, expected in (
        ({"segment": span}, (all_times >= span[0]) & (all_times < span[1])),
        ({"exclude": span}, (all_times < span[0]) | (all_times >= span[1])),
    ):
        frames, times, whole = read_frames(path, "uniform", int(expected.sum()), **choice)
        np.testing.assert_array_equal(times, all_times[expected])
        np.testing.assert_array_equal(frames, everything[expected])
        assert whole == duration


def test_a_span_without_frames_is_an_error(path):
    with pytest.raises(VideoError, match="no frame left by segment=\\(1000"):
        read_frames(path, "uniform", 4, segment=(1000.0, 1001.0))


def test_as_the_originals_number_frames_of_a_constant_rate(tmp_path):
    """`index / average fps`, and one a second."""
    path = clips.write(tmp_path / "clip.mp4", 100, rate=25)
    _, times, duration = read_frames(path, "fps", 32)
    np.testing.assert_allclose(times, [0, 1, 2, 3], atol=1e-9)
    assert duration == 4
    _, times, _ = read_frames(path, "forced", 7)
    np.testing.assert_allclose(times, np.linspace(0, 99, 7, dtype=int) / 25, atol=1e-9)


def test_a_directory_of_frames(tmp_path):
    """Sorted by name, two a second; other files do not count."""
    colours = {
        f"{i:03d}.{kind}": i * 20 for i, kind in enumerate(["png", "bmp", "PNG", "png", "png"])
    }
    for name, value in reversed(colours.items()):
        Image.fromarray(np.full((6, 8, 3), value, np.uint8)).save(tmp_path / name)
    (tmp_path / "notes.txt").write_text("not a frame")
    frames, times, duration = read_frames(tmp_path, "uniform", 3)
    assert frames.shape == (3, 6, 8, 3) and frames[:, 0, 0, 0].tolist() == [0, 40, 80]
    assert (times.tolist(), duration) == ([0.0, 1.0, 2.0], 2.5)
    assert len(read_frames(tmp_path, "uniform", 9, segment=(1, 2))[0]) == 9
    assert read_frames(tmp_path, "fps", 9, exclude=(1, 2))[1].tolist() == [0.0, 2.0]


def test_bad_directories_name_the_file(tmp_path, monkeypatch):
    with pytest.raises(VideoError, match="no image"):
        read_frames(tmp_path, "uniform", 3)
    Image.new("RGB", (8, 6)).save(tmp_path / "0.png")
    (tmp_path / "1.png").write_bytes(b"not an image")
    with pytest.raises(VideoError, match="1.png: not a readable image"):
        read_frames(tmp_path, "uniform", 2)
    Image.new("RGB", (8, 7)).save(tmp_path / "1.png")
    with pytest.raises(VideoError, match="1.png: not 8x6 like 0.png"):
        read_frames(tmp_path, "uniform", 2)
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 20)  # an error that is no OSError
    with pytest.raises(VideoError, match="0.png: not a readable image: Image size"):
        read_frames(tmp_path, "uniform", 2)
