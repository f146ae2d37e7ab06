"""Which model fills which role, and what the results of a stage depend on."""

import dataclasses
import hashlib
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from tpo_jax.curation import templates
from tpo_jax.curation.clients import ModelClient
from tpo_jax.curation.config import BACKENDS, ROLES, Config
from tpo_jax.curation.ledger import Ledger, Spent
from tpo_jax.curation.local_client import LocalClient
from tpo_jax.curation.stages import Stage
from tpo_jax.curation.world_client import WorldClient
from tpo_jax.errors import InputError
from tpo_jax.inference.model import Model, load

# Fields of stages that may change on resume: they say where files are, not what is made of them.
FREE = ("videos.folder", "videos.limit", "videos.licence")


def model_of(config: Config, role: str) -> str:
    """Return the model directory, or the endpoint's name of the model, that fills a role.

    Raises:
        InputError: The back end is unknown, or no model is set.
    """
    settings = config.role(role)
    if settings.backend not in BACKENDS:
        raise InputError(
            f"{role}.backend={settings.backend!r} must be one of {', '.join(BACKENDS)}"
        )
    if settings.backend == "rules":
        return "rules"
    if settings.backend == "local":
        field, general = "local.checkpoint", config.local.checkpoint
    else:
        field, general = "openai.model", config.openai.model
    if not (name := settings.model or general):
        raise InputError(f"{role} has no model: set {field} or {role}.model")
    return name


def identity(config: Config, role: str) -> str:
    """Return a text that is equal for models that reply equally, as far as can be known."""
    backend, name = config.role(role).backend, model_of(config, role)
    if backend == "rules":
        slips = config.rules.judge_slips if role == "judge" else config.rules.slips
        return f"rules ({config.rules.world_seed}, {slips})"
    if backend == "openai":
        return f"openai {name} ({config.openai.image_size} px)"
    numbers = " ".join(filter(None, (config.local.dtype, config.local.weights)))
    return f"local {Path(name).name} {_folder_hash(Path(name))} {numbers}"


def _folder_hash(folder: Path) -> str:
    """Return a hash of a model directory's file names, file sizes and small JSON files."""
    if not folder.is_dir():
        raise InputError(f"{folder}: no such model directory")
    digest = hashlib.sha256()
    for path in sorted(p for p in folder.rglob("*") if p.is_file()):
        digest.update(f"{path.relative_to(folder)} {path.stat().st_size}\n".encode())
        if path.suffix == ".json" and path.stat().st_size < 1 << 20:
            digest.update(path.read_bytes())
    return digest.hexdigest()[:12]


def stage_owners(config: Config, stages: Sequence[Stage]) -> dict[str, dict[str, Any]]:
    """Return, per stage, the settings its results depend on: its own and those of earlier stages.

    Prompts count by name and hash of their text, models by `identity`.
    """
    found: dict[str, dict[str, Any]] = {}
    settings: dict[str, Any] = {}
    for stage in stages:
        for section in stage.sections:
            for name, value in dataclasses.asdict(getattr(config, section)).items():
                field = f"{section}.{name}"
                if field in FREE or (section in ROLES and name in ("backend", "model")):
                    continue
                if section in ROLES and name in ("prompt", "focus"):
                    value = templates.fingerprint(value)
                settings[field] = list(value) if isinstance(value, tuple) else value
        if stage.role:
            settings[stage.role] = identity(config, stage.role)
        found[stage.name] = dict(settings)
    return found


class Clients:
    """The model clients of a run; each is made when it is first needed.

    Args:
        ledger: Records paid requests; None in a process that makes none.
    """

    def __init__(self, config: Config, ledger: Ledger | None):
        self.config, self._ledger = config, ledger
        self._models: dict[str, Model] = {}

    def client(self, role: str) -> ModelClient:
        """Return the client of a role."""
        config, settings = self.config, self.config.role(role)
        name = model_of(config, role)
        if settings.backend == "rules":
            return WorldClient(role, config.rules)
        if settings.backend == "openai":
            assert self._ledger is not None
            try:
                from tpo_jax.curation.openai_client import OpenAIClient
            except ModuleNotFoundError as error:
                raise InputError(
                    "backend 'openai' needs pip install 'tpo_jax[curation]'"
                ) from error
            return OpenAIClient(config.openai, settings, name, self._ledger)
        if name not in self._models:
            self._models.clear()  # the devices hold one model at a time
            self._models[name] = load(
                name,
                dtype=config.local.dtype,
                mesh={"fsdp": -1},
                weights=config.local.weights,
            )
        return LocalClient(self._models[name], settings, config.local.batch_rows)

    def joint(self, role: str) -> bool:
        """Return whether all processes run the role's model together."""
        return self.config.role(role).backend == "local"

    def spent(self) -> Spent:
        """Return what this part has spent so far; nothing in a process without a ledger."""
        return self._ledger.own if self._ledger else Spent()
