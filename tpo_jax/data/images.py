"""Still images as one row of the model's input."""

import contextlib
from collections.abc import Sequence
from pathlib import Path

from PIL import Image

from tpo_jax import families
from tpo_jax.errors import InputError
from tpo_jax.models.config import ModelConfig
from tpo_jax.models.pictures import Pictures, joined


def read_pictures(pictures: Sequence[str | Path | Image.Image], config: ModelConfig) -> Pictures:
    """Return image files or PIL images as one row of the model's input; none for text alone.

    As in the original code an animation is its first picture, transparency is dropped, and a
    rotation noted in the file is not applied.

    Raises:
        InputError: a file that is not a readable image, or one that the model cannot take.
    """
    family, parts = families.of(config), []
    for number, picture in enumerate(pictures):
        where = f"image {number}" if isinstance(picture, Image.Image) else picture
        try:
            with contextlib.ExitStack() as opened:
                if not isinstance(picture, Image.Image):
                    picture = opened.enter_context(Image.open(picture))
                image = picture.convert("RGB")
        except Exception as error:  # broken files make the library raise nearly everything
            reason = getattr(error, "strerror", None) or " ".join(str(error).split())
            raise InputError(f"{where}: cannot be read as an image: {reason}") from error
        try:
            parts.append(family.picture(image, config, len(pictures) > 1))
        except InputError as error:
            raise InputError(f"{where}: {error}") from error
    return joined(parts, config)
