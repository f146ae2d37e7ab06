"""The weighted mean of models of one shape, such as a trained model and the one it started from.

A model between the two keeps most of what training taught, at little of its cost elsewhere
(WiSE-FT, arXiv 2109.01903; after preference training WARP, arXiv 2406.16768).
"""

from collections.abc import Sequence
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np

from tpo_jax.checkpoints.huggingface import Stored
from tpo_jax.checkpoints.models import open_model, save_model
from tpo_jax.errors import InputError

BLOCK = 2**24  # values


def average(directories: Sequence[str | Path], shares: Sequence[float], output: Path) -> None:
    """Write the native directory of the mean of models; a native directory there is replaced.

    Parameters are read, averaged in float32 and written one by one, in the widest of their dtypes.

    Args:
        directories: of two models or more, of either layout; the last one's tokenizer is copied.
        shares: of each model, at least 0; divided by their sum, which is finite and above 0.

    Raises:
        InputError: the models differ in more than their weights, or what is wrong with a directory.
    """
    opened = [open_model(directory) for directory in directories]
    config = opened[0].config
    for directory, model in zip(directories, opened, strict=True):
        if model.config != config:
            raise InputError(f"{directory} is no model of the config of {directories[0]}")
    weights = (np.array(shares) / np.sum(shares)).astype(np.float32)
    params = jax.tree.map(
        lambda *parameters: _mean(parameters, weights), *(model.params for model in opened)
    )
    save_model(output, config, params, opened[-1].tokenizer_directory)


def _mean(parameters: Sequence[Stored], weights: np.ndarray) -> Stored:
    """Return the mean of parameters, read part by part when it is asked for."""
    dtype = jnp.result_type(*(x.dtype for x in parameters))

    def read(index: tuple[slice, ...]) -> np.ndarray:
        whole = [x.read(index) for x in parameters]
        parts, mean = [x.reshape(-1) for x in whole], np.empty(whole[0].size, dtype)
        # In blocks: in float32 the largest parameter of a 7B model takes 8 GB.
        for start in range(0, mean.size, BLOCK):
            block = slice(start, start + BLOCK)
            mean[block] = sum(
                w * x[block].astype(np.float32) for w, x in zip(weights, parts, strict=True)
            )
        return mean.reshape(whole[0].shape)

    return Stored(parameters[0].shape, dtype, read)
