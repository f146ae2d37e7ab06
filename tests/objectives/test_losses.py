"""Every loss against its paper's formula, against PyTorch's gradients, and against TRL."""

import collections
from types import SimpleNamespace

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tests.objectives.pairs import random_pairs
from tpo_jax.objectives.losses import LOSSES, WITH_SMOOTHING
from tpo_jax.objectives.preference import Objective, denominators, tpo_loss

BETA, SMOOTHING, MARGIN = 0.7, 0.2, 0.4


class Formulas:
    """The papers' formulas over `pc`, `pr` (policy), `rc`, `rr` (reference), `lc`, `lr` (lengths),
    `uc`, `ur` (phrase log-ratios) of the present pairs, for float64 NumPy (`xp=numpy`) and PyTorch.
    """

    def __init__(self, xp, smoothing):
        self.xp, self.e = xp, smoothing

    def sig(self, x):
        return 1 / (1 + self.xp.exp(-x))

    def logsig(self, x):
        return self.xp.log(self.sig(x))

    def smoothed(self, h):
        return -(1 - self.e) * self.logsig(h) - self.e * self.logsig(-h)

    def sigmoid(self, p):
        return self.smoothed(BETA * ((p.pc - p.rc) - (p.pr - p.rr)))

    def robust(self, p):
        h = BETA * ((p.pc - p.rc) - (p.pr - p.rr))
        return (self.e * self.logsig(-h) - (1 - self.e) * self.logsig(h)) / (1 - 2 * self.e)

    def hinge(self, p):
        x = 1 - BETA * ((p.pc - p.rc) - (p.pr - p.rr))
        return x * (x > 0)

    def ipo(self, p):
        return ((p.pc - p.rc) / p.lc - (p.pr - p.rr) / p.lr - 1 / (2 * BETA)) ** 2

    def kto_pair(self, p):
        """Sums of both halves over twice as many answers."""
        z_chosen, z_rejected = (
            max((x - y).mean().item(), 0) for x, y in ((p.pc, p.rc), (p.pr, p.rr))
        )
        return (
            (1 - self.sig(BETA * (p.pc - p.rc - z_rejected)))
            + (1 - self.sig(BETA * (z_chosen - (p.pr - p.rr))))
        ) / 2

    def sigmoid_norm(self, p):
        return -self.logsig(BETA / p.lc * (p.pc - p.rc) - BETA / p.lr * (p.pr - p.rr))

    def simpo(self, p):
        return self.smoothed(BETA / p.lc * p.pc - BETA / p.lr * p.pr - MARGIN)

    def leanpo(self, p):
        return self.smoothed(BETA / p.lc * p.pc - BETA / p.lr * p.pr)

    def orpo(self, p):
        pc, pr = self.xp.exp(p.pc / p.lc), self.xp.exp(p.pr / p.lr)
        return -self.logsig(self.xp.log((pc / (1 - pc)) / (pr / (1 - pr))))

    def apo_zero(self, p):
        return 1 - self.sig(BETA * (p.pc - p.rc)) + self.sig(BETA * (p.pr - p.rr))

    def apo_down(self, p):
        margin = BETA * ((p.pc - p.rc) - (p.pr - p.rr))
        return self.sig(BETA * (p.pc - p.rc)) + 1 - self.sig(margin)

    def rrpo(self, p):
        return -self.logsig(BETA * (p.uc - p.ur))


def ours(name, data, smoothing=0.0):
    """(loss, gradient by the token log-probabilities) of the whole objective without SFT."""
    objective = Objective(BETA, 0.0, 1.0, smoothing, loss=name, margin=MARGIN)
    mask = jnp.asarray(data["target_mask"])

    def loss(logps):
        return tpo_loss(
            logps, mask, data["reference"], objective, denominators(mask), data["phrase_mask"]
        )[0]

    return jax.value_and_grad(loss)(jnp.asarray(data["token_logps"]))


def quantities(data, logps):
    """What the formulas read, of the present pairs, from log-probabilities `[n, 2, R]`."""
    mask = data["target_mask"]
    present = mask.any(-1).all(-1)
    reference = data["reference"].astype(np.float64)[present]
    lengths = mask.sum(-1).astype(np.float64)[present]
    phrases = data["phrase_mask"][present].astype(np.float64)
    if not isinstance(logps, np.ndarray):
        torch = pytest.importorskip("torch")
        reference, lengths, phrases = map(torch.as_tensor, (reference, lengths, phrases))
    policy, parts = logps.sum(-1), (logps * phrases).sum(-1)
    return SimpleNamespace(
        pc=policy[:, 0],
        pr=policy[:, 1],
        rc=reference[:, 0],
        rr=reference[:, 1],
        lc=lengths[:, 0],
        lr=lengths[:, 1],
        uc=parts[:, 0] - reference[:, 2],
        ur=parts[:, 1] - reference[:, 3],
    )


CASES = [(name, 0.0) for name in LOSSES] + [(name, SMOOTHING) for name in WITH_SMOOTHING]


@pytest.mark.parametrize(("name", "smoothing"), CASES)
def test_value_is_the_papers_formula(name, smoothing):
    data = random_pairs()
    present = data["target_mask"].any(-1).all(-1)
    p = quantities(data, data["token_logps"].astype(np.float64)[present])
    expected = getattr(Formulas(np, smoothing), name)(p).mean()
    np.testing.assert_allclose(ours(name, data, smoothing)[0], expected, rtol=1e-6)


@pytest.mark.parametrize(("name", "smoothing"), CASES)
def test_gradient_is_that_of_pytorch(name, smoothing):
    torch = pytest.importorskip("torch", reason="PyTorch is not installed")
    data = random_pairs(seed=1)
    present = data["target_mask"].any(-1).all(-1)
    logps = torch.tensor(data["token_logps"][present], dtype=torch.float64, requires_grad=True)
    getattr(Formulas(torch, smoothing), name)(quantities(data, logps)).mean().backward()
    expected = np.zeros(data["token_logps"].shape)
    expected[present] = logps.grad.numpy()
    # Padding adds 0 to every sum; the model's logps do not depend on anything there.
    labelled = data["target_mask"]
    found = np.asarray(ours(name, data, smoothing)[1])
    scale = np.abs(expected).max()
    assert scale > 0
    np.testing.assert_allclose(found[labelled], expected[labelled], atol=2e-6 * scale, rtol=2e-5)
    assert (found[~present] == 0).all()


def trl_dpo(data, names, weights, smoothing):
    """Loss and gradient by TRL's DPO trainer, handed the log-probabilities of a model."""
    torch = pytest.importorskip("torch", reason="PyTorch is not installed")
    trl = pytest.importorskip("trl", reason="TRL is not installed: pip install trl")
    mask = data["target_mask"]
    present = mask.any(-1).all(-1)
    stacked = [
        np.concatenate([x[present][:, 0], x[present][:, 1]])
        for x in (data["token_logps"].astype(np.float64), mask)
    ]
    logps = torch.tensor(stacked[0], requires_grad=True)
    completion = torch.tensor(np.pad(stacked[1], ((0, 0), (1, 0))).astype(np.int64))
    reference = torch.tensor(data["reference"][present].astype(np.float64))
    nothing = torch.zeros_like(logps)
    outputs = SimpleNamespace(
        log_probs=logps, entropy=nothing, mean_logits=nothing, is_top1=nothing.bool()
    )
    trainer = SimpleNamespace(
        model=SimpleNamespace(training=False),
        accelerator=SimpleNamespace(
            device="cpu", gather=lambda x: x, gather_for_metrics=lambda x: x
        ),
        args=SimpleNamespace(),
        loss_types=names,
        loss_weights=weights,
        beta=BETA,
        label_smoothing=smoothing,
        aux_loss_enabled=False,
        ld_alpha=None,
        precompute_ref_logps=True,
        f_divergence_type="reverse_kl",
        use_weighting=False,
        _metrics=collections.defaultdict(lambda: collections.defaultdict(list)),
        _total_train_tokens=0,
    )
    inputs = {
        "input_ids": torch.zeros_like(completion),
        "attention_mask": torch.ones_like(completion),
        "completion_mask": completion,
        "ref_chosen_logps": reference[:, 0],
        "ref_rejected_logps": reference[:, 1],
    }
    try:
        loss = trl.DPOTrainer._compute_loss(trainer, lambda **_: outputs, inputs, False)
    except (AttributeError, TypeError) as error:
        pytest.skip(f"TRL {trl.__version__} is built in another way: {error}")
    loss.backward()
    gradient = np.zeros(mask.shape)
    gradient[present] = np.stack(np.split(logps.grad.numpy(), 2), axis=1)
    return loss.item(), gradient


@pytest.mark.parametrize(
    ("loss", "names", "weights", "smoothing"),
    [
        *[
            (name, [name], [1.0], 0.0)
            for name in ("sigmoid", "hinge", "ipo", "apo_zero", "apo_down", "sigmoid_norm")
        ],
        ("robust", ["robust"], [1.0], SMOOTHING),
        ("0.8*sigmoid+0.2*apo_zero", ["sigmoid", "apo_zero"], [0.8, 0.2], 0.0),
        ("ipo+0.5*hinge", ["ipo", "hinge"], [1.0, 0.5], 0.0),
    ],
)
def test_trl_agrees(loss, names, weights, smoothing):
    data = random_pairs(seed=2)
    expected, gradient = trl_dpo(data, names, weights, smoothing)
    found, found_gradient = ours(loss, data, smoothing)
    np.testing.assert_allclose(found, expected, rtol=1e-6)
    labelled, scale = data["target_mask"], np.abs(gradient).max()
    np.testing.assert_allclose(
        np.asarray(found_gradient)[labelled], gradient[labelled], atol=2e-6 * scale, rtol=2e-5
    )


@pytest.mark.parametrize("name", ["simpo", "orpo"])
def test_trls_reference_free_trainers_agree(name):
    torch = pytest.importorskip("torch", reason="PyTorch is not installed")
    pytest.importorskip("trl", reason="TRL is not installed: pip install trl")
    try:
        from trl.experimental.cpo import CPOTrainer
        from trl.experimental.orpo import ORPOTrainer
    except ImportError as error:
        pytest.skip(f"this TRL has no CPO and ORPO trainer: {error}")
    data, smoothing = random_pairs(seed=3), SMOOTHING if name == "simpo" else 0.0
    mask = data["target_mask"]
    present = mask.any(-1).all(-1)
    mean = torch.tensor(
        data["token_logps"].astype(np.float64).sum(-1)[present] / mask.sum(-1)[present]
    )
    trainer = SimpleNamespace(
        accelerator=SimpleNamespace(device="cpu"),
        alpha=0.0,
        beta=BETA if name == "simpo" else 1.0,
        loss_type="simpo",
        simpo_gamma=MARGIN,
        label_smoothing=smoothing,
    )
    if name == "simpo":
        expected = CPOTrainer.cpo_loss(trainer, mean[:, 0], mean[:, 1])[0].mean()
    else:
        expected = -ORPOTrainer.odds_ratio_loss(trainer, mean[:, 0], mean[:, 1])[0].mean()
    np.testing.assert_allclose(ours(name, data, smoothing)[0], expected, rtol=1e-6)
