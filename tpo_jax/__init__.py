"""Temporal Preference Optimization for video language models, native to JAX on TPU.

import tpo_jax

model = tpo_jax.load("checkpoints/longva-tpo")
print(model.answer("cooking.mp4", "What is cut first?", num_frames=32))
"""

from typing import Any

__version__ = "0.1.0"
# Imported on first access, so that `import tpo_jax` alone loads neither JAX nor data libraries.
_PUBLIC = {
    "load": "tpo_jax.inference.model",
    "load_processor": "tpo_jax.inference.model",
    "Model": "tpo_jax.inference.model",
    "Sampling": "tpo_jax.generation.sampling",
    "InputError": "tpo_jax.errors",
}


def __getattr__(name: str) -> Any:
    if name not in _PUBLIC:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    import importlib

    return getattr(importlib.import_module(_PUBLIC[name]), name)


def __dir__() -> list[str]:
    return sorted([*globals(), *_PUBLIC])
