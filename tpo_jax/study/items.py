"""Which runs the paper's tables and figures are made of, and how their pages word numbers."""

import csv
import dataclasses
import io
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np

from tpo_jax.study import published
from tpo_jax.study.results import Chosen, Results
from tpo_jax.study.rows import ROWS
from tpo_jax.study.statistics import Difference, Mean, t_interval

Table = list[list[str]]


@dataclasses.dataclass(frozen=True)
class Item:
    """A table or figure.

    `variants` are what is compared, in the order of the page; `statements` what the paper says of
    two of them, the first above the second.
    """

    title: str
    variants: tuple[str, ...]
    family: str = "tiny_longva"
    printed: Mapping[str, tuple[str, ...]] = dataclasses.field(default_factory=dict)
    columns: tuple[str, ...] = ()
    quoted: tuple[tuple[str, ...], ...] = ()  # systems that are not run here, as printed
    statements: tuple[tuple[str, str], ...] = ()
    besides: tuple[str, ...] = ()  # not in the paper; shown if there
    by_type: bool = False  # whether the page compares base and TPO by type of question
    names: Mapping[str, str] = dataclasses.field(default_factory=dict)  # where the page has its own


ITEMS = {
    "table1": Item(
        "Table 1: TPO, its base and other ways to train it (LongVA)",
        ("base", "sft_self", "sft_llm", "hound_dpo", "tpo"),
        printed=published.TABLE1,
        columns=published.TABLE1_COLUMNS,
        statements=tuple(("tpo", v) for v in ("base", "sft_self", "sft_llm", "hound_dpo")),
        besides=("judge_off", "noisy_judge", "dpo", "rrpo", "leanpo", "frames_48", "stretched"),
        by_type=True,
    ),
    "table2": Item(
        "Table 2: TPO and its base (LLaVA-Video)",
        ("base", "tpo"),
        "tiny_llava_video",
        published.TABLE2,
        published.TABLE2_COLUMNS,
        published.TABLE2_QUOTED,
        (("tpo", "base"),),
        by_type=True,
    ),
    "table3": Item(
        "Table 3: how much data",
        ("base", "scale_20", "scale_50", "tpo"),
        printed=published.TABLE3,
        columns=published.SHORT_COLUMNS,
        statements=(("scale_20", "base"), ("scale_50", "scale_20"), ("tpo", "scale_50")),
        names={"tpo": "all pairs (TPO)"},
    ),
    "table4": Item(
        "Table 4: localized and comprehensive pairs",
        ("base", "localized_only", "comprehensive_only", "tpo"),
        printed=published.TABLE4,
        columns=published.SHORT_COLUMNS,
        statements=(("tpo", "localized_only"), ("tpo", "comprehensive_only")),
        besides=("judge_off",),
        names={"tpo": "both (TPO)"},
    ),
    "table5": Item(
        "Table 5: localized pairs to comprehensive ones",
        ("localized_only", "mix_8_2", "tpo", "mix_2_8", "comprehensive_only"),
        printed=published.TABLE5,
        columns=published.SHORT_COLUMNS,
        statements=tuple(
            ("tpo", v) for v in ("localized_only", "mix_8_2", "mix_2_8", "comprehensive_only")
        ),
        names={
            "localized_only": "10:0, localized only",
            "tpo": "5:5, TPO",
            "comprehensive_only": "0:10, comprehensive only",
        },
    ),
    "figure2": Item(
        "Figure 2: accuracy by number of frames",
        ("base", "tpo"),
        besides=("frames_48", "base_stretched", "stretched"),
    ),
    "figure3": Item("Figure 3: needles in a haystack", ("base", "tpo")),
    "figure5": Item("Figure 5: lengths of the videos", ("tpo",)),
    "figure6": Item("Figure 6: types of questions", ("tpo",)),
}


def needed(item: str, besides: bool) -> set[tuple[str, str]]:
    """(family, variant) of every run that an item is made of."""
    shown = ITEMS[item]
    names = (*shown.variants, *(shown.besides if besides else ()))
    return {(shown.family, name) for name in names if name == "base" or ROWS[name].miniature}


def label(item: Item, variant: str) -> str:
    """What a page calls a variant of ours."""
    return item.names.get(variant, ROWS[variant].label)


def markdown(rows: Table) -> str:
    """A table; its first row is the head."""
    head, *body = ("| " + " | ".join(row) + " |" for row in rows)
    return "\n".join([head, "|" + "---|" * len(rows[0]), *body])


def shown(mean: Mean) -> str:
    """A mean and the half width of its interval, in percent."""
    if np.isnan(mean.mean):
        return ""
    if np.isnan(mean.low):
        return f"{100 * mean.mean:.1f}"
    return f"{100 * mean.mean:.1f} ± {100 * (mean.high - mean.mean):.1f}"


def verdict(found: Difference) -> str:
    """What an interval of a difference that should be above 0 says."""
    if np.isnan(found.low):
        return "one seed: no interval"
    if found.low > 0:
        return "holds"
    return "the opposite holds" if found.high < 0 else "not shown"


def compared(found: Difference, over_videos: tuple[float, float] | None = None) -> list[str]:
    """The cells of `HEAD`, in percent; behind them the interval over videos where it is given."""
    cells = [f"{100 * found.mean:+.1f}"]
    if np.isnan(found.low):
        cells += ["", ""]
    else:
        cells.append(f"[{100 * found.low:+.1f}, {100 * found.high:+.1f}]")
        cells.append("" if np.isnan(found.p) else f"{found.p:.3f}")
    cells.append(f"{found.above} of {found.n}")
    if over_videos:
        cells.append(f"[{100 * over_videos[0]:+.1f}, {100 * over_videos[1]:+.1f}]")
    return cells


HEAD = ["difference", "95 % over seeds", "p", "seeds above 0"]


def write_csv(
    path: Path, results: Results, variants: Sequence[str], columns: Mapping[str, Chosen]
) -> None:
    """One line per variant and column: mean with interval, and the value of every seed."""
    out = io.StringIO()
    writer = csv.writer(out, lineterminator="\n")
    writer.writerow(["model", "column", "seeds", "mean", "low", "high", "per seed"])
    for variant in variants:
        seeds = results.there(variant)
        for name, chosen in columns.items():
            values = results.accuracies(variant, seeds, chosen)
            mean = t_interval(values)
            each = " ".join(f"{seed}:{v:.4f}" for seed, v in zip(seeds, values, strict=True))
            writer.writerow([variant, name, mean.n, *(f"{v:.4f}" for v in mean[1:]), each])
    path.write_text(out.getvalue())
