"""Section `data` of a config: what is read, in which order, and the static shapes of a batch."""

import dataclasses

from tpo_jax.data.draws import shares_of
from tpo_jax.data.frame_counts import FrameCounts, frame_counts
from tpo_jax.errors import InputError
from tpo_jax.families.template import STYLES
from tpo_jax.video import sampling

ON_ERROR = ("error", "skip_and_count")
SAME, ANCHOR = "same", "anchor"  # what the reference sees of a video


@dataclasses.dataclass(frozen=True)
class DataConfig:
    """What is read, in which order, and the static shapes of a batch: section `data` of a config.

    The five fields without a default follow from other sections.
    """

    batch_size: int  # pairs of two answers, of all hosts
    num_epochs: int  # 0: without end
    seed: int  # of the order of pairs
    answers: int  # A: 2, or 1 for the chosen answer only
    phrases: bool  # whether batches say in which tokens the answers differ
    shards: str = ""  # directory that `prepare` made
    replay: tuple[str, ...] = ()  # more such directories; each batch is of one
    replay_weights: tuple[float, ...] = ()  # of `shards` and of each; (): equally often
    num_frames: int | tuple[int, ...] = 32  # of a video; of several, each batch has one
    num_frames_weights: tuple[float, ...] = ()  # how often each is drawn; (): equally often
    pairs_per_row: int = 1  # Q: pairs of one video that share its row
    sampling: str = "uniform"
    time_instruction: str = ""  # empty: what the model asks for
    prompt_style: str = "inference"
    reference_view: str = SAME  # of a video: what the policy sees, or "anchor": a pair's segment
    shuffle: bool = True
    video_pairs: int = 0  # pairs of one answer on two videos in a batch, beside `batch_size` others
    mixing: tuple[float, ...] = ()  # shares of localized and comprehensive pairs; (): all pairs
    limit: int = 0  # pairs used; 0: all
    subset_seed: int = 0  # draws the pairs of `limit`, nested; 0: the first ones
    curriculum: bool = False  # from easy to hard manipulations within an epoch
    max_prefix: int = 0  # P; 0: what the longest pair needs, rounded up
    max_response: int = 0  # R; 0: likewise
    prefix_multiple: int = 128
    response_multiple: int = 16
    workers: int = 2  # decoding processes; 0: threads of this one
    cache_mib: int = 0  # MiB of decoded frames that this process keeps for later epochs
    on_error: str = "error"  # or "skip_and_count": a pair that cannot be decoded is left out
    verify_shards: bool = False  # whether all files are compared with the manifest's checksums
    eval_shards: str = ""  # directory of held-out pairs
    eval_share: float = 0.0  # or the share of the videos in `shards` whose pairs are held out

    def __post_init__(self) -> None:
        _ = self.frames  # checks both fields
        if not self.shares[0]:
            raise InputError(
                f"data.replay_weights={','.join(map(str, self.replay_weights))}: the first is that "
                "of data.shards, by which the run counts its epochs; it must be above 0"
            )
        for name in ("batch_size", "pairs_per_row"):
            if getattr(self, name) < 1:
                raise InputError(f"data.{name}={getattr(self, name)} must be at least 1")
        counts = ("num_epochs", "limit", "max_prefix", "max_response", "workers", "cache_mib")
        for name in (*counts, "video_pairs"):
            if getattr(self, name) < 0:
                raise InputError(f"data.{name}={getattr(self, name)} must not be negative")
        if self.sampling not in sampling.RULES:
            known = ", ".join(sampling.RULES)
            raise InputError(f"data.sampling={self.sampling!r} must be one of {known}")
        if self.prompt_style not in STYLES:
            known = ", ".join(STYLES)
            raise InputError(f"data.prompt_style={self.prompt_style!r} must be one of {known}")
        if self.on_error not in ON_ERROR:
            known = " or ".join(ON_ERROR)
            raise InputError(f"data.on_error={self.on_error!r} must be {known}")
        if self.reference_view not in (SAME, ANCHOR):
            raise InputError(
                f"data.reference_view={self.reference_view!r} must be {SAME} or {ANCHOR}"
            )
        if self.reference_view == ANCHOR and self.pairs_per_row > 1:
            raise InputError(
                f"data.reference_view={ANCHOR} needs data.pairs_per_row=1, not "
                f"{self.pairs_per_row}: pairs of one row are shown the same frames"
            )
        if self.answers not in (1, 2):
            raise InputError(f"data.answers={self.answers} must be 1 or 2")
        if self.phrases and self.answers == 1:
            raise InputError("data.phrases needs data.answers=2")
        if self.batch_size % self.pairs_per_row:
            raise InputError(
                f"train.batch_size={self.batch_size} is no multiple of "
                f"data.pairs_per_row={self.pairs_per_row}"
            )
        if self.video_pairs and self.batch_size // self.pairs_per_row % 2:
            raise InputError(
                f"train.batch_size / data.pairs_per_row is {self.batch_size // self.pairs_per_row};"
                f" with data.video_pairs={self.video_pairs} it must be even"
            )
        if self.mixing and (len(self.mixing) != 2 or min(self.mixing) < 0 or sum(self.mixing) <= 0):
            raise InputError(f"data.mixing={self.mixing} must be two shares, one of them above 0")
        if not 0 <= self.eval_share < 1:
            raise InputError(f"data.eval_share={self.eval_share} must be at least 0 and below 1")
        if self.eval_share and self.eval_shards:
            raise InputError("data.eval_shards and data.eval_share are both given; leave one out")

    @property
    def frames(self) -> FrameCounts:
        """The numbers of frames that batches have, and how often."""
        return frame_counts(self.num_frames, self.num_frames_weights)

    @property
    def rows(self) -> int:
        """Rows of a batch of all hosts, B: two for each pair of two videos."""
        return 2 * self.video_pairs + self.batch_size // self.pairs_per_row

    @property
    def shares(self) -> tuple[float, ...]:
        """The shares of batches drawn from `shards` and from each directory of `replay`."""
        directories = [self.shards, *self.replay]
        return shares_of(
            "data.replay_weights", self.replay_weights, directories, "data.shards,data.replay"
        )
