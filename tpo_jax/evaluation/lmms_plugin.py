"""The plug-in for lmms-eval: `lmms_eval --model tpo_jax --model_args pretrained=DIR …`.

lmms-eval finds `manifest` through the entry point in the group `lmms_eval.models`. Prompts, scoring
and files are those of lmms-eval; the answers come from here.
"""

import functools
from collections import defaultdict
from collections.abc import Callable
from typing import Any

from PIL import Image
from tqdm import tqdm

from tpo_jax.errors import InputError
from tpo_jax.evaluation import runner
from tpo_jax.evaluation.benchmarks import Question
from tpo_jax.generation.sampling import Sampling
from tpo_jax.inference.generator import Decoding
from tpo_jax.inference.model import load, load_processor

try:
    from lmms_eval.api.model import lmms
except ImportError:  # not installed: then the class is not used
    lmms = object

# The default of lmms-eval's wrapper of LongVA.
_MAX_NEW_TOKENS = 1024
# Arguments of `load` that are handed on.
_LOADED = ("tower", "adapters", "weights")


def manifest() -> Any:
    """Return what lmms-eval registers."""
    from lmms_eval.models.registry_v2 import ModelManifest

    return ModelManifest(model_id="tpo_jax", simple_class_path=f"{__name__}.TpoJax")


class TpoJax(lmms):
    """A checkpoint on all devices of this process; questions on one video are answered together.

    Args:
        pretrained: model directory, native or Hugging Face layout.
        max_frames_num: frames per video, evenly spaced.
        batch_size: videos at a time, rounded up to a multiple of the devices.
        dtype: compute dtype, "float32" or "bfloat16".
        time_instruction: none, inline or newline; None: what the checkpoint asks for.
        prompt_style: inference or dpo_trainer.
        allow_missing: give an empty answer instead of an error where a video cannot be used.
        **given: `tower`, `adapters` and `weights` as `tpo_jax.load` takes them; `device` and
            `max_batch_size`, which lmms-eval passes to every model, are ignored.

    Raises:
        InputError: what is wrong with the directory or a setting.
    """

    is_simple = True

    def __init__(
        self,
        pretrained: str,
        max_frames_num: int = 128,
        batch_size: int | str = 1,
        dtype: str = "bfloat16",
        time_instruction: str | None = None,
        prompt_style: str = "inference",
        allow_missing: bool = False,
        **given: Any,
    ) -> None:
        super().__init__()
        if unknown := sorted(given.keys() - {*_LOADED, "device", "max_batch_size"}):
            raise InputError(f"tpo_jax has no argument {unknown[0]!r}")
        loaded = {name: value for name, value in given.items() if name in _LOADED}
        processor = load_processor(
            pretrained,
            time_instruction=time_instruction,
            prompt_style=prompt_style,
            tower=loaded.get("tower"),
        )
        self._model = load(
            pretrained, dtype=dtype, mesh={"fsdp": -1}, processor=processor, **loaded
        )
        self._read = runner.make_reader(processor, max_frames_num)
        self._batch_rows, self._allow_missing = int(batch_size), allow_missing

    def generate_until(self, requests: list) -> list[str]:
        """Answer every request, in their order: on a video, on images, or on neither.

        A request's stop strings are ignored, as in lmms-eval's wrapper of LongVA.

        Raises:
            InputError: several videos, beam search, or a video that cannot be used.
        """
        questions, on_videos = defaultdict(list), {}
        for number, request in enumerate(requests):
            prompt, settings, to_visual, doc_id, task, split = request.args
            doc = self.task_dict[task][split][doc_id]
            if task not in on_videos:
                visuals = to_visual(doc)
                on_videos[task] = len(visuals) == 1 and isinstance(visuals[0], str)
            if on_videos[task]:
                (video,) = to_visual(doc)
                question = Question(number, doc, prompt, video)
            else:  # decoded batch by batch, not all at once
                pictures = functools.partial(_pictures, to_visual, doc)
                question = Question(number, doc, prompt, f"{task}, row {doc_id}", pictures)
            questions[_sampling(settings)].append(question)
        answers = [""] * len(requests)
        with tqdm(total=len(requests), unit="question", desc="tpo_jax") as progress:
            for (max_new_tokens, sampling), asked in questions.items():
                decoding = Decoding(
                    max_new_tokens,
                    sampling,
                    batch_rows=self._batch_rows,
                    question_multiple=runner.PROMPT_MULTIPLE,
                )
                generator = self._model.generator(decoding)
                groups = runner.make_groups(asked, self._model.processor)
                for rows, problems in runner.answer(groups, self._read, generator):
                    if problems and not self._allow_missing:
                        raise InputError(f"{problems[0]}; allow_missing=True leaves it unanswered")
                    for problem in problems:
                        tqdm.write(f"missing: {problem}")
                    for number, _, text in rows:
                        answers[number] = text
                    progress.update(len(rows) + len(problems))
        return answers

    def loglikelihood(self, requests: list) -> list:
        """Raise: tasks scored by likelihood are not supported."""
        raise InputError("tpo_jax answers tasks of the type generate_until only")

    def generate_until_multi_round(self, requests: list) -> list:
        """Raise: tasks of several rounds are not supported."""
        return self.loglikelihood(requests)


def _pictures(to_visual: Callable, doc: dict) -> list[Image.Image]:
    pictures = to_visual(doc)
    if not all(isinstance(picture, Image.Image) for picture in pictures):
        raise InputError("tpo_jax answers questions on one video or on images")
    return pictures


def _sampling(settings: dict) -> tuple[int, Sampling]:
    """Return the longest answer and its sampling, from a task's `generation_kwargs`."""
    if (settings.get("num_beams") or 1) != 1:
        raise InputError("num_beams: there is no beam search, only 1")
    temperature = float(settings.get("temperature") or 0)
    greedy = temperature == 0 or settings.get("do_sample") is False
    drawn = Sampling(temperature, 0, float(settings.get("top_p") or 1.0))
    max_new_tokens = int(settings.get("max_new_tokens") or _MAX_NEW_TOKENS)
    return max_new_tokens, Sampling() if greedy else drawn
