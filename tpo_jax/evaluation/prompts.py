"""Turn the rows of benchmarks into lmms-eval's prompts and the names of their videos.

A prompt is a function of a row, the benchmark's folder and an era of the rules (`verdicts.ERAS`);
the names of a row's video are relative to the folder, and the first one found counts.
"""

from pathlib import Path
from string import ascii_uppercase

from tpo_jax.errors import InputError
from tpo_jax.evaluation import subtitles
from tpo_jax.evaluation.verdicts import PAPER, TODAY

INTERLEAVED_FRAMES = 16
TVBENCH_TASKS = (
    *("action_antonym", "action_count", "action_localization", "action_sequence"),
    *("egocentric_sequence", "moving_direction", "object_count", "object_shuffle"),
    *("scene_transition", "unexpected_action"),
)

_VIDEOMME = (
    "Select the best answer to the following multiple-choice question based on the video and the "
    "subtitles. Respond with only the letter (A, B, C, or D) of the correct option."
)
_VIDEOMME_V2 = (
    "Select the best answer to the following multiple-choice question based on the video. Respond "
    "with only the letter (A, B, C, D, E, F, G, or H) of the correct option."
)
_REASONING = (  # the quotation mark is never closed
    "Please perform a detailed reasoning based on the provided video frames to answer the "
    "following multiple-choice question selecting the best option from A through H and providing "
    "your final response strictly in the format: 'Final Answer: <letter>."
)
_LETTER = "Answer with the option letter only."
_DIRECTLY = "Answer with the option's letter from the given choices directly."


def videomme(doc: dict, folder: Path, era: str) -> str:
    """Return question and options between Video-MME's two instructions."""
    options = "\n".join(doc["options"])
    return f"{_VIDEOMME}\n{doc['question']}\n{options}\n\n{_DIRECTLY}"


def videomme_subtitled(doc: dict, folder: Path, era: str) -> str:
    """Return the subtitles of the frames that lmms-eval looks at, then question and options."""
    options = "\n".join(doc["options"])
    asked = f"{_VIDEOMME}\n{doc['question']}\n{options}\nThe best answer is:"
    return _videomme_subtitles(doc, folder) + asked


def _videomme_subtitles(doc: dict, folder: Path, num_frames: int = subtitles.FRAMES) -> str:
    path, lines = folder / "subtitle" / f"{doc['videoID']}.srt", ["No subtitles available"]
    if path.is_file():
        video = folder / "data" / f"{doc['videoID']}.mp4"
        lines = subtitles.shown_lines(path, video, num_frames)
    return "\n".join(("This video's subtitles are listed below: ", "\n".join(lines), ""))


def videomme_options(doc: dict, folder: Path, era: str) -> str:
    """Return Video-MME's question and options as Qwen3-VL is asked."""
    return f"Question: {doc['question']}\nOptions:\n" + "\n".join((*doc["options"], _LETTER))


def videomme_subtitled_options(doc: dict, folder: Path, era: str) -> str:
    """Return the subtitles of 768 frames, then `videomme_options`."""
    return _videomme_subtitles(doc, folder, 768) + videomme_options(doc, folder, era)


def mlvu_dev(doc: dict, folder: Path, era: str) -> str:
    """Return the question, which holds the options, and an opened bracket for the letter."""
    if era == PAPER:
        return f"\n{doc['question']}\nOnly give the best option.\n\nBest option: ("
    return f"{doc['question']}\nOnly give the best option.\nBest option: ("


def mlvu_test(doc: dict, folder: Path, era: str) -> str:
    """Return the question alone; in the paper's era the dev set's prompt."""
    return mlvu_dev(doc, folder, era) if era == PAPER else doc["question"]


def longvideobench(doc: dict, folder: Path, era: str) -> str:
    """Return question, options and the instruction."""
    texts = [doc[f"option{i}"] for i in range(5)]
    options = [text for text in texts if text != "N/A"]
    lines = [". ".join(pair) for pair in zip("ABCDE", options, strict=False)]
    return "\n".join((doc["question"], *lines, _DIRECTLY, ""))


def longvideobench_interleaved(doc: dict, folder: Path, era: str) -> str:
    """Return subtitles with the frames' places between them, then `longvideobench`."""
    if doc["duration"] < 1:
        raise InputError(f"a video of {doc['duration']} seconds has no frame per second")
    text = subtitles.interleave(
        folder / "subtitles" / doc["subtitle_path"],
        doc["duration"],
        doc["starting_timestamp_for_subtitles"],
        INTERLEAVED_FRAMES,
    )
    return f"{text}\n{longvideobench(doc, folder, era)}"


def lvbench(doc: dict, folder: Path, era: str) -> str:
    """Return question and instruction, today with the column of options where there is one."""
    options = doc.get("options") or [] if era == TODAY else []
    letters = (chr(ord("A") + i) for i in range(len(options)))
    lines = [f"({letter}) {text}" for letter, text in zip(letters, options, strict=True)]
    return "\n".join((doc["question"], *lines, "Answer the question with the option letter"))


def tempcompass(doc: dict, folder: Path, era: str) -> str:
    """Return the question, which holds the options, and the instruction."""
    return f"{doc['question']}\nPlease directly give the best option:"


def tvbench(doc: dict, folder: Path, era: str) -> str:
    """Return question, options and the instruction."""
    lines = [f"{x}. {text}" for x, text in zip(ascii_uppercase, doc["candidates"], strict=False)]
    question = [text] if (text := doc["question"].strip()) else []
    return "\n".join((*question, *lines, _LETTER))


def temporalbench(doc: dict, folder: Path, era: str) -> str:
    """Return the question, which holds the options and the instruction."""
    return doc["question"]


def videomme_v2(doc: dict, folder: Path, era: str) -> str:
    """Return question and options, then the instruction."""
    return f"Question: {doc['question']}\n{doc['options']}\n{_VIDEOMME_V2}"


def videomme_v2_subtitled(doc: dict, folder: Path, era: str) -> str:
    """Return all subtitles as one text where the video has any, then `videomme_v2`."""
    return _videomme_v2_subtitles(doc, folder) + videomme_v2(doc, folder, era)


def _videomme_v2_subtitles(doc: dict, folder: Path) -> str:
    path, text = folder / "subtitle" / f"{doc['video_id']}.jsonl", ""
    if path.is_file():
        text = subtitles.spoken(path)
    return f"This video's subtitles are listed below:\n{text}\n\n" if text else ""


def videomme_v2_options(doc: dict, folder: Path, era: str) -> str:
    """Return Video-MME-v2's question and options as Qwen3-VL is asked."""
    return f"Question: {doc['question']}\n{doc['options']}\n{_LETTER}"


def videomme_v2_subtitled_options(doc: dict, folder: Path, era: str) -> str:
    """Return all subtitles as one text where the video has any, then `videomme_v2_options`."""
    return _videomme_v2_subtitles(doc, folder) + videomme_v2_options(doc, folder, era)


def videomme_v2_reasoning(doc: dict, folder: Path, era: str) -> str:
    """Return question and options, then the request for detailed reasoning."""
    return f"Question: {doc['question']}\n{doc['options']}\n{_REASONING}"


def videomme_files(doc: dict) -> list[str]:
    """Return names of Video-MME's videos."""
    return [f"data/{doc['videoID']}.{suffix}" for suffix in ("mp4", "MP4", "mkv")]


def mlvu_files(doc: dict) -> list[str]:
    """Return names of MLVU's videos; some of the published rows lack the suffix."""
    return [doc["video_name"], f"{doc['video_name']}.mp4"]


def longvideobench_files(doc: dict) -> list[str]:
    """Return the name of LongVideoBench's video."""
    return [f"videos/{doc['video_path']}"]


def lvbench_files(doc: dict) -> list[str]:
    """Return the name of LVBench's video."""
    return [doc["video_path"]]


def tempcompass_files(doc: dict) -> list[str]:
    """Return the name of TempCompass' video."""
    return [f"videos/{doc['video_id']}.mp4"]


def tvbench_files(doc: dict) -> list[str]:
    """Return names of TVBench's video, in the order in which lmms-eval looks for it.

    If videos of two tasks have the same name, that of the first task counts for both.
    """
    name, places = doc["video"], ["", "video/", "videos/", "data/"]
    for task in TVBENCH_TASKS:
        places += [f"{task}/", f"video/{task}/", f"videos/{task}/"]
    return [place + name for place in places]


def temporalbench_files(doc: dict) -> list[str]:
    """Return the name of TemporalBench's video."""
    return [doc["video_name"]]


def videomme_v2_files(doc: dict) -> list[str]:
    """Return the name of Video-MME-v2's video."""
    return [f"{doc['video_id']}.mp4"]
