"""A path in a bucket works or is one clear line, whatever command's flag names it."""

import ast
from pathlib import Path

import pytest
from absl import flags
from etils import epath
from ml_collections import ConfigDict

from tests.commands import call
from tpo_jax.errors import InputError
from tpo_jax.io import paths

PACKAGE = Path(paths.__file__).parents[1]
# Flags of commands whose text is no path of this machine.
TEXTS = {
    *("allowed_hosts", "beam", "benchmark", "column", "distributed", "dtype", "host", "part"),
    *("profile_steps", "prompt", "seeds", "shares", "topology", "wandb_project"),
}


def defined(kind: str) -> dict[str, set[str]]:
    """Names of the flags that calls of `…kind…` define, by command."""
    found = {}
    for path in PACKAGE.glob("*.py"):
        for node in ast.walk(ast.parse(path.read_text())):
            if not isinstance(node, ast.Call):
                continue
            function = node.func.attr if isinstance(node.func, ast.Attribute) else ""
            function = function or (node.func.id if isinstance(node.func, ast.Name) else "")
            if function.startswith(kind) and isinstance(node.args[0], ast.Constant):
                found.setdefault(path.stem, set()).add(node.args[0].value)
    return found


def test_every_flag_that_is_text_is_known_to_be_no_path():
    strings = [defined(f"DEFINE_{kind}") for kind in ("string", "list", "multi_string")]
    texts = {name for found in strings for names in found.values() for name in names}
    assert texts <= TEXTS


def test_every_command_has_flags_for_paths():
    local = defined("define_path")
    assert {"output", "struck", "archive"} <= local["prepare"]
    commands = {p.stem for p in PACKAGE.glob("*.py")} - {"__init__", "errors"}
    assert commands == set(local), "a command without a path, or with one that is not checked"


@pytest.mark.parametrize("value", ["gs://bucket/a", "s3://bucket/a", "https://host/a"])
def test_flag_of_a_local_path_refuses_a_bucket(value):
    values = flags.FlagValues()
    flags.DEFINE(paths._PathParser(buckets=False), "output", None, "", flag_values=values)
    with pytest.raises(flags.IllegalFlagValueError, match=f"--output={value}: must be on this"):
        values(["command", f"--output={value}"])
    with pytest.raises(flags.IllegalFlagValueError, match="must name a file or folder"):
        values(["command", "--output="])
    values(["command", "--output=a/b"])
    assert values.output == Path("a/b")


def test_flags_of_places_and_lists():
    values = flags.FlagValues()
    flags.DEFINE(paths._PathParser(buckets=True), "videos", None, "", flag_values=values)
    flags.DEFINE(paths._PathsParser(), "image", [], "", flag_values=values)
    values(["command", "--videos=gs://bucket/videos", "--image=a.png,b.png"])
    assert values.videos == epath.Path("gs://bucket/videos") and values.image == ["a.png", "b.png"]
    with pytest.raises(flags.IllegalFlagValueError, match="gs://b/b.png must be on this machine"):
        values(["command", "--image=a.png,gs://b/b.png"])


def test_fields_of_a_config():
    config = ConfigDict({"data": {"shards": "shards"}, "openai": {"base_url": "https://host/v1"}})
    paths.check_config(config)
    config.data.shards = "gs://bucket/shards"
    with pytest.raises(InputError, match="--config.data.shards=gs://bucket/shards: must be on"):
        paths.check_config(config)


def test_command_makes_no_folder_of_that_name():
    given = {"pairs": "gs://bucket/pairs.jsonl", "videos": "videos", "output": "gs://bucket/shards"}
    (result,) = call("prepare", given)
    assert result.code == 2 and result.err.count("\n") == 1
    assert result.err.startswith("error: flag --output=gs://bucket/shards: must be on this machine")
    assert not list(PACKAGE.parent.glob("gs:*"))
