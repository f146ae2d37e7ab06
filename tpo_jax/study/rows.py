"""The rows of the paper's tables, its baselines, what might improve on TPO: how each is trained.

One registry for both sizes. At miniature size a row is trained on the synthetic world by
`runs.py`, at 7B by the commands of `full_size.py`; the variants of the files in `configs/` are the
rows that have a setting at 7B.
"""

import dataclasses
from collections.abc import Mapping
from types import MappingProxyType
from typing import Any

from ml_collections import ConfigDict

from tpo_jax.training.experiment import base


@dataclasses.dataclass(frozen=True)
class Miniature:
    """What is particular to a row at miniature size.

    Attributes:
        source: which pairs, one of `sources.SOURCES`.
        error: share of the verdicts that a `noisy` judge inverts, or of the answers that are wrong
            where another model has `written` them.
        share: of the pairs used.
        stretched: whether training starts from the base with its positions scaled.
        after: row of the round before: its model answers other questions and is trained on.
        first: whether the reference of a further round is the base, not where the round starts.
        updates: times those of other rows.
        replay: share of the batches that are of short videos.
        kept: share of the start in the mean of its weights and the trained ones.
        changes: config fields beyond those of the row.
    """

    source: str = "judged"
    error: float = 0.0
    share: float = 1.0
    stretched: bool = False
    after: str = ""
    first: bool = False
    updates: int = 1
    replay: float = 0.0
    kept: float = 0.0
    changes: Mapping[str, Any] = dataclasses.field(default_factory=dict)

    @property
    def pairs(self) -> str:
        """Return the name of the files of the pairs."""
        name = f"{self.source}_{100 * self.error:.0f}" if self.error else self.source
        return f"{name}_of_{self.after}" if self.after else name

    @property
    def answers(self) -> str:
        """Return the name of the file of the answers that pairs are made of."""
        return f"answers_of_{self.after}" if self.after else "answers"

    @property
    def answering(self) -> str:
        """Return the directory of the model that answered."""
        return f"tuned/{self.after}" if self.after else "base"

    @property
    def start(self) -> str:
        """Return the directory of the model that training starts from."""
        return "stretched" if self.stretched else self.answering


@dataclasses.dataclass(frozen=True)
class FullSize:
    """What is particular to a row at 7B.

    Attributes:
        variant: of the config file; empty: the row's own name.
        shards: which pairs, a field of `full_size.Places`.
        pairs: seen in training, epochs included, for the cost.
        changes: config fields beyond those of the row.
    """

    variant: str = ""
    shards: str = "shards"
    pairs: int = 10_000
    changes: Mapping[str, Any] = dataclasses.field(default_factory=dict)


@dataclasses.dataclass(frozen=True)
class TableRow:
    """One way to train.

    Attributes:
        label: on the pages.
        changes: config fields in which it differs from TPO, at any size.
        miniature: None: not trained at this size.
        full_size: None: not trained at this size.
    """

    label: str
    changes: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    miniature: Miniature | None = Miniature()
    full_size: FullSize | None = FullSize()


NESTED = {"data.subset_seed": 1}  # the smaller subset is part of the larger one
SUPERVISED = {"objective.dpo_weight": 0.0, "objective.alpha": 1.0}
# What the preference adds is seen between the first two, what the supervised term adds between the
# first and the last.
PREFERENCE_OR_NOT: Mapping[str, tuple[str, Mapping[str, Any]]] = {
    "tpo": ("TPO", {}),
    "sft_self": ("SFT_Self", SUPERVISED),
    "dpo": ("DPO alone", {"objective.alpha": 0.0}),
}
JUDGE_ERRORS = (10, 30)  # percent
FRAME_COUNTS = {"data.num_frames": (16, 32, 64), "data.num_frames_weights": (1.0, 2.0, 1.0)}
REPLAY, KEPT = 0.25, 0.3
# Short videos of a replay keep their own numbers of frames.
ROBUST: Mapping[str, Any] = {
    "data.num_frames": (32, 64),
    "data.num_frames_weights": (2.0, 1.0),
    "data.sampling": "fps",
}
ONE_A_ROW = {"data.pairs_per_row": 1}
# A segment is shown with the frames it has, one a second, instead of repeated ones.
ANCHORED = {"data.reference_view": "anchor", "data.sampling": "fps", **ONE_A_ROW}
TWO_VIDEOS = {
    "data.video_pairs": 4,
    "objective.video_weight": 1.0,
    "objective.video_anchor": 1.0,
}


def _small(
    label: str, miniature: Miniature, changes: Mapping[str, Any] = MappingProxyType({})
) -> TableRow:
    """Return a row that is trained at miniature size only."""
    return TableRow(label, changes, miniature, None)


# `docs/objectives.md` says where the numbers of Hound-DPO, RRPO and LeanPO come from.
ROWS = {
    "base": TableRow("base", miniature=None, full_size=None),
    "base_stretched": TableRow("base, positions scaled", miniature=None, full_size=None),
    "tpo": TableRow("TPO"),
    "localized_only": TableRow("localized only", {"data.mixing": (1.0, 0.0)}),
    "mix_8_2": TableRow("8:2", {"data.mixing": (0.8, 0.2)}),
    "mix_5_5": _small("5:5", Miniature(changes={"data.mixing": (0.5, 0.5)})),
    "mix_2_8": TableRow("2:8", {"data.mixing": (0.2, 0.8)}),
    "comprehensive_only": TableRow("comprehensive only", {"data.mixing": (0.0, 1.0)}),
    "scale_20": TableRow(
        "a fifth of the pairs",
        miniature=Miniature(share=0.2),
        full_size=FullSize("scale_2k", pairs=2_000, changes={"data.limit": 2_000} | NESTED),
    ),
    "scale_50": TableRow(
        "half of the pairs",
        miniature=Miniature(share=0.5),
        full_size=FullSize("scale_5k", pairs=5_000, changes={"data.limit": 5_000} | NESTED),
    ),
    "dpo": TableRow("no SFT term", {"objective.alpha": 0.0}),
    "sft_self": TableRow("SFT_Self", SUPERVISED),
    "sft_llm": TableRow(
        "SFT_LLM", SUPERVISED, Miniature("written", 0.1), FullSize("sft_self", shards="written")
    ),
    "hound_dpo": TableRow(
        "Hound-DPO",
        {"objective.alpha": 0.0},
        Miniature("sampled"),
        FullSize(
            shards="judged",
            pairs=30_000,  # three epochs
            changes={
                "objective.beta": 0.1,
                "train.learning_rate": 5e-7,
                "train.num_epochs": 3,
                "train.freeze": (),
            },
        ),
    ),
    "rrpo": TableRow(
        "RRPO",
        {
            "objective.loss": "rrpo",
            "objective.beta": 0.1,
            "objective.alpha": 0.0,
            "objective.token_kl": 0.01,
        },
    ),
    "leanpo": TableRow(
        "LeanPO", {"objective.loss": "leanpo", "objective.beta": 2.0, "objective.alpha": 0.0}
    ),
    "judge_off": TableRow("judge off", miniature=Miniature("unjudged"), full_size=None),
    "noisy_judge": TableRow("noisy judge", miniature=Miniature("noisy", 0.2), full_size=None),
    "frames_48": TableRow(
        "trained at 48 frames",
        miniature=Miniature(changes={"data.num_frames": 48}),
        full_size=None,
    ),
    "stretched": TableRow(
        "TPO, positions scaled", miniature=Miniature(stretched=True), full_size=None
    ),
    "sft_truth": _small("SFT on the truth", Miniature("written"), SUPERVISED),
    "thinned": _small("few pairs of what is known", Miniature("thinned")),
    "untimed": _small(
        "few pairs of what is known, none about before and after", Miniature("untimed")
    ),
    "frame_counts": _small("16, 32 or 64 frames a batch", Miniature(changes=FRAME_COUNTS)),
    "replay": _small("replay of short videos", Miniature(replay=REPLAY)),
    "averaged": _small("averaged with the base", Miniature(kept=KEPT)),
    "one_a_row": _small("sixteen videos a batch", Miniature(changes=ONE_A_ROW)),
    "anchored": _small("anchored reference", Miniature(changes=ANCHORED)),
    "two_videos": _small("pairs of two videos", Miniature("two_videos", changes=TWO_VIDEOS)),
    "updates_2": _small("twice the updates", Miniature(updates=2)),
    "updates_3": _small("three times the updates", Miniature(updates=3)),
    "round_2": _small("two rounds", Miniature(after="tpo")),
    "round_3": _small("three rounds", Miniature(after="round_2")),
    "round_2_first": _small("two rounds, first reference", Miniature(after="tpo", first=True)),
    "round_3_first": _small(
        "three rounds, first reference", Miniature(after="round_2_first", first=True)
    ),
    "best": TableRow(
        "best combination",
        ROBUST,
        Miniature("untimed", replay=REPLAY, kept=KEPT),
        FullSize("robust"),
    ),
    **{
        f"{name}_judge_{percent}": _small(
            f"{label}, judge errs in {percent} %", Miniature("noisy", percent / 100), changes
        )
        for name, (label, changes) in PREFERENCE_OR_NOT.items()
        for percent in JUDGE_ERRORS
    },
    **{
        f"{name}_partly": _small(
            f"{label}, answers share an error",
            Miniature("partly"),
            changes,
        )
        for name, (label, changes) in PREFERENCE_OR_NOT.items()
    },
}


# What might improve on TPO, and what is asked of the preference.
IMPROVED = (
    "thinned",
    "untimed",
    "frame_counts",
    "replay",
    "averaged",
    "one_a_row",
    "anchored",
    "two_videos",
)
ROUNDS = ("updates_2", "round_2", "round_2_first", "updates_3", "round_3", "round_3_first")
NOISY = tuple(f"{name}_judge_{n}" for n in JUDGE_ERRORS for name in PREFERENCE_OR_NOT)
PARTLY = tuple(f"{name}_partly" for name in PREFERENCE_OR_NOT)


def miniature_of(name: str) -> Miniature:
    """Return how a row is trained at miniature size."""
    row = ROWS[name].miniature
    assert row, f"{name} is not trained at this size"
    return row


def rounds_before(name: str) -> tuple[str, ...]:
    """Return the rows of the rounds before a row, the latest first."""
    row = ROWS[name].miniature
    return (row.after, *rounds_before(row.after)) if row and row.after else ()


def variants() -> dict[str, dict[str, Any]]:
    """Return the variants of the config files: name to the fields that differ from TPO."""
    found: dict[str, dict[str, Any]] = {}
    for name, row in ROWS.items():
        if row.full_size:
            changes = {**row.changes, **row.full_size.changes}
            found.setdefault(row.full_size.variant or name, changes)
    return found


def apply_variant(config: ConfigDict, variant: str | None) -> ConfigDict:
    """Change a config to one of the variants and return it; None is TPO.

    Raises:
        ValueError: no such variant.
    """
    known = variants()
    if (name := variant or "tpo") not in known:
        raise ValueError(f"unknown variant {variant!r}; there are {', '.join(known)}")
    config.update_from_flattened_dict(known[name])
    return config


def tiny(variant: str | None = "tpo") -> ConfigDict:
    """Return the config of TPO on the synthetic world, or of one of its variants."""
    config = base()
    config.data.pairs_per_row = 4
    config.data.prefix_multiple = 8
    config.data.response_multiple = 1
    config.data.workers = 0  # small files: processes cost more than they bring
    config.data.cache_mib = 512  # all there are
    config.objective.beta = 0.1
    config.objective.alpha = 1.0
    config.compute.dtype = "float32"
    # Many small steps: at the same cost, steps of 64 pairs gain half as much.
    config.train.batch_size = 16
    config.train.num_epochs = 2
    config.train.learning_rate = 5e-4
    config.train.b2 = 0.98
    config.train.log_every = 20
    config.mesh.data = -1
    config.mesh.fsdp = 1
    return apply_variant(config, variant)
