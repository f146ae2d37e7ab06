"""Which back end plays which role, and what a stage's results depend on."""

import hashlib
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from ml_collections import ConfigDict

from tpo_jax.curation import templates
from tpo_jax.curation.ledger import Ledger
from tpo_jax.curation.local_speaker import LocalSpeaker, Model, load
from tpo_jax.curation.openai_speaker import OpenAISpeaker
from tpo_jax.curation.speakers import ROLES, Speaker
from tpo_jax.curation.stages import Stage
from tpo_jax.errors import InputError

BACKENDS = ("local", "openai", "rules")
# Where and how fast, never what: these may change while a run goes on.
FREE = ("videos.folder", "videos.limit", "videos.licence")


def model_of(config: ConfigDict, role: str) -> str:
    """The checkpoint or the endpoint's model that plays a role.

    Raises:
        InputError: an unknown back end, or none named.
    """
    settings = config[role]
    if settings.backend not in BACKENDS:
        raise InputError(
            f"{role}.backend={settings.backend!r} must be one of {', '.join(BACKENDS)}"
        )
    if settings.backend == "rules":
        return "rules"
    general = config.local.checkpoint if settings.backend == "local" else config.openai.model
    if not (name := settings.model or general):
        field = {"local": "local.checkpoint", "openai": "openai.model"}[settings.backend]
        raise InputError(f"{role} has no model: set {field} or {role}.model")
    return name


def identity(config: ConfigDict, role: str) -> str:
    """Who plays a role: equal texts, equal replies to equal requests, as far as can be known."""
    backend, name = config[role].backend, model_of(config, role)
    if backend == "rules":
        slips = config.rules.judge_slips if role == "judge" else config.rules.slips
        return f"rules ({config.rules.world_seed}, {slips})"
    if backend == "openai":
        return f"openai {name} ({config.openai.image_size} px)"
    return f"local {Path(name).name} {_folder_hash(Path(name))} {config.local.dtype}"


def _folder_hash(folder: Path) -> str:
    """Changes when the files of a model directory do, without reading the weights."""
    if not folder.is_dir():
        raise InputError(f"{folder}: no such model directory")
    digest = hashlib.sha256()
    for path in sorted(p for p in folder.rglob("*") if p.is_file()):
        digest.update(f"{path.relative_to(folder)} {path.stat().st_size}\n".encode())
        if path.suffix == ".json" and path.stat().st_size < 1 << 20:
            digest.update(path.read_bytes())
    return digest.hexdigest()[:12]


def owners(
    config: ConfigDict, stages: Sequence[Stage], makers: Mapping[str, str]
) -> dict[str, dict[str, Any]]:
    """Per stage the settings, by the names of their fields, that its results depend on: its own
    and those of all stages before.
    """
    found: dict[str, dict[str, Any]] = {}
    settings: dict[str, Any] = {}
    for stage in stages:
        for section in stage.sections:
            for name, value in config[section].items():
                field = f"{section}.{name}"
                if field in FREE:
                    continue
                if section in ROLES and name in ("prompt", "focus"):
                    value = templates.fingerprint(value)
                elif section in ROLES and name in ("backend", "model"):
                    continue
                settings[field] = list(value) if isinstance(value, tuple) else value
        if stage.role:
            settings[stage.role] = makers[stage.role]
        found[stage.name] = dict(settings)
    return found


class Maker:
    """Makes the back end of a role when it is first needed; weights are loaded once.

    Args:
        config: of the run.
        ledger: what paid requests are noted in; None in a process that makes none.
        rules: (role, section `rules`) to a back end, for the embedded world.
    """

    def __init__(
        self, config: ConfigDict, ledger: Ledger | None, rules: Callable[[str, ConfigDict], Speaker]
    ):
        self.config, self.ledger, self.rules = config, ledger, rules
        self._models: dict[str, Model] = {}

    def speaker(self, role: str) -> Speaker:
        """The back end of a role."""
        config = self.config
        name = model_of(config, role)
        match config[role].backend:
            case "rules":
                return self.rules(role, config.rules)
            case "openai":
                assert self.ledger is not None
                return OpenAISpeaker(config.openai, config[role], name, self.ledger)
        if name not in self._models:
            self._models.clear()  # one model at a time fits
            self._models[name] = load(name, config.local.dtype)
        return LocalSpeaker(self._models[name], config[role], config.local.batch_rows)
