"""Run functions of the published lmms-eval in a process of its own: python oracle.py DIR[:DIR].

Each DIR holds one extracted version of the package; a task is taken from the first that has it.
Only the modules of the tasks are executed; packages they import but do not use here may be missing.
Each line of standard input is a JSON list `[task, kind, arguments]`, each line of standard output
its result.
"""

import functools
import importlib
import importlib.machinery
import io
import json
import os
import random
import sys
import types
from contextlib import redirect_stdout
from pathlib import Path
from unittest import mock

import yaml

MODULES = (
    *("videomme_v2", "videomme", "mlvu", "longvideobench", "lvbench", "tempcompass"),
    *("tvbench", "temporalbench"),
)
UNUSED = ("datasets", "decord", "loguru", "openai", "requests", "torch", "tqdm")


class _Absent:
    """Import hook: replaces packages that are imported but not used."""

    @staticmethod
    def find_spec(name, path=None, target=None):
        if name.partition(".")[0] not in UNUSED:
            return None
        return importlib.machinery.ModuleSpec(name, _Absent)

    @staticmethod
    def create_module(spec):
        module = mock.MagicMock(name=spec.name)
        module.__spec__ = spec
        return module

    @staticmethod
    def exec_module(module):
        pass


@functools.cache
def load(directories: tuple[Path, ...], task: str):
    """Return the `utils` module of a task and the folder of its package."""
    folder = next(name for name in MODULES if task.startswith(name))
    for root in directories:
        if not (root / "lmms_eval/tasks" / folder / "utils.py").is_file():
            continue
        for name in [name for name in sys.modules if name.partition(".")[0] == "lmms_eval"]:
            del sys.modules[name]
        for name in ("lmms_eval", "lmms_eval.tasks", "lmms_eval.tasks._task_utils"):
            package = types.ModuleType(name)
            package.__path__ = [str(root / name.replace(".", "/"))]
            sys.modules[name] = package
        paths = types.ModuleType("lmms_eval.utils")  # the real one imports far too much
        paths.resolve_cache_dir = lambda cache_dir, base_dir: os.path.join(base_dir, cache_dir)
        sys.modules["lmms_eval.utils"] = sys.modules["lmms_eval"].utils = paths
        try:
            return importlib.import_module(f"lmms_eval.tasks.{folder}.utils"), root
        except FileNotFoundError:  # 0.7.1 was published without the templates of some tasks
            continue
    raise LookupError(task)


def settings(root: Path, task: str, model: str) -> dict:
    """Return the `lmms_eval_specific_kwargs` of a task's YAML file for a model, or the default."""

    class Loader(yaml.SafeLoader):
        pass

    Loader.add_constructor("!function", lambda loader, node: loader.construct_scalar(node))

    def read(path: Path) -> dict:
        config = yaml.load(path.read_text(), Loader)
        if "include" in config:
            config = read(path.parent / config["include"]) | config
        return config

    for path in (root / "lmms_eval/tasks").glob("*/*.yaml"):
        if f"task: {task}\n" in (text := path.read_text() + "\n") or f'task: "{task}"\n' in text:
            known = read(path).get("lmms_eval_specific_kwargs") or {}
            return known.get(model, known.get("default"))
    raise LookupError(task)


def process(module, task: str, docs: list[dict], predictions: list[str]) -> dict:
    """Return the logged values of every prediction and the aggregate of every metric."""
    random.seed(0)
    if task.startswith("tempcompass"):
        module.get_eval_result = lambda *_, **__: (None, 0)  # no key for GPT
        judge = module.tempcompass_process_results_multi_choice
        aggregates = dict.fromkeys(
            ("avg", "speed", "direction", "action", "order", "attribute_change"),
            lambda items: module.tempcompass_aggregate_rating(items, None),
        )
        aggregates = {f"{name}_accuracy": f for name, f in aggregates.items()}
    elif task.startswith("videomme_v2"):
        judge = module.videomme_v2_process_results
        parts = ("overall", "relevance", "logic", "level_1", "level_2", "level_3")
        aggregates = {
            f"videomme_v2_{part}_{kind}": getattr(module, f"videomme_v2_aggregate_{part}_{kind}")
            for part in parts
            for kind in ("score", "acc")
        }
    elif task == "tvbench":
        judge = module.tvbench_process_results
        aggregates = {"tvbench_acc": lambda items: sum(items) / len(items)}
    elif task.startswith("temporalbench"):
        judge = module.temporalbench_process_results
        aggregates = {
            # It looks at the first character of an answer even where there is none.
            "temporalbench_score": lambda items: module.temporalbench_aggregate_results(
                [item | {"pred": item["pred"] or "-"} for item in items]
            )
        }
    elif task.startswith("videomme"):
        judge = module.videomme_process_results
        aggregates = {"videomme_perception_score": module.videomme_aggregate_results}
    elif task.startswith("mlvu"):
        judge = module.mlvu_process_results
        if hasattr(module, "mlvu_aggregate_results"):
            # The data of that time had other task names.
            module.TASK_TYPES = list({doc["task_type"] for doc in docs})
            aggregates = {"mlvu_perception_score": module.mlvu_aggregate_results}
        else:
            split = task.removeprefix("mlvu_")
            aggregates = {
                "mlvu_percetion_score": getattr(module, f"mlvu_aggregate_results_{split}")
            }
    elif task.startswith("lvbench"):
        judge = module.lvbench_process_results
        aggregates = {"lvbench_score": lambda items: sum(items) / len(items)}
    else:
        judge = module.longvideobench_process_results
        aggregates = {"lvb_acc": module.longvideobench_aggregate_results}
    # `ConfigurableTask.process_results` strips predictions.
    logged = [judge(doc, [p.strip()]) for doc, p in zip(docs, predictions, strict=True)]
    totals = {}
    for name, aggregate in aggregates.items():
        items = [values[name] for values in logged if name in values]
        if items:
            totals[name] = aggregate(items)
    return {"logged": logged, "totals": totals}


def prompt(module, root: Path, task: str, docs: list[dict], model: str = "") -> list[str]:
    """Return the prompt of every row, as a model of that name is asked."""
    family = next(name for name in MODULES if task.startswith(name))
    name = f"{family}_doc_to_text"
    if task.endswith("w_subtitle"):
        name += "_subtitle"
    if task.endswith("reasoning"):
        name += "_reasoning"
    if family == "tvbench":
        task = "tvbench_action_count"  # all ten tasks have the same settings
    if family == "tempcompass":
        name += "_multi_choice"
    if hasattr(module, "mlvu_aggregate_results"):
        task = "mlvu"  # one task in 0.3.0
    function, arguments = getattr(module, name), settings(root, task, model)
    # With None for none MLVU's function crashes from 0.3.3 to 0.5.
    return [function(doc, arguments or {}) for doc in docs]


def video(module, task: str, docs: list[dict]) -> list[str]:
    """Return the video file of every row."""
    family = next(name for name in MODULES if task.startswith(name))
    suffix = {"longvideobench": "_v", "mlvu": task.removeprefix("mlvu")}.get(family, "")
    name = f"{family}_doc_to_visual"
    function = getattr(module, name + suffix, None) or getattr(module, name)
    found = [function(doc) for doc in docs]
    return [videos if isinstance(videos, str) else videos[0] for videos in found]


def main() -> None:
    sys.meta_path.insert(0, _Absent)
    os.environ.setdefault("HF_HOME", os.getcwd())
    directories = tuple(Path(p) for p in sys.argv[1].split(os.pathsep))
    for line in sys.stdin:
        task, kind, arguments = json.loads(line)
        with redirect_stdout(io.StringIO()):
            module, root = load(directories, task)
            if kind == "process":
                result = process(module, task, **arguments)
            elif kind == "prompt":
                result = prompt(module, root, task, **arguments)
            else:
                result = video(module, task, **arguments)
        print(json.dumps(result), flush=True)


if __name__ == "__main__":
    main()
