"""The paper's tables and figures: which rows each is made of, what the paper printed, what it says;
and the pages on the method that it does not have.

Numbers are those of arXiv 2501.13919, in percent. LVB is LongVideoBench (validation), MLVU the mean
over its tasks, the others Video-MME short, medium, long and average, without and with subtitles
where a cell has two.
"""

import dataclasses
from collections.abc import Mapping

from tpo_jax.study.rows import (
    IMPROVED,
    JUDGE_ERRORS,
    NOISY,
    PARTLY,
    PREFERENCE_OR_NOT,
    ROUNDS,
    ROWS,
)

LONG_COLUMNS = ("LVB", "MLVU", "VMME short", "medium", "long", "average")
TABLE1 = {
    "base": ("LongVA-7B", "51.3", "58.8", "61.1/61.6", "50.4/53.6", "46.2/47.6", "52.6/54.3"),
    "sft_self": ("SFT_Self", "52.7", "58.9", "62.6/67.7", "52.4/52.7", "46.8/47.4", "53.9/55.9"),
    "sft_llm": ("SFT_LLM", "53.1", "59.9", "63.7/64.9", "52.6/54.3", "46.3/47.9", "54.2/55.7"),
    "hound_dpo": ("Hound-DPO", "52.8", "59.1", "62.2/65.8", "52.4/54.8", "46.1/46.3", "53.6/55.6"),
    "tpo": ("LongVA-TPO", "54.2", "61.7", "63.1/66.6", "54.8/55.3", "47.4/47.9", "55.1/56.6"),
}

TABLE2 = {
    "base": ("LLaVA-Video-7B", "58.2", "70.8", "", "", "", "63.3/69.7"),
    "tpo": (
        *("LLaVA-Video-TPO", "60.1", "71.1"),
        *("76.8/78.7", "64.6/69.4", "55.4/66.4", "65.6/71.5"),
    ),
}

# Other systems in Table 2 (version 1 of the paper), as printed; none is run here. In the row of
# InternVL the average lies below two of its three parts in the paper as well.
TABLE2_QUOTED = (
    ("GPT-4o", "66.7", "64.6", "80.0/82.8", "70.3/76.6", "65.3/72.1", "71.9/77.2"),
    ("Video-LLaVA 7B", "39.1", "47.3", "45.3/46.1", "38.0/40.7", "36.2/38.1", "39.9/41.6"),
    ("LLaVA-1.5 7B", "40.3", "", "", "", "", ""),
    ("PLLaVA 7B", "40.2", "", "", "", "", ""),
    ("Qwen-VL-Max", "", "42.2", "55.8/57.6", "49.2/48.9", "48.9/47.0", "51.3/51.2"),
    ("ShareGPT4Video 8B", "39.7", "46.4", "48.3/53.6", "36.3/39.3", "35.0/37.9", "39.9/43.6"),
    ("InternVL-Chat-V1.5 20B", "51.2", "50.4", "50.7/52.4", "60.2/61.7", "46.4/49.1", "45.6/46.6"),
    ("VideoChat2 7B", "39.3", "47.9", "48.3/52.8", "37.0/39.4", "33.2/39.2", "39.5/43.8"),
    ("LongLLaVA 7B", "", "56.3", "61.9/66.2", "51.4/54.7", "45.4/50.3", "52.9/57.1"),
    ("Video-CCAM 14B", "", "63.1", "62.2/66.0", "50.6/56.3", "46.7/49.9", "53.2/57.4"),
    ("NVILA 7B", "57.7", "70.1", "75.7/77.6", "62.2/69.0", "54.8/63.3", "64.2/70.0"),
    ("Qwen2-VL 7B", "55.6", "", "", "", "", "63.3/69.0"),
    ("Apollo 7B", "58.5", "70.9", "", "", "", "61.3/63.3"),
    ("LongVA-7B", "51.3", "58.8", "61.1/61.6", "50.4/53.6", "46.2/47.6", "52.6/54.3"),
    ("LongVA-TPO", "54.2", "61.7", "63.1/66.6", "54.8/55.3", "47.4/47.9", "55.1/56.6"),
)

# LVB, MLVU, Video-MME average without subtitles
SHORT_COLUMNS = ("LVB", "MLVU", "VMME average")
TABLE3 = {
    "base": ("LongVA-7B", "51.3", "58.8", "52.6"),
    "scale_20": ("2k pairs", "52.5", "57.8", "52.8"),
    "scale_50": ("5k pairs", "53.7", "59.5", "53.6"),
    "tpo": ("10k pairs", "54.2", "61.7", "55.1"),
}
TABLE4 = {
    "base": ("LongVA-7B", "51.3", "58.8", "52.6"),
    "localized_only": ("localized only", "53.5", "58.7", "54.0"),
    "comprehensive_only": ("comprehensive only", "53.4", "58.5", "53.8"),
    "tpo": ("both", "54.2", "61.7", "55.1"),
}
TABLE5 = {
    "localized_only": ("10:0", "53.5", "58.7", "54.0"),
    "mix_8_2": ("8:2", "53.8", "59.9", "54.0"),
    "tpo": ("5:5", "54.2", "61.7", "55.1"),
    "mix_2_8": ("2:8", "53.4", "59.1", "54.2"),
    "comprehensive_only": ("0:10", "53.4", "58.5", "53.8"),
}


@dataclasses.dataclass(frozen=True)
class Item:
    """A table or figure.

    Attributes:
        title: of its page.
        rows: what is compared, keys of `ROWS`, in the order of the page.
        family: whose model it is about, `longva` or `llava_video`.
        printed: by row, the label and the cells in the paper.
        columns: of the printed cells.
        quoted: systems that are not run here: name and cells, as printed.
        statements: pairs of rows of which the paper says that the first is above the second.
        besides: rows that the paper does not have, shown if they were run.
        by_type: whether the page compares base and TPO by type of question.
        names: labels of rows where the page has its own.
    """

    title: str
    rows: tuple[str, ...]
    family: str = "longva"
    printed: Mapping[str, tuple[str, ...]] = dataclasses.field(default_factory=dict)
    columns: tuple[str, ...] = ()
    quoted: tuple[tuple[str, ...], ...] = ()
    statements: tuple[tuple[str, str], ...] = ()
    besides: tuple[str, ...] = ()
    by_type: bool = False
    names: Mapping[str, str] = dataclasses.field(default_factory=dict)

    @property
    def miniature(self) -> str:
        """Return the preset of the family's small model."""
        return f"tiny_{self.family}"

    def label(self, row: str) -> str:
        """Return what the page calls a row of ours."""
        return self.names.get(row, ROWS[row].label)


ITEMS = {
    "table1": Item(
        "Table 1: TPO, its base and other ways to train it (LongVA)",
        ("base", "sft_self", "sft_llm", "hound_dpo", "tpo"),
        printed=TABLE1,
        columns=LONG_COLUMNS,
        statements=tuple(("tpo", v) for v in ("base", "sft_self", "sft_llm", "hound_dpo")),
        besides=("judge_off", "noisy_judge", "dpo", "rrpo", "leanpo", "frames_48", "stretched"),
        by_type=True,
    ),
    "table2": Item(
        "Table 2: TPO and its base (LLaVA-Video)",
        ("base", "tpo"),
        "llava_video",
        TABLE2,
        LONG_COLUMNS,
        TABLE2_QUOTED,
        (("tpo", "base"),),
        by_type=True,
    ),
    "table3": Item(
        "Table 3: how much data",
        ("base", "scale_20", "scale_50", "tpo"),
        printed=TABLE3,
        columns=SHORT_COLUMNS,
        statements=(("scale_20", "base"), ("scale_50", "scale_20"), ("tpo", "scale_50")),
        names={"tpo": "all pairs (TPO)"},
    ),
    "table4": Item(
        "Table 4: localized and comprehensive pairs",
        ("base", "localized_only", "comprehensive_only", "tpo"),
        printed=TABLE4,
        columns=SHORT_COLUMNS,
        statements=(("tpo", "localized_only"), ("tpo", "comprehensive_only")),
        besides=("judge_off",),
        names={"tpo": "both (TPO)"},
    ),
    "table5": Item(
        "Table 5: localized pairs to comprehensive ones",
        ("localized_only", "mix_8_2", "tpo", "mix_2_8", "comprehensive_only"),
        printed=TABLE5,
        columns=SHORT_COLUMNS,
        statements=tuple(
            ("tpo", v) for v in ("localized_only", "mix_8_2", "mix_2_8", "comprehensive_only")
        ),
        besides=("mix_5_5",),
        names={
            "localized_only": "10:0, localized only",
            "tpo": "TPO",
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


# What the preference adds, alone and beside the supervised term, and what that adds to it.
_OF_PREFERENCE = (("tpo", "sft_self"), ("dpo", "sft_self"), ("tpo", "dpo"))
_NAMES = {"dpo": "DPO alone"}


def _of_preference(*ends: str) -> tuple[tuple[str, str], ...]:
    """Return the comparisons of `_OF_PREFERENCE` for rows whose names end so."""
    return tuple((f"{one}{end}", f"{other}{end}") for end in ends for one, other in _OF_PREFERENCE)


# Not in the paper, and not run at 7B.
METHOD = {
    "method": Item(
        "The method, part by part",
        ("base", *PREFERENCE_OR_NOT, "sft_truth", *IMPROVED, *ROUNDS, "best"),
        statements=(
            *_OF_PREFERENCE,
            ("untimed", "thinned"),
            ("anchored", "one_a_row"),
            ("round_2", "updates_2"),
            ("round_3", "updates_3"),
            ("round_3", "round_2"),
            ("round_2", "round_2_first"),
            ("round_3", "round_3_first"),
        ),
        names=_NAMES,
    ),
    "judge": Item(
        "A judge that errs",
        ("base", *PREFERENCE_OR_NOT, *NOISY),
        statements=_of_preference("", *(f"_judge_{n}" for n in JUDGE_ERRORS)),
        names=_NAMES,
    ),
    "preference": Item(
        "Where a preference should add to supervised training",
        ("base", *PREFERENCE_OR_NOT, *PARTLY),
        statements=_of_preference("_partly", ""),
        names=_NAMES,
    ),
}


def needed(item: str, besides: bool) -> set[tuple[str, str]]:
    """Return (preset, row) of every run at miniature size that an item is made of."""
    shown = (ITEMS | METHOD)[item]
    names = (*shown.rows, *(shown.besides if besides else ()))
    return {(shown.miniature, name) for name in names if name == "base" or ROWS[name].miniature}
