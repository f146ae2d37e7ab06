"""Names of repositories on the Hugging Face Hub, wherever a model folder is expected."""

import functools
import re
from pathlib import Path

from tpo_jax.errors import InputError
from tpo_jax.io.paths import local_path

_NAME = re.compile(r"(\w[\w.-]*/\w[\w.-]*)(?:@([\w./-]+))?")
# What model directories hold, native ones included; weights as safetensors only.
_FILES = ("*.json", "*.safetensors", "*.txt", "*.jinja", "params/*")


def folder(name: str | Path) -> Path:
    """Return the folder that a path or the name of a repository on the Hub stands for.

    An existing folder takes precedence. Otherwise `organisation/name`, or
    `organisation/name@revision`, is downloaded into the cache of `huggingface_hub`, whose
    environment variables apply: `HF_HOME`, `HF_HUB_OFFLINE`, `HF_TOKEN`, `HF_ENDPOINT`.

    Raises:
        InputError: a repository that cannot be downloaded, or a path in a bucket.
    """
    path = local_path("model directory", name)
    if path.exists() or not (found := _NAME.fullmatch(str(name))):
        return path
    return _downloaded(found[1], found[2])


@functools.cache
def _downloaded(repository: str, revision: str | None) -> Path:
    import huggingface_hub  # takes a second: only if there is such a name

    given = f"{repository}@{revision}" if revision else repository
    try:
        return Path(
            huggingface_hub.snapshot_download(
                repository, revision=revision, allow_patterns=list(_FILES)
            )
        )
    except Exception as error:  # of the library, of its HTTP client or of the file system
        reason = " ".join(str(error).split())
        raise InputError(
            f"{given}: no such folder, and the Hugging Face Hub does not give it: "
            f"{type(error).__name__}: {reason}"
        ) from error
