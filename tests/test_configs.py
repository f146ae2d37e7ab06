"""Every field of an experiment has one default, is explained in the docs, and is read."""

import ast
import dataclasses
import re
import shlex
import sys
from pathlib import Path

import jax
import ml_collections
import numpy as np
import pytest
from absl import flags
from ml_collections import config_flags

from tests.config_files import load
from tests.tiny_run import tiny_config
from tpo_jax import train as command
from tpo_jax.objectives.losses import LOSSES
from tpo_jax.objectives.preference import Objective
from tpo_jax.study.rows import variants
from tpo_jax.training.experiment import SECTIONS, base, read
from tpo_jax.training.identity import FREE

ROOT = Path(__file__).resolve().parents[1]
TEXT = (ROOT / "docs/configs.md").read_text(encoding="utf-8")
ROWS = re.findall(r"^\| `(\w+\.\w+)`( \*)? \| `(.*?)` \| (.+?) \|$", TEXT, re.MULTILINE)


def flat(config: ml_collections.ConfigDict) -> dict:
    return {
        f"{a}.{b}": value for a, fields in config.to_dict().items() for b, value in fields.items()
    }


def test_the_table_has_the_fields_and_their_defaults():
    assert {name: ast.literal_eval(value) for name, _, value, _ in ROWS} == flat(base())
    assert len(ROWS) == len(flat(base()))


def test_the_table_marks_what_may_change_on_resume():
    marked = {name for name, star, _, _ in ROWS if star}
    assert marked == {n for n in flat(base()) if n in FREE or n.split(".")[0] in FREE}


@pytest.mark.parametrize(
    "name", ["tiny", "longva_tpo", "llava_video_tpo", "qwen3_vl_tpo", "qwen2_5_vl_tpo"]
)
def test_variants_change_what_their_name_says(name):
    file = load(name)
    plain = flat(file.get_config())
    changed = {
        variant: {k: v for k, v in flat(file.get_config(variant)).items() if v != plain[k]}
        for variant in variants()
    }
    assert plain.keys() == flat(base()).keys()
    assert changed["tpo"] == {}
    assert changed["localized_only"] == {"data.mixing": (1.0, 0.0)}
    assert changed["comprehensive_only"] == {"data.mixing": (0.0, 1.0)}
    # The other ratios of Table 5 and scales of Table 3.
    assert changed["mix_8_2"] == {"data.mixing": (0.8, 0.2)}
    assert changed["mix_2_8"] == {"data.mixing": (0.2, 0.8)}
    for variant, pairs in (("scale_2k", 2_000), ("scale_5k", 5_000)):
        assert changed[variant] == {"data.limit": pairs, "data.subset_seed": 1}
    assert changed["dpo"] == {"objective.alpha": 0.0}
    assert changed["sft_self"]["objective.dpo_weight"] == 0.0
    for variant in ("rrpo", "leanpo"):
        assert changed[variant]["objective.loss"] == variant
        assert all(name.startswith("objective.") for name in changed[variant])
        assert flat(file.get_config(variant))["objective.alpha"] == 0.0
    assert changed["rrpo"]["objective.token_kl"] == 0.01
    assert (
        changed["hound_dpo"].items()
        >= {
            "objective.alpha": 0.0,
            "train.learning_rate": 5e-7,
            "train.freeze": (),
        }.items()
    )
    for variant in variants():
        read(file.get_config(variant))
    with pytest.raises(ValueError, match="unknown variant 'other'; there are tpo, "):
        file.get_config("other")


COMMANDS = re.findall(
    r"^python -m tpo_jax\.train ((?:.+\\\n)*.+)$",
    (ROOT / "docs/objectives.md").read_text(encoding="utf-8"),
    re.MULTILINE,
)


@pytest.mark.parametrize("command", COMMANDS)
def test_commands_of_the_objectives_parse(command, monkeypatch):
    monkeypatch.chdir(ROOT)
    values = flags.FlagValues()
    config = config_flags.DEFINE_config_file("config", lock_config=True, flag_values=values)
    flags.DEFINE_string("workdir", None, "", flag_values=values)
    arguments = shlex.split(command.replace("\\\n", ""))
    monkeypatch.setattr(sys, "argv", ["train", *arguments])  # where it looks for the overrides
    assert values(sys.argv) == ["train"]
    objective = read(config.value).objective
    for name, value in re.findall(r"objective\.(\w+)=(\S+)", " ".join(arguments)):
        found = getattr(objective, name)
        assert found == type(found)(value if name == "loss" else ast.literal_eval(value))


def test_every_loss_has_a_row_and_a_command():
    text = (ROOT / "docs/objectives.md").read_text(encoding="utf-8")
    assert re.findall(r"^\| `(\w+)` \| .* \|.*arxiv\.org.*\|$", text, re.MULTILINE) == [*LOSSES]
    commands = " ".join(COMMANDS)
    assert all(name in commands for name in LOSSES)


def test_papers_settings():
    longva, llava = (read(load(name).get_config()) for name in ("longva_tpo", "llava_video_tpo"))
    assert longva.objective == Objective(0.3, 0.5)
    assert llava.objective == Objective(0.2, 1.0)
    assert (longva.optimizer.learning_rate, llava.optimizer.learning_rate) == (4e-6, 3e-7)
    for found in (longva, llava):
        assert (found.schedule.batch_size, found.schedule.num_epochs) == (64, 1)
        assert (found.optimizer.warmup_ratio, found.optimizer.freeze) == (0.1, ("tower",))


def reads(monkeypatch, kind: type) -> set[str]:
    """Return the fields of a dataclass that some code reads; checks and copies do not count."""
    names, seen = {field.name for field in dataclasses.fields(kind)}, set()
    ignored = {"__post_init__", "replace", "_replace", "__eq__", "__hash__", "__repr__"}

    def spy(self, name):
        if name in names and sys._getframe(1).f_code.co_name not in ignored:
            seen.add(name)
        return object.__getattribute__(self, name)

    monkeypatch.setattr(kind, "__getattribute__", spy)
    return seen


def test_every_field_is_read(tiny_world, compiled, tmp_path, monkeypatch):
    config = tiny_config(tiny_world)
    config.lora.rank = 2  # the other fields of the section have no effect without
    config.lora.alpha, config.train.learning_rate = 3.0, 3e-3  # of no run before: traced anew

    def trace(length, step, state, batches, feed, *_):
        jax.eval_shape(step, state, feed.put(next(batches)))
        return state

    seen = {
        section: {kind: reads(monkeypatch, kind) for kind in kinds}
        for section, kinds in SECTIONS.items()
    }
    # The step is traced, nothing is compiled or computed.
    monkeypatch.setattr(command, "compile_meanwhile", lambda step, *_: step)
    monkeypatch.setattr(command.loop, "run", trace)
    zeros = lambda self, pairs, *_: np.zeros((len(pairs.shards), 2), np.float32)  # noqa: E731
    monkeypatch.setattr(command.Reference, "logps", zeros)
    command.train(config, tmp_path)

    used = {
        f"{section}.{name}"
        for section, kinds in seen.items()
        for names in kinds.values()
        for name in names
    }
    unread = flat(config).keys() - used
    assert not unread


def imported(path: Path) -> set[str]:
    """Return the top-level names that a file imports."""
    nodes = list(ast.walk(ast.parse(path.read_text())))
    names = [alias.name for n in nodes if isinstance(n, ast.Import) for alias in n.names]
    names += [n.module or "" for n in nodes if isinstance(n, ast.ImportFrom)]
    return {name.split(".")[0] for name in names}


def test_config_files_are_no_part_of_the_package():
    """The package is complete without them, and each loads with the package alone."""
    for path in (ROOT / "tpo_jax").rglob("*.py"):
        assert "configs" not in imported(path), path
    for path in (ROOT / "configs").glob("*.py"):
        assert imported(path) <= {"tpo_jax", "ml_collections"}, path
        assert load(path.stem).get_config()
