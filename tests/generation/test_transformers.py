"""Greedy decoding equals `transformers` on the same weights, token by token."""

import numpy as np
import pytest

torch = pytest.importorskip("torch", reason="the parity tests compare with PyTorch")
pytest.importorskip("transformers", reason="the parity tests compare with transformers")

import jax  # noqa: E402

from tests.originals import LLAVA_VIDEO, Original, write_checkpoint  # noqa: E402
from tpo_jax.checkpoints.models import load_model  # noqa: E402
from tpo_jax.generation.decode import Limits, decode, prefill  # noqa: E402
from tpo_jax.generation.sampling import Sampling  # noqa: E402
from tpo_jax.models.batch import Batch  # noqa: E402

NEW = 64
BEFORE, QUESTIONS = [5, 9, 11], [[7, 8, 40, 3], [90, 2]]


def test_greedy_tokens_are_those_of_transformers(tmp_path) -> None:
    from transformers import GenerationConfig, Qwen2ForCausalLM

    config = LLAVA_VIDEO
    original = Original(config, seed=3)
    write_checkpoint(tmp_path, original)
    loaded = load_model(tmp_path)
    assert loaded.config == config
    side, num_frames = config.tower.image_size, 2
    frames = np.random.default_rng(0).integers(0, 256, (num_frames, side, side, 3), np.uint8)
    n = config.visual_tokens(num_frames)
    P, head = len(BEFORE) + n + 5, len(BEFORE)
    ids = np.array([[[QUESTIONS[0]], [QUESTIONS[1] + [0, 0]]]], np.int32)
    batch = Batch(
        frames=frames[None],
        prefix_ids=np.pad(np.array(BEFORE, np.int32), (0, P - head))[None],
        prefix_mask=(np.arange(P) < head + n)[None],
        visual_index=np.where(
            (np.arange(P) >= head) & (np.arange(P) < head + n), np.arange(P) - head, -1
        )[None],
        input_ids=ids,
        input_mask=np.array([[[[1, 1, 1, 1]], [[1, 1, 0, 0]]]], bool),
        target_ids=np.zeros_like(ids),
        target_mask=np.zeros_like(ids, bool),
        seeds=np.zeros(1, np.uint32),
    )
    limits = Limits(np.full((1, 2), NEW, np.int32), np.array([-1], np.int32), 97)

    torch_decoder = Qwen2ForCausalLM(original.qwen_config).eval()
    torch_decoder.model.load_state_dict(original.model.state_dict(), strict=False)
    torch_decoder.lm_head.load_state_dict(original.lm_head.state_dict())
    with torch.no_grad():
        visual = original.encode(torch.tensor(frames))

    for penalty in (1.0, 1.3):
        sampling = Sampling(repetition_penalty=penalty)
        prefix, state = prefill(
            loaded.config, loaded.params, batch, sampling, limits, new_tokens=NEW
        )
        state = decode(
            *(loaded.config, loaded.params, prefix, state, batch.seeds, sampling, limits),
            NEW - 1,
        )
        for q, question in enumerate(QUESTIONS):
            with torch.no_grad():
                embed = torch_decoder.model.embed_tokens
                x = [embed(torch.tensor(BEFORE)), visual, embed(torch.tensor(question))]
                expected = torch_decoder.generate(
                    inputs_embeds=torch.cat(x)[None],
                    attention_mask=torch.ones(1, sum(map(len, x)), dtype=torch.long),
                    generation_config=GenerationConfig(
                        max_new_tokens=NEW,
                        do_sample=False,
                        repetition_penalty=penalty,
                        pad_token_id=0,
                        eos_token_id=None,
                    ),
                )
            np.testing.assert_array_equal(jax.device_get(state.tokens)[0, q], expected[0])
    assert len(np.unique(state.tokens)) > 5
