"""The other half of `step_others.Tunix`: runs where `google-tunix` is installed, not `tpo_jax`.

    python step_tunix.py DIRECTORY

Reads sizes and tokens from `given.json` and weights from `policy.npz` and `reference.npz` in the
directory; then answers every line on standard input with one DPO step.
"""

import importlib.metadata
import json
import sys
import time
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax import nnx
from tunix.models.qwen2 import model as qwen2
from tunix.sft.dpo import dpo_trainer


def load(given: dict, path: Path) -> qwen2.Qwen2:
    """Return Tunix's Qwen2 with the weights of a file."""
    D, H, K, C = (given[name] for name in ("width", "heads", "kv_heads", "head_dim"))
    config = qwen2.ModelConfig(
        num_layers=given["layers"],
        vocab_size=given["vocab_size"],
        embed_dim=D,
        hidden_dim=given["mlp_width"],
        num_heads=H,
        head_dim=C,
        num_kv_heads=K,
        rope_theta=given["rope_theta"],
        norm_eps=given["norm_eps"],
    )
    model = qwen2.Qwen2(config, rngs=nnx.Rngs(0))
    weights = np.load(path)

    def put(parameter, value):
        assert parameter[...].shape == value.shape, (parameter[...].shape, value.shape)
        parameter[...] = jnp.asarray(value)

    put(model.embedder.input_embedding, weights["embed/embedding"])
    put(model.final_norm.w, weights["norm/scale"])
    put(model.lm_head.w, weights["head/kernel"])
    for i, layer in enumerate(model.layers):

        def ours(name, i=i):
            return weights[f"layers/{name}"][i]

        attention, mlp = layer.attn, layer.mlp
        for name, heads in (("q", H), ("k", K), ("v", K)):
            put(getattr(attention, f"{name}_proj").w, ours(f"{name}/kernel").reshape(D, heads, C))
            put(getattr(attention, f"{name}_bias"), ours(f"{name}/bias"))
        put(attention.o_proj.w, ours("o/kernel").reshape(H, C, D))
        for name in ("gate", "up", "down"):
            put(getattr(mlp, f"{name}_proj").kernel, ours(f"{name}/kernel"))
        put(layer.input_layernorm.w, ours("input_norm/scale"))
        put(layer.post_attention_layernorm.w, ours("mlp_norm/scale"))
    return model


def main() -> None:
    """Answer requests until standard input ends."""
    directory = Path(sys.argv[1])
    given = json.loads((directory / "given.json").read_text())
    policy, reference = (load(given, directory / f"{n}.npz") for n in ("policy", "reference"))
    config = dpo_trainer.DPOTrainingConfig(eval_every_n_steps=10**9, beta=given["beta"])
    trainer = dpo_trainer.DPOTrainer(policy, reference, optax.adamw(given["rate"]), config)
    tokens, prompt = np.array(given["tokens"], np.int32), given["prompt"]
    chosen, rejected = tokens[:1, prompt:], tokens[1:, prompt:]
    pair = dpo_trainer.TrainingInput(
        prompt_ids=tokens[:1, :prompt],
        prompt_mask=np.ones((1, prompt), np.int32),
        chosen_ids=chosen,
        chosen_mask=np.ones_like(chosen),
        rejected_ids=rejected,
        rejected_mask=np.ones_like(rejected),
    )
    step, _ = trainer.jit_train_and_eval_step()
    names = [f"{n} {importlib.metadata.version(n)}" for n in ("google-tunix", "jax")]
    print(json.dumps({"version": ", ".join(names)}), flush=True)
    for _ in sys.stdin:
        cpu = time.process_time()
        loss, *_ = jax.block_until_ready(step(trainer._prepare_inputs(pair)))
        cpu = time.process_time() - cpu
        print(json.dumps({"loss": float(loss), "cpu": cpu}), flush=True)


if __name__ == "__main__":
    main()
