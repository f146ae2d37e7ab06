"""A model ready for use: one object that answers questions and scores pairs."""

import contextlib
import dataclasses
import functools
import math
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, TypeVar

import jax
import jax.numpy as jnp
from PIL import Image
from tokenizers import Tokenizer

from tpo_jax.checkpoints import hub
from tpo_jax.checkpoints.models import load_config, load_model
from tpo_jax.data.clips import Clip
from tpo_jax.data.padding import PaddingCheck
from tpo_jax.data.pairs import Pair, pair_of
from tpo_jax.data.processor import Processor, Visual
from tpo_jax.data.tokenizer import load_tokenizer
from tpo_jax.errors import InputError
from tpo_jax.generation.sampling import Sampling
from tpo_jax.inference.checks import (
    check_images,
    check_mesh,
    check_pairs,
    check_path,
    check_whole,
    texts_of,
)
from tpo_jax.inference.generator import Decoding, Generator
from tpo_jax.inference.scoring import FrameSource, Score, score
from tpo_jax.io.paths import check_folder, local_path
from tpo_jax.models.config import ModelConfig
from tpo_jax.models.pictures import Pictures
from tpo_jax.models.quantized import check_weights
from tpo_jax.parallel.mesh import AXES, make_mesh
from tpo_jax.parallel.sharding import ROWS, check_heads, parameter_shardings

Questions = TypeVar("Questions", str, list[str])
GREEDY = Sampling()


@dataclasses.dataclass(frozen=True, eq=False)
class Model:
    """A processor and the weights it prepares inputs for, laid out over a mesh.

    Every process of a multi-process program holds one; `load` makes it.
    """

    processor: Processor
    # As `abstract_params(config)`, in the compute dtype or quantized; not printed with the model.
    params: dict = dataclasses.field(repr=False)
    mesh: jax.sharding.Mesh

    @property
    def config(self) -> ModelConfig:
        """Return the shapes and settings of the model."""
        return self.processor.config

    @property
    def tokenizer(self) -> Tokenizer:
        """Return the tokenizer of the checkpoint."""
        return self.processor.tokenizer

    @property
    def dtype(self) -> jnp.dtype:
        """Return the compute dtype, which is that of the weights."""
        return jax.tree.leaves(self.params)[0].dtype

    @functools.cached_property
    def row_parts(self) -> int:
        """Return over how many groups of devices the rows of a batch are split."""
        return math.prod(self.mesh.shape[axis] for axis in ROWS)

    @functools.cached_property
    def padding(self) -> PaddingCheck:
        """Return the check of the model's first batches of videos."""
        return PaddingCheck(self.config)

    @contextlib.contextmanager
    def computing(self) -> Iterator[None]:
        """Enter the mesh and the precision that every use of the weights needs.

        Products of float32 matrices are computed in float32.
        """
        precision = "highest" if self.dtype == jnp.float32 else "default"
        with jax.set_mesh(self.mesh), jax.default_matmul_precision(precision):
            yield

    def generator(self, decoding: Decoding) -> Generator:
        """Return a generator that answers batches of prepared rows."""
        return Generator(self, decoding)

    def answer(
        self,
        video: str | Path | Visual | None,
        question: Questions,
        *,
        num_frames: int = 32,
        images: Sequence[str | Path | Image.Image] = (),
        max_new_tokens: int = 128,
        sampling: Sampling = GREEDY,
        seed: int = 0,
    ) -> Questions:
        """Answer one question, or a list of them for which the video is encoded once.

            model.answer("cooking.mp4", "What is cut first?")
            model.answer("cooking.mp4", ["What is cut first?", "Who cooks?"], num_frames=64)
            model.answer(None, "What differs?", images=["before.png", "after.png"])
            model.answer(None, "What is preference optimization?")

        Args:
            video: a file, a directory of frames, or what `processor.video` returned; None for a
                question on images or on text alone.
            question: may hold one `<image>` or `<video>`, which is removed; on images, one
                `<image>` for each of them, or none.
            num_frames: frames sampled from a video, evenly spaced.
            images: files or PIL images in place of a video.
            max_new_tokens: longest answer; shorter where the model's context ends before.
            sampling: how tokens are drawn; greedy by default.
            seed: of the random draws.

        Returns:
            The answer, or the list of answers in the order of the questions.

        Raises:
            InputError: a file that cannot be read, or a prompt that the context does not hold.
        """
        questions = texts_of(question)
        visual = self._visual(video, images, num_frames)
        row = self.processor.prompts(self._asked(questions, visual), visual)
        decoding = Decoding(max_new_tokens, sampling, seed, batch_rows=1)
        [answers] = self.generator(decoding).answer([_pixels(visual)], [row])
        return answers[0] if isinstance(question, str) else answers

    def stream(
        self,
        video: str | Path | Visual | None,
        question: str,
        *,
        num_frames: int = 32,
        images: Sequence[str | Path | Image.Image] = (),
        max_new_tokens: int = 128,
        sampling: Sampling = GREEDY,
        seed: int = 0,
    ) -> Iterator[str]:
        """Answer one question piece by piece; joined, the pieces are what `answer` returns.

            for piece in model.stream("cooking.mp4", "What is cut first?"):
                print(piece, end="", flush=True)

        Arguments and errors are those of `answer`.
        """
        if not isinstance(question, str):
            raise InputError(f"question={question!r} must be one text: one answer is streamed")
        visual = self._visual(video, images, num_frames)
        row = self.processor.prompts(self._asked(texts_of(question), visual), visual)
        decoding = Decoding(max_new_tokens, sampling, seed, batch_rows=1)
        return self.generator(decoding).stream(_pixels(visual), row)

    def score(
        self,
        pairs: Sequence[Pair | Mapping],
        *,
        videos: str | Path = ".",
        num_frames: int = 32,
        rule: str = "uniform",
        batch_size: int = 8,
    ) -> list[Score]:
        """Sum the log-probabilities of both answers of every pair.

            pair = {"video": "cooking.mp4", "prompt": "What is cut first?",
                    "chosen": "An onion.", "rejected": "A carrot."}
            [result] = model.score([pair], videos="videos")
            print(result.chosen_logp - result.rejected_logp)

        Args:
            pairs: records as in a file of pairs (`docs/data.md`), or `Pair`s. A pair may have
                `image` or `images` in place of `video`, or none of them; or `rejected_video`, and
                its answer is scored on both videos.
            videos: folder of the pairs' videos and images, or a directory of shards.
            num_frames: frames sampled from a video.
            rule: which frames, one of `video.sampling.RULES`.
            batch_size: pairs at a time, rounded up to a multiple of the devices.

        Returns:
            A result per pair, in their order.

        Raises:
            InputError: a pair that is not valid or cannot be read; the message names it.
        """
        check_pairs(pairs)
        check_path("videos", videos)
        check_whole("num_frames", num_frames)
        check_whole("batch_size", batch_size)
        folder = local_path("videos", videos)
        check_folder("videos", folder)
        checked = [
            pair if isinstance(pair, Pair) else pair_of(pair, number, folder)
            for number, pair in enumerate(pairs)
        ]
        return score(self, checked, FrameSource(folder, num_frames, rule), batch_size)

    def _visual(
        self, video: str | Path | Visual | None, images: Sequence, num_frames: int
    ) -> Visual:
        check_images(images)
        check_whole("num_frames", num_frames)
        if video is None:
            return self.processor.pictures(images)
        if len(images):
            raise InputError("give a video or images, not both")
        if isinstance(video, Clip | Pictures):
            return video
        check_path("video", video, ", or what `processor.video` returned")
        return self.processor.video(local_path("video", video), num_frames)

    def _asked(self, questions: Sequence[str], visual: Visual) -> Sequence[str]:
        if isinstance(visual, Pictures):
            return questions
        return [self.processor.without_placeholder(question) for question in questions]


def _pixels(visual: Visual) -> Any:
    return visual.frames if isinstance(visual, Clip) else visual


def load_processor(
    directory: str | Path,
    *,
    time_instruction: str | None = None,
    prompt_style: str = "inference",
    rope_theta: float = 0.0,
    tower: str | Path | None = None,
) -> Processor:
    """Read the config and the tokenizer of a model directory; no weights are read.

    Args:
        directory: native or Hugging Face layout, or a name on the Hugging Face Hub.
        time_instruction: see `Processor`.
        prompt_style: see `Processor`.
        rope_theta: base of the rotary wavelengths; 0: the checkpoint's.
        tower: see `load`.

    Raises:
        InputError: what is wrong with the directory or a setting.
    """
    settings = {"rope_theta": rope_theta} if rope_theta else {}
    directory = hub.folder(directory)
    config = load_config(directory, tower, **settings)
    tokenizer = load_tokenizer(directory, config)
    return Processor(config, tokenizer, time_instruction, prompt_style)


def load(
    directory: str | Path,
    *,
    dtype: str | None = "float32",
    mesh: Mapping[str, int] | jax.sharding.Mesh | None = None,
    processor: Processor | None = None,
    tower: str | Path | None = None,
    adapters: str | Path | None = None,
    weights: str = "",
) -> Model:
    """Load a model directory of either layout onto the devices of all processes.

        model = tpo_jax.load("lmms-lab/LongVA-7B", adapters="run/adapters", dtype="bfloat16")
        print(model.answer("cooking.mp4", "What is cut first?", num_frames=32))

    Args:
        directory: native or Hugging Face layout, or a name on the Hugging Face Hub,
            `organisation/name` or `organisation/name@revision`.
        dtype: compute dtype, "float32" or "bfloat16"; None: as stored.
        mesh: sizes of mesh axes, -1 for the devices that are left and 1 where an axis is not
            named; or a mesh. By default `{"context": -1}`: all devices share one video. For many
            videos at a time use `{"fsdp": -1}`, which splits the rows of a batch.
        processor: of `load_processor`, where it is read before the weights or its settings are not
            the checkpoint's.
        tower: folder of a Hugging Face vision tower, for a checkpoint that was stored without it.
        adapters: directory of LoRA adapters in PEFT's layout, which are merged into the weights.
        weights: "int8" or "int4" to quantize the decoder's layers while they are loaded, a half or
            a quarter of their size in bfloat16; by default they are as stored.

    Raises:
        InputError: what is wrong with a directory, or a mesh that does not fit the devices.
    """
    if dtype not in (None, "float32", "bfloat16"):
        raise InputError(f"dtype={dtype!r} must be 'float32', 'bfloat16' or None")
    check_weights("weights", weights)
    processor, mesh = processor or load_processor(directory, tower=tower), _mesh(mesh)
    decoder = processor.config.decoder
    check_heads(decoder.heads, decoder.kv_heads, mesh)
    loaded = load_model(
        directory, mesh=mesh, dtype=dtype, tower=tower, adapters=adapters, weights=weights
    )
    return Model(processor, loaded.params, mesh)


def place(
    processor: Processor, params: dict, mesh: Mapping[str, int] | jax.sharding.Mesh | None = None
) -> Model:
    """Return a model of parameters in memory, in their dtype, laid out over a mesh; see `load`."""
    mesh = _mesh(mesh)
    return Model(processor, jax.device_put(params, parameter_shardings(mesh, params)), mesh)


def _mesh(mesh: Mapping[str, int] | jax.sharding.Mesh | None) -> jax.sharding.Mesh:
    if isinstance(mesh, jax.sharding.Mesh):
        return mesh
    if mesh is not None:
        check_mesh(mesh)
    if unknown := set(mesh or ()) - set(AXES):
        raise InputError(f"mesh has no axis {min(unknown)!r}; there are {', '.join(AXES)}")
    return make_mesh({**dict.fromkeys(AXES, 1), **(mesh or {"context": -1})})
