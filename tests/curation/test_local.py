"""The local client: one model in every role, on rendered videos and on real clips."""

import json

import numpy as np
import pytest

from tests.curation.test_curate import pairs_of
from tpo_jax.curation.clients import Failure, Request, VideoView
from tpo_jax.curation.config import read
from tpo_jax.curation.local_client import LocalClient
from tpo_jax.curation.run import curate
from tpo_jax.curation.units import Unit
from tpo_jax.curation.views import View
from tpo_jax.errors import InputError
from tpo_jax.inference.model import load

UNIT = Unit(id="", video="")
pytestmark = pytest.mark.usefixtures("fast_charts")


def local(config, checkpoint):
    for name in ("captioner", "questioner", "answerer", "judge"):
        config[name].backend = "local"
        config[name].num_frames = 4
        config[name].max_new_tokens = 8
    config.local.checkpoint = str(checkpoint)
    config.local.dtype = "float32"
    return config


def test_questions_about_one_clip_share_its_encoding(checkpoint, world_videos, world_config):
    config = local(world_config, checkpoint)
    model = load(checkpoint, mesh={"fsdp": -1})
    paths = [world_videos / f"{i:05d}.mp4" for i in range(2)]
    requests = [
        Request(f"{v}{q}", text, VideoView(paths[v], View("full", 4)), 0, UNIT)
        for v in range(2)
        for q, text in enumerate(["Who is it?", "What colour?", "Where?"])
    ]
    lost = Request("lost", "Who?", VideoView(world_videos / "no.mp4", View("full", 4)), 0, UNIT)
    client = LocalClient(model, read(config).answerer, batch_rows=8)
    encoded = []
    answer = client._generator.answer
    client._generator.answer = lambda frames, *rest: encoded.append(frames) or answer(frames, *rest)
    together = dict(client.replies(iter([*requests, lost])))
    assert isinstance(together[lost], Failure) and "no such file" in together[lost].reason
    assert len(encoded) == 1 and len(np.unique(encoded[0], axis=0)) == 2
    again = dict(client.replies(iter(requests[::-1])))
    assert {r: together[r] for r in requests} == again
    assert all(isinstance(text, str) for text in again.values())


@pytest.mark.slow
def test_random_weights_on_real_clips_leave_no_pair(
    checkpoint, shared_media, world_config, tmp_path
):
    config = local(world_config, checkpoint)
    config.videos.folder = str(shared_media)
    config.segments.localized = config.segments.comprehensive = 1
    config.questions.per_segment = 1
    with pytest.raises(InputError, match="no pair is left"):
        curate(config, tmp_path / "run")
    failed = [json.loads(x) for x in (tmp_path / "run/set_aside.jsonl").read_text().splitlines()]
    # The needles are images of several sizes; nonsense is not a caption or question.
    assert {line["stage"] for line in failed} <= {"videos", "captions", "questions"}
    clips = {line["id"].partition("#")[0] for line in failed}
    assert clips == {"dc_demo", "jobs", "short_clip", "needles"}


def test_a_judge_with_random_weights_keeps_nothing(checkpoint, world_config, tmp_path):
    config = local(world_config, checkpoint)
    for name in ("captioner", "questioner", "answerer"):
        config[name].backend = "rules"
    config.judge.num_frames = 0  # it reads text alone
    config.segments.localized = config.segments.comprehensive = 1
    config.questions.per_segment = 3
    with pytest.raises(InputError, match="no pair is left"):
        curate(config, tmp_path / "run")
    judged = (tmp_path / "run/judged.jsonl").read_text().splitlines()[1:]
    assert judged and all("set_aside" in line or "dropped" in line for line in judged)
    # Without a judge they would all be kept.
    config.judge.enabled = False
    config.balance.localized = 1.0
    with pytest.raises(InputError, match=r"judge\.enabled True, not False"):
        curate(config, tmp_path / "run")
    (tmp_path / "run/judged.jsonl").unlink()
    curate(config, tmp_path / "run")
    assert pairs_of(tmp_path / "run")
