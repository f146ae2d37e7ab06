"""Adapters, and the mergers trained beside them, as PEFT and as we load them."""

import jax
import numpy as np
import pytest
from safetensors.torch import load_file

from tests.families.qwen_vl import originals
from tests.families.qwen_vl.originals import make_tokenizer, their_inputs
from tests.families.qwen_vl.tiny import CONFIGS
from tpo_jax import families
from tpo_jax.checkpoints.models import load_model
from tpo_jax.checkpoints.peft import save_adapters
from tpo_jax.data.clips import Clip
from tpo_jax.data.collate import collate
from tpo_jax.data.processor import Processor
from tpo_jax.models.batch import BatchShape
from tpo_jax.models.lora import Lora, init_adapters, join, scaled

torch = originals.torch
LORA = Lora(rank=2, alpha=6.0)


@pytest.mark.parametrize("name", CONFIGS)
def test_peft_and_we_load_what_was_trained(name, tmp_path):
    config = CONFIGS[name]
    connectors = ("projector", "deepstack") if config.tower.deepstack else ("projector",)
    original = originals.make_original(config)
    originals.write_checkpoint(tmp_path / "base", original, config)
    base = load_model(tmp_path / "base").params
    draws = np.random.default_rng(0)
    trained = jax.tree.map(
        lambda x: x + 0.1 * draws.standard_normal(x.shape, np.float32),
        init_adapters(LORA, base, 0) | {k: base[k] for k in connectors},
    )
    save_adapters(tmp_path / "adapters", config, LORA, trained, "base")

    pixels = draws.integers(0, 256, (4, 24, 40, 3), np.uint8)
    processor = Processor(config, make_tokenizer())
    clip = Clip(processor.resize(pixels, rate=2.0), [0.0, 0.5, 1.0, 1.5], 2.0)
    row = processor.prompts(["What is cut first?"], clip)
    shape = BatchShape(
        rows=1,
        prefix=row.prefix_ids.size,
        questions=1,
        answers=1,
        response=row.input_ids.shape[-1],
        frames=len(clip.frames),
        frame_shape=config.frame_shape,
    )
    batch = collate(config, [row], [clip.frames], shape)

    @jax.jit
    def logits(params):
        model = families.bind(config, params)
        return model.decoder.head(model.hidden_states(batch))[0, 0, 0]

    beside = {k: x for k, x in base.items() if k not in connectors}
    ours = logits(scaled(join(beside, trained), LORA))
    merged = load_model(tmp_path / "base", adapters=tmp_path / "adapters").params
    np.testing.assert_allclose(logits(merged), ours, atol=1e-4)
    assert np.abs(logits(base) - ours).max() > 0.1

    peft = pytest.importorskip("peft", reason="compares with PEFT's own loading")
    others = load_file(tmp_path / "adapters" / "non_lora_trainables.safetensors")
    assert not original.load_state_dict(others, strict=False).unexpected_keys
    model = peft.PeftModel.from_pretrained(original, tmp_path / "adapters")
    with torch.no_grad():
        theirs = model(**their_inputs(processor, row, clip.frames, rate=2.0)).logits
    n = int(row.prefix_mask.sum())
    assert np.abs(theirs[0, n:].numpy() - np.asarray(ours)).max() <= 1e-4
