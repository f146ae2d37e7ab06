"""How much of what a vision tower computes is padding, for models whose frames keep their shape."""

from collections.abc import Sequence

import numpy as np

from tpo_jax import families
from tpo_jax.errors import note
from tpo_jax.models.batch import Batch
from tpo_jax.models.config import ModelConfig

VIDEOS = 16  # looked at before anything is said
MOST = 0.15  # share of padding that is not reported


class PaddingCheck:
    """Looks at the first videos of a run and says in one line if much of them is padding.

    A batch has `frame_tokens` visual tokens for every pair of frames, whatever their shape
    (`docs/qwen_vl.md`). Nothing is said of models whose frames all have one size.
    """

    def __init__(self, config: ModelConfig) -> None:
        self._tokens = config.tokens_per_frame
        self._waiting = "frame_tokens" in families.of(config).settings
        self._seen: list[tuple[int, int]] = []

    def look(self, batch: Batch) -> None:
        """Look at the rows of a batch on the host; those of images are passed over."""
        if not self._waiting or batch.patch_index is not None:
            return
        last = np.asarray(batch.visual_index).max(axis=1, initial=-1)
        found = np.stack(np.divmod(last[last >= 0], self._tokens), axis=1) + 1
        self._seen += map(tuple, found.tolist())
        if len(self._seen) >= VIDEOS:
            self._waiting = False
            if text := advice(self._seen, self._tokens):
                note(text)


def advice(videos: Sequence[tuple[int, int]], most: int) -> str:
    """Return advice on the padding of videos; "" where it is at most `MOST`.

    Args:
        videos: the number of pairs of frames of each, and of visual tokens of a pair.
        most: `frame_tokens`, to which every pair is padded.
    """

    def padded(cap: int) -> float:
        """Return the share of padding if pairs had at most `cap` tokens."""
        used = sum(pairs * min(tokens, cap) for pairs, tokens in videos)
        return 1 - used / (cap * sum(pairs for pairs, _ in videos))

    if padded(most) <= MOST:
        return ""
    sizes = [tokens for _, tokens in videos]
    smallest, largest = min(sizes), max(sizes)
    choices = []
    if largest < most:
        choices.append(f"--frame_tokens={largest} leaves {padded(largest):.0%}, at the same sizes")
    if padded(largest) > MOST:
        cap = max(c for c in range(smallest, largest) if padded(c) <= MOST)
        choices.append(f"--frame_tokens={cap} leaves {padded(cap):.0%}, larger frames shrink")
    return (
        f"{padded(most):.0%} of the visual tokens are padding: pairs of frames of the first "
        f"{len(videos)} videos have {smallest} to {largest} of frame_tokens={most}; a checkpoint "
        f"converted with {', with '.join(choices)}"
    )
