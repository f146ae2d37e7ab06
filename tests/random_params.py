"""Random weights of any model without a program: `families.init_params` compiles one for each of
its shapes.
"""

import jax
import numpy as np

from tpo_jax import families
from tpo_jax.models.config import ModelConfig


def random_params(config: ModelConfig, seed: int = 0) -> dict:
    """Return float32 parameters, NumPy: kernels and embeddings of the scale that `init_params`
    gives them, norms near one, all else near zero.
    """
    draws = np.random.default_rng(seed)

    def draw(path, leaf):
        name, x = path[-1].key, draws.standard_normal(leaf.shape, np.float32)
        if name == "kernel":
            return x * np.float32(leaf.shape[-2] ** -0.5)
        return x if name == "embedding" else np.float32(name == "scale") + np.float32(0.05) * x

    return jax.tree_util.tree_map_with_path(draw, families.abstract_params(config))
