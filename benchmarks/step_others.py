"""The step of `step.py` in PyTorch with `transformers`, and in Tunix."""

import contextlib
import copy
import dataclasses
import functools
import json
import os
import subprocess
import tempfile
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import optax

from benchmarks.step_layouts import OBJECTIVE, make_batch, medians, table
from tpo_jax import families
from tpo_jax.checkpoints.models import load_model
from tpo_jax.models.batch import Batch
from tpo_jax.models.config import ModelConfig
from tpo_jax.models.decoder import PrefixStream
from tpo_jax.models.vlm import gather_logps
from tpo_jax.objectives.preference import Objective, denominators, tpo_loss
from tpo_jax.training.state import TrainState, new_state
from tpo_jax.training.step import Compute, make_scorer, make_step

RATIOS = ["ratio", "ratio, CPU time", "losses differ by"]
RATE = 1e-5


class TorchRows:
    """The concatenated step of the original trainer: both answers as rows, each with the video."""

    def __init__(self, original, reference):
        import torch
        import transformers

        self.torch = torch
        self.sides = [self._assemble(m, transformers) for m in (original, reference)]
        self.sides[1][1].requires_grad_(False)
        for module in (original, reference):
            module.model.vision_tower.requires_grad_(False)
        modules = [self.sides[0][1], original.model.mm_projector]
        weights = [p for m in modules for p in m.parameters() if p.requires_grad]
        self.optimizer = torch.optim.AdamW(weights, lr=RATE, weight_decay=1e-4)

    def _assemble(self, module, transformers):
        values = module.qwen_config.to_dict() | {"attn_implementation": "sdpa"}
        decoder = transformers.Qwen2ForCausalLM(transformers.Qwen2Config(**values))
        decoder.model.load_state_dict(module.model.state_dict(), strict=False)
        decoder.lm_head.load_state_dict(module.lm_head.state_dict())
        return module, decoder

    def logps(self, side, batch):
        """Return token log-probabilities [2, R] of the answers."""
        torch, (module, decoder) = self.torch, self.sides[side]
        frames = torch.from_numpy(batch.frames[0])
        visual = torch.stack([module.encode(frames) for _ in range(2)])
        prefix = batch.prefix_ids[0][visual.shape[1] :]
        answers = batch.input_ids[0, 0]
        ids = torch.from_numpy(np.concatenate([np.stack([prefix, prefix]), answers], axis=1))
        embeds = torch.cat([visual, decoder.model.embed_tokens(ids)], dim=1)
        logits = decoder(inputs_embeds=embeds).logits.float().log_softmax(-1)
        targets = torch.from_numpy(batch.target_ids[0, 0]).long()
        return logits[:, -targets.shape[1] :].gather(-1, targets[..., None])[..., 0]

    def step(self, batch) -> float:
        """Run one update; return the loss before it."""
        functional = self.torch.nn.functional
        with self.torch.no_grad():
            reference = self.logps(1, batch).sum(-1)
        policy = self.logps(0, batch)
        log_ratio = policy.sum(-1) - reference
        loss = -functional.logsigmoid(OBJECTIVE.beta * (log_ratio[0] - log_ratio[1]))
        loss = loss - OBJECTIVE.alpha * policy[0].mean()
        self.optimizer.zero_grad()
        loss.backward()
        self.optimizer.step()
        return loss.item()


@contextlib.contextmanager
def one_core():
    """Bind all threads of this process to one core while entered (Linux only)."""
    if not hasattr(os, "sched_setaffinity"):
        yield
        return
    cores = os.sched_getaffinity(0)

    def allow(allowed):
        for thread in os.listdir("/proc/self/task"):
            os.sched_setaffinity(int(thread), allowed)

    allow({max(cores)})
    try:
        yield
    finally:
        allow(cores)


def against_torch(model: ModelConfig, text: int, response: int, repeats: int) -> str:
    """Return a section of the page."""
    import torch
    import transformers

    from tests.originals import Original, write_checkpoint

    torch.set_num_threads(1)
    originals = [Original(model, seed) for seed in (0, 1)]
    params = []
    for original in originals:
        with tempfile.TemporaryDirectory() as directory:
            write_checkpoint(Path(directory), original)
            params.append(load_model(directory).params)
    optimizer, compute = optax.adamw(RATE), Compute("float32", remat="none")
    rows = []
    for frames in (16, 64):
        batch = make_batch(model, frames, text, response)
        theirs = TorchRows(*copy.deepcopy(originals))
        scored = jax.jit(make_scorer(model, compute))(params[1], batch)
        cached = dataclasses.replace(batch, reference_logps=scored)
        step = jax.jit(make_step(model, OBJECTIVE, compute, optimizer), donate_argnums=0)
        state = jax.jit(lambda p: new_state(p, optimizer, ("tower",)))(params[0])
        losses = (
            theirs.step(batch),
            float(step(jax.tree.map(jnp.copy, state), cached)[1]["losses/total"]),
        )

        def ours(step=step, cached=cached):
            nonlocal state
            state, metrics = step(state, cached)
            return metrics

        ways = {"torch": lambda theirs=theirs, batch=batch: theirs.step(batch), "ours": ours}
        with one_core():
            seconds = medians(ways, repeats)
        rows.append(
            [
                f"{frames}",
                f"{batch.prefix_ids.shape[1]}",
                f"{seconds['torch'].wall * 1e3:,.0f}",
                f"{seconds['ours'].wall * 1e3:,.0f}",
                f"{seconds['torch'].wall / seconds['ours'].wall:.2f}",
                f"{seconds['torch'].cpu / seconds['ours'].cpu:.2f}",
                f"{abs(losses[0] - losses[1]) / abs(losses[0]):.1e}",
            ]
        )
    head = [
        "frames",
        "prefix",
        "PyTorch, ms",
        "ours, ms",
        "ratio",
        "ratio, CPU time",
        "losses differ by",
    ]
    return f"""
## Against PyTorch

The same model and weights, float32, nothing recomputed, both on one core, because PyTorch's
threads wait for each other when other programs use the cores. PyTorch {torch.__version__},
transformers {transformers.__version__}: both answers as rows of one batch, as in the original
trainer (`CLIPVisionModel`, `Qwen2ForCausalLM` with `sdpa`), reference without gradients, AdamW.

{table(head, rows)}"""


class Tunix:
    """`step_tunix.py` in an interpreter of its own, one step at a time."""

    def __init__(self, python: str, directory: Path, given: dict):
        (directory / "given.json").write_text(json.dumps(given))
        script = Path(__file__).with_name("step_tunix.py")
        self.child = subprocess.Popen(
            [python, str(script), str(directory)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        self.started = self._answer()

    def _answer(self) -> dict:
        while line := self.child.stdout.readline():
            if line.startswith("{"):
                return json.loads(line)
        raise RuntimeError("the Tunix process ended, see above")

    def step(self) -> dict:
        """Run one step; return the `loss` before it and the `cpu` seconds it took."""
        self.child.stdin.write("step\n")
        self.child.stdin.flush()
        return self._answer()

    def close(self) -> None:
        """End the process."""
        self.child.stdin.close()
        self.child.wait()


def text_logps(model: ModelConfig, params: dict, batch: Batch) -> jax.Array:
    """Return `VideoLanguageModel.token_logps` of a prefix without video."""
    decoder = families.bind(model, params).decoder
    B, Q, A, R = batch.input_ids.shape
    x, y = map(decoder.embed, (batch.prefix_ids, batch.input_ids))
    mask = batch.input_mask.reshape(B, Q * A, R)
    hidden = decoder.row(PrefixStream(x, batch.prefix_mask), y.reshape(B, Q * A, R, -1), mask)
    targets = batch.target_ids.reshape(B, Q * A, R)
    return gather_logps(hidden, decoder.head.kernel[...], targets).reshape(B, Q, A, R)


def text_step(
    model: ModelConfig, optimizer, state: TrainState, batch: Batch
) -> tuple[TrainState, jax.Array]:
    """Run a step of DPO on a batch without video; return the loss before it."""
    mask, objective = batch.target_mask, Objective(OBJECTIVE.beta, alpha=0.0)

    def loss(params):
        logps = text_logps(model, state.frozen | params, batch)
        return tpo_loss(logps, mask, batch.reference_logps, objective, denominators(mask))[0]

    value, grads = jax.value_and_grad(loss)(state.params)
    updates, opt = optimizer.update(grads, state.opt, state.params)
    params = optax.apply_updates(state.params, updates)
    return dataclasses.replace(state, params=params, opt=opt), value


def against_tunix(model: ModelConfig, response: int, python: str, repeats: int) -> str:
    """Return a section of the page."""
    optimizer = optax.adamw(RATE)
    policy, reference = (families.init_params(model, seed) for seed in (0, 1))
    draws, rows, version = np.random.default_rng(0), [], ""
    for prompt in (148, 580, 1156):
        tokens = draws.integers(1, model.decoder.vocab_size, (1, 1, 2, prompt + response), np.int32)
        tokens[..., :prompt] = tokens[0, 0, 0, :prompt]
        # The prompt's last token opens both answers.
        batch = Batch(
            frames=np.zeros((1, 0, 1, 1, 3), np.uint8),
            prefix_ids=tokens[:, 0, 0, : prompt - 1],
            prefix_mask=np.ones((1, prompt - 1), bool),
            visual_index=np.full((1, prompt - 1), -1, np.int32),
            input_ids=tokens[..., prompt - 1 : -1],
            input_mask=np.ones((1, 1, 2, response), bool),
            target_ids=tokens[..., prompt:],
            target_mask=np.ones((1, 1, 2, response), bool),
        )
        score = jax.jit(lambda p, b: text_logps(model, p, b).sum(-1))
        cached = dataclasses.replace(batch, reference_logps=score(reference, batch))

        jitted = jax.jit(functools.partial(text_step, model, optimizer), donate_argnums=0)
        freeze = tuple(set(policy) - {"decoder"})
        state = jax.jit(lambda p: new_state(p, optimizer, freeze))(policy)  # noqa: B023
        state, first = jitted(state, cached)

        def ours(jitted=jitted, cached=cached):
            nonlocal state
            state, loss = jitted(state, cached)
            return loss

        with tempfile.TemporaryDirectory() as directory:
            for name, side in (("policy", policy), ("reference", reference)):
                flat = jax.tree_util.tree_leaves_with_path(side["decoder"])
                named = {jax.tree_util.keystr(k, simple=True, separator="/"): v for k, v in flat}
                np.savez(Path(directory) / f"{name}.npz", **jax.device_get(named))
            given = dataclasses.asdict(model.decoder) | {
                "tokens": tokens[0, 0].tolist(),
                "prompt": prompt,
                "rate": RATE,
                "beta": OBJECTIVE.beta,
            }
            theirs = Tunix(python, Path(directory), given)
        version = theirs.started["version"]
        loss = theirs.step()["loss"]
        seconds = medians({"tunix": theirs.step, "ours": ours}, repeats)
        theirs.close()
        rows.append(
            [
                f"{prompt}",
                f"{seconds['tunix'].wall * 1e3:,.0f}",
                f"{seconds['ours'].wall * 1e3:,.0f}",
                f"{seconds['tunix'].wall / seconds['ours'].wall:.2f}",
                f"{seconds['tunix'].cpu / seconds['ours'].cpu:.2f}",
                f"{abs(loss - float(first)) / abs(loss):.1e}",
            ]
        )
    head = [
        "prompt tokens",
        "Tunix, ms",
        "ours, ms",
        "ratio",
        "ratio, CPU time",
        "losses differ by",
    ]
    return f"""
## Against Tunix, text only

The decoder alone, the same weights, prompts and answers of {response} tokens, DPO, float32, nothing
recomputed, AdamW. {version}: `DPOTrainer`'s own preparation (the reference runs in every step) and
train step, in a separate Python environment.

{table(head, rows)}"""
