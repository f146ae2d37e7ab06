"""The configuration of a curation run: one dataclass per section, every default in its place.

Config files (`configs/curate_*.py`) start from `base()` and say where they differ. The table in
`docs/curation.md` explains every field.
"""

import dataclasses
from collections.abc import Mapping
from typing import Any

from ml_collections import ConfigDict

from tpo_jax.curation import templates
from tpo_jax.curation.views import SPANS, parse
from tpo_jax.data.exports import FORMATS
from tpo_jax.errors import InputError

ROLES = ("captioner", "questioner", "answerer", "judge")
BACKENDS = ("local", "openai", "rules")
JUDGES = ("verdict", "question")  # what a judge may be asked for


@dataclasses.dataclass(frozen=True)
class Videos:
    """Where the videos are and which of them are used."""

    folder: str = ""
    min_seconds: float = 1.0
    limit: int = 0
    licence: str = ""


@dataclasses.dataclass(frozen=True)
class Segments:
    """How segments are drawn from a video; `seed` seeds every draw of the run."""

    seed: int = 0
    localized: int = 2
    comprehensive: int = 1
    min_seconds: float = 4.0
    max_seconds: float = 20.0
    max_share: float = 0.5


@dataclasses.dataclass(frozen=True)
class Questions:
    """How many questions are asked about a segment, and the shares of their types in percent."""

    per_segment: int = 2
    types: tuple[float, ...] = tuple(templates.TYPES.values())


@dataclasses.dataclass(frozen=True)
class Answers:
    """Which views (`views.VIEWS`) the chosen and the rejected answers are given on."""

    localized_chosen: str = "segment"
    localized_rejected: tuple[str, ...] = ("rest",)
    comprehensive_chosen: str = "full"
    comprehensive_rejected: tuple[str, ...] = ("sparse:8",)


@dataclasses.dataclass(frozen=True)
class Role:
    """What every role has: which model fills it, what the model sees and how long it replies."""

    num_frames: int = 8
    max_new_tokens: int = 256
    backend: str = "local"
    model: str = ""
    temperature: float = 0.0


@dataclasses.dataclass(frozen=True)
class Captioner(Role):
    """The role that describes a segment."""

    prompt: str = "caption_v1"


@dataclasses.dataclass(frozen=True)
class Questioner(Role):
    """The role that writes a question and its reference answer."""

    prompt: str = "question_v1"
    focus: str = "focus_v1"


@dataclasses.dataclass(frozen=True)
class Answerer(Role):
    """The role that answers every question twice."""

    num_frames: int = 32


@dataclasses.dataclass(frozen=True)
class Judge(Role):
    """The role that keeps or drops a pair."""

    max_new_tokens: int = 32
    prompt: str = "judge_v1"
    asks: str = "verdict"
    enabled: bool = True


@dataclasses.dataclass(frozen=True)
class Balance:
    """Which judged pairs the final list takes."""

    pairs: int = 0
    localized: float = 0.5
    per_video: int = 0
    max_length_ratio: float = 0.0
    types: bool = False


@dataclasses.dataclass(frozen=True)
class Shards:
    """How the final pairs are written as shards."""

    num_frames: int = 32
    frames: str = "clip"
    workers: int = 2
    export: tuple[str, ...] = ()


@dataclasses.dataclass(frozen=True)
class Local:
    """The model directory of roles with `backend='local'`."""

    checkpoint: str = ""
    dtype: str = "bfloat16"
    weights: str = ""
    batch_rows: int = 4


@dataclasses.dataclass(frozen=True)
class OpenAI:
    """The endpoint of roles with `backend='openai'`; prices are per million tokens."""

    url: str = ""
    model: str = ""
    key_variable: str = "OPENAI_API_KEY"
    image_size: int = 512
    concurrency: int = 8
    timeout: float = 120.0
    retries: int = 6
    backoff: float = 1.0
    patience: int = 20
    price_in: float = 0.0
    price_out: float = 0.0


@dataclasses.dataclass(frozen=True)
class Rules:
    """The scripted replies of roles with `backend='rules'`, and their error rates."""

    world_seed: int = 0
    slips: float = 0.1
    judge_slips: float = 0.0


@dataclasses.dataclass(frozen=True)
class Config:
    """A whole curation run."""

    videos: Videos = Videos()
    segments: Segments = Segments()
    questions: Questions = Questions()
    answers: Answers = Answers()
    captioner: Captioner = Captioner()
    questioner: Questioner = Questioner()
    answerer: Answerer = Answerer()
    judge: Judge = Judge()
    balance: Balance = Balance()
    shards: Shards = Shards()
    local: Local = Local()
    openai: OpenAI = OpenAI()
    rules: Rules = Rules()

    def role(self, name: str) -> Role:
        """Return the section of one of `ROLES`."""
        section: Role = getattr(self, name)
        return section


def base() -> ConfigDict:
    """Return all fields with their defaults, for config files and command-line overrides."""
    return ConfigDict(dataclasses.asdict(Config()))


def read(config: Mapping[str, Mapping[str, Any]]) -> Config:
    """Return the typed form of a config file's `ConfigDict`.

    Raises:
        InputError: A section or field is unknown.
    """
    sections = {}
    for field in dataclasses.fields(Config):
        given = dict(config.get(field.name, {}))
        lists = {name: tuple(v) for name, v in given.items() if isinstance(v, list)}
        try:
            sections[field.name] = type(field.default)(**given | lists)  # type: ignore[misc]
        except TypeError as error:
            raise InputError(f"--config: section {field.name}: {error}") from error
    if unknown := set(config) - set(sections):
        raise InputError(f"--config has unknown sections: {', '.join(sorted(unknown))}")
    return Config(**sections)


def check(config: Config) -> None:
    """Raise `InputError`, naming the field, for a value that no stage could work with."""
    if not config.videos.folder:
        raise InputError("videos.folder is empty: set it to the folder that holds the videos")
    _check_questions(config.questions)
    _check_views(config.answers)
    spans = config.segments
    if not 0 < spans.min_seconds <= spans.max_seconds or not 0 < spans.max_share < 1:
        raise InputError(
            "segments need 0 < min_seconds <= max_seconds and a max_share between 0 and 1"
        )
    if not 0 <= config.balance.localized <= 1:
        raise InputError(f"balance.localized={config.balance.localized} must lie in [0, 1]")
    if unknown := set(config.shards.export) - set(FORMATS):
        known = ", ".join(FORMATS)
        raise InputError(f"shards.export has {min(unknown)!r}; it must be some of {known}")
    if config.judge.asks not in JUDGES:
        raise InputError(f"judge.asks={config.judge.asks!r} must be one of {', '.join(JUDGES)}")
    if config.judge.asks == "question" and config.judge.backend == "rules":
        raise InputError("judge.asks='question' needs a model; rules only reply with a verdict")
    for name in ROLES:
        role = config.role(name)
        if role.num_frames < (0 if name in ("questioner", "judge") else 1):
            raise InputError(f"{name}.num_frames={role.num_frames}: must be 1 or more")
        for field in ("prompt", "focus"):
            if hasattr(role, field):
                templates.load(getattr(role, field))


def _check_questions(questions: Questions) -> None:
    shares = questions.types
    if len(shares) != len(templates.TYPES) or min(shares) < 0 or not sum(shares):
        raise InputError(f"questions.types must be {len(templates.TYPES)} shares, not {shares}")
    if not 1 <= questions.per_segment <= sum(share > 0 for share in shares):
        raise InputError(
            "questions.per_segment must lie between 1 and the number of types with a share above 0"
        )


def _check_views(answers: Answers) -> None:
    for name, value in dataclasses.asdict(answers).items():
        for view in (value,) if isinstance(value, str) else value:
            try:
                bare, _ = parse(view)
            except ValueError as error:
                raise InputError(f"answers.{name}: {error}") from error
            if name.startswith("comprehensive") and bare in SPANS:
                raise InputError(f"answers.{name}: view {view!r} is for localized pairs")
    if not (answers.localized_rejected and answers.comprehensive_rejected):
        raise InputError("answers.*_rejected must name at least one view")
