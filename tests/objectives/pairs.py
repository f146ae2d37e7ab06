"""Random log-probabilities of pairs: different lengths, one-token answers, an absent pair."""

import numpy as np


def random_pairs(seed=0, B=4, Q=2, R=6) -> dict[str, np.ndarray]:
    """Return arguments of `tpo_loss`; `reference` holds sums over answers, then over phrases."""
    rng = np.random.default_rng(seed)
    lengths = rng.integers(2, R + 1, (B, Q, 2, 1))
    lengths[0, 0, 0] = 1
    mask = np.arange(R) < lengths
    mask[-1, -1] = False
    logps = np.where(mask, -rng.exponential(1.5, mask.shape), 0).astype(np.float32)
    phrases = mask & (rng.random(mask.shape) < 0.5)
    log_ratios = np.where(mask, rng.normal(0, 1.5, mask.shape), 0).astype(np.float32)
    whole, part = ((logps - log_ratios) * m for m in (mask, phrases))
    return {
        "token_logps": logps,
        "target_mask": mask,
        "reference": np.concatenate([whole.sum(-1), part.sum(-1)], -1).astype(np.float32),
        "phrase_mask": phrases,
        "token_kl": np.where(mask[:, :, 0], rng.exponential(0.3, (B, Q, R)), 0).astype(np.float32),
    }
