"""docs/curation.md lists every field and every view and marks the fields that may change."""

import ast
import re
from pathlib import Path

from tests.config_files import load
from tpo_jax.curation import config as settings
from tpo_jax.curation import roles, stages
from tpo_jax.curation.views import VIEWS

ROOT = Path(__file__).resolve().parents[2]
TEXT = (ROOT / "docs/curation.md").read_text(encoding="utf-8")
ROWS = re.findall(r"^\| `(\w+\.\w+)`( \*)? \| `(.*?)` \| (.+?) \|$", TEXT, re.MULTILINE)


def flat(config) -> dict:
    return {f"{a}.{b}": v for a, fields in config.to_dict().items() for b, v in fields.items()}


def test_the_table_lists_all_fields_and_defaults():
    assert {name: ast.literal_eval(value) for name, _, value, _ in ROWS} == flat(settings.base())
    assert len(ROWS) == len(flat(settings.base()))
    for name in ("curate_local", "curate_openai", "curate_world"):
        config = load(name).get_config()
        assert flat(config).keys() == flat(settings.base()).keys()
        config.local.checkpoint = config.openai.model = config.videos.folder = "x"
        if name != "curate_world":
            settings.check(settings.read(config))


def test_the_table_marks_fields_that_may_change(world_config):
    """Fields that no journal depends on may change; models count by identity, not by name."""
    config = settings.read(world_config)
    bound = set(roles.stage_owners(config, stages.make_stages(config, []))["judged"])
    named = {f"{role}.{field}" for role in settings.ROLES for field in ("backend", "model")}
    named |= {
        "local.checkpoint",
        "local.dtype",
        "local.weights",
        "openai.model",
        "openai.image_size",
    }
    named |= {"rules.world_seed", "rules.slips", "rules.judge_slips"}
    marked = {name for name, star, *_ in ROWS if star}
    assert marked == flat(world_config).keys() - bound - named


def test_every_view_has_a_row():
    rows = re.findall(r"^\| `(\w+)(?::r)?` \| .*$", TEXT, re.MULTILINE)
    assert list(VIEWS) == [name for name in rows if name in VIEWS]
