"""docs/curation.md lists every field and every view and marks what may change."""

import ast
import re
from pathlib import Path

from configs import curate_local, curate_openai, curate_world, curation
from tpo_jax.curation import backends, stages
from tpo_jax.curation.views import VIEWS

ROOT = Path(__file__).resolve().parents[2]
TEXT = (ROOT / "docs/curation.md").read_text(encoding="utf-8")
ROWS = re.findall(r"^\| `(\w+\.\w+)`( \*)? \| `(.*?)` \| (.+?) \|$", TEXT, re.MULTILINE)


def flat(config) -> dict:
    return {f"{a}.{b}": v for a, fields in config.to_dict().items() for b, v in fields.items()}


def test_the_table_has_the_fields_and_their_defaults():
    assert {name: ast.literal_eval(value) for name, _, value, _ in ROWS} == flat(curation.base())
    assert len(ROWS) == len(flat(curation.base()))
    for file in (curate_local, curate_openai, curate_world):
        config = file.get_config()
        assert flat(config).keys() == flat(curation.base()).keys()
        config.local.checkpoint = config.openai.model = config.videos.folder = "x"
        if file is not curate_world:
            stages.check(config)


def test_the_table_marks_what_may_change(world_config):
    """What no journal depends on is free; models count by what they are, not by their fields."""
    steps = stages.make_stages(world_config, [])
    makers = {role: backends.identity(world_config, role) for role in stages.ROLES}
    bound = set(backends.owners(world_config, steps, makers)["judged"])
    named = {f"{role}.{field}" for role in stages.ROLES for field in ("backend", "model")}
    named |= {"local.checkpoint", "local.dtype", "openai.model", "openai.image_size"}
    named |= {"rules.world_seed", "rules.slips", "rules.judge_slips"}
    marked = {name for name, star, *_ in ROWS if star}
    assert marked == flat(world_config).keys() - bound - named


def test_every_view_has_a_row():
    rows = re.findall(r"^\| `(\w+)(?::r)?` \| .*$", TEXT, re.MULTILINE)
    assert list(VIEWS) == [name for name in rows if name in VIEWS]
