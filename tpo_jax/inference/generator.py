"""Videos or images and tokenised questions in, texts out: batches of one shape, streaming."""

import contextlib
import dataclasses
import math
from collections.abc import Callable, Iterator, Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from tokenizers import Tokenizer

from tpo_jax import families
from tpo_jax.data.collate import collate, visual_sizes
from tpo_jax.data.rows import Row
from tpo_jax.errors import InputError
from tpo_jax.generation.decode import Limits, decode, prefill
from tpo_jax.generation.sampling import Sampling
from tpo_jax.models.batch import Batch, BatchShape
from tpo_jax.models.config import ModelConfig
from tpo_jax.models.pictures import Pictures
from tpo_jax.parallel.attention import prefix_multiple
from tpo_jax.parallel.distributed import gather
from tpo_jax.parallel.sharding import ROWS, to_global, to_local

# Lengths are rounded up to multiples of these, so that few shapes are compiled.
QUESTION_MULTIPLE, ANSWER_MULTIPLE = 16, 16
STREAM_STEPS = 4


class Answer(NamedTuple):
    """An answer so far; its text never ends inside a character."""

    text: str
    tokens: int  # without the one that stopped it
    finished: bool


def round_up(n: int, multiple: int) -> int:
    """The next multiple, at least one."""
    return max(1, -(-n // multiple)) * multiple


class Generator:
    """Answers questions about videos.

    Args:
        config: of the model.
        params: in the compute dtype, placed where they are to be used.
        tokenizer: of the checkpoint; ids it does not know are never generated.
        max_new_tokens: longest answer in tokens; shorter where the model's context ends before.
        sampling: settings.
        seed: of the random draws. The draw of a question depends on `seed`, the seed of its row and
            its place in the row, not on what else is in the batch.
        batch_rows: videos at a time, at most; rounded up to what the mesh asks for.
        mesh: rows are split over it; None for the default device. Where it spans several processes
            each asks for the answers of rows of its own, as many as the others and at the same
            time, and `batch_rows` becomes the share of one.
        question_multiple: lengths of questions are rounded up to multiples of it.

    Raises:
        InputError: a setting out of range.
    """

    def __init__(
        self,
        config: ModelConfig,
        params: dict,
        tokenizer: Tokenizer,
        *,
        max_new_tokens: int = 128,
        sampling: Sampling = Sampling(),  # noqa: B008, a constant
        seed: int = 0,
        batch_rows: int = 16,
        mesh: jax.sharding.Mesh | None = None,
        question_multiple: int = QUESTION_MULTIPLE,
    ):
        sampling.check()
        if max_new_tokens < 1:
            raise InputError(f"max_new_tokens={max_new_tokens} must be 1 or more")
        self.config, self.params, self.tokenizer = config, params, tokenizer
        self.max_new_tokens, self.sampling = max_new_tokens, sampling
        self.seed, self.mesh, self.question_multiple = seed, mesh, question_multiple
        processes = 1 if mesh is None else len({d.process_index for d in mesh.devices.flat})
        rows = 1 if mesh is None else math.prod(mesh.shape[axis] for axis in ROWS)
        self.parts = max(1, rows // processes)
        self.batch_rows = round_up(-(-batch_rows // processes), self.parts)
        stop = families.of(config).templates["inference"].stop
        known = (tokenizer.token_to_id(token) for token in stop)
        self.stop_ids = np.array([i for i in known if i is not None], np.int32)

    def answer(
        self,
        frames: np.ndarray | Sequence[Pictures],
        prompts: Sequence[Row],
        seeds: Sequence[int] | None = None,
    ) -> list[list[str]]:
        """One answer to every question; a video and its prefix are encoded once.

        Rows are those of `Processor.prompts`, which checks that the model's context holds them.

        Args:
            frames: uint8 `[n, F, S, S, 3]`, as many videos as wanted; or the images of `n` rows.
            prompts: `n` rows of questions; rows may differ in their number of questions.
            seeds: of the rows, their indices by default. A caller that splits its videos over
                several calls gives every video its own.

        Returns:
            `[n][Q]` texts, special tokens and surrounding blanks removed.
        """
        seeds = range(len(prompts)) if seeds is None else seeds
        shape = self._shape(prompts)
        size = min(self.batch_rows, round_up(len(prompts), self.parts))
        answers = []
        for start in range(0, len(prompts), size):
            rows = slice(start, start + size)
            draws = [(self.seed, seed) for seed in seeds[rows]]
            batch = self._batch(frames[rows], prompts[rows], draws, shape, size)
            prefix, state, limits = self._begin(batch, self.max_new_tokens)
            state = self._go_on(prefix, state, batch, limits, self.max_new_tokens - 1)
            tokens, counts = self._own(state.tokens), self._own(state.counts)
            for row, row_tokens, row_counts in zip(prompts[rows], tokens, counts, strict=False):
                ids = [t[:n] for t, n in zip(row_tokens, row_counts, strict=True)]
                answers.append([self._text(i) for i in ids[: len(row.input_ids)]])
        return answers

    def stream(self, frames: np.ndarray | Pictures, prompts: Row, seed: int = 0) -> Iterator[str]:
        """Pieces of the answer to the one question of `prompts`, as they come.

        Joined they are what `answer` returns. A piece never ends inside a character.

        Args:
            frames: uint8 `[F, S, S, 3]`, or the images of the row.
            prompts: one question.
            seed: of the row.
        """
        rows = frames[None] if isinstance(frames, np.ndarray) else [frames]
        sent = ""
        for [[answer]] in self.steps(rows, [prompts], [(self.seed, seed)]):
            if len(answer.text) > len(sent):
                yield answer.text[len(sent) :]
                sent = answer.text

    def steps(
        self,
        frames: np.ndarray | Sequence[Pictures],
        prompts: Sequence[Row],
        draws: Sequence[tuple[int, int]],
        *,
        new_tokens: np.ndarray | None = None,
        shape: tuple[int, int] | None = None,
        dropped: Callable[[], np.ndarray] | None = None,
    ) -> Iterator[list[list[Answer]]]:
        """The answers of one batch as they grow, every few tokens, until all have finished.

        Args:
            frames: of `n` rows, as for `answer`.
            prompts: their questions.
            draws: of every row, what seeds its random draws: a seed, and the seed of the row.
            new_tokens: int `[B, M]`, the longest answers where below `max_new_tokens`.
            shape: B and M to pad to, so that few programs are compiled; as small as it goes by
                default.
            dropped: asked between the steps for a bool `[B, M]`: answers that nobody wants any
                more, which then count as finished.
        """
        P, M, R = self._shape(prompts)
        rows, M = shape or (round_up(len(prompts), self.parts), M)
        batch = self._batch(frames, prompts, draws, (P, M, R), rows)
        most = self.max_new_tokens if new_tokens is None else new_tokens
        prefix, state, limits = self._begin(batch, most)
        while True:
            tokens, counts, finished = map(np.asarray, (state.tokens, state.counts, state.finished))
            yield [
                [self._answer(tokens[b, m], counts[b, m], finished[b, m]) for m in range(len(q))]
                for b, q in enumerate(row.input_ids for row in prompts)
            ]
            if finished.all():
                return
            if dropped:
                state = state._replace(finished=state.finished | dropped())
            state = self._go_on(prefix, state, batch, limits, STREAM_STEPS)

    def _answer(self, tokens: np.ndarray, count: np.ndarray, finished: np.ndarray) -> Answer:
        text = self._text(tokens[:count])
        # A character of several tokens decodes to a replacement character until it is whole.
        whole = text if finished else text.rstrip("\ufffd").rstrip()
        return Answer(whole, int(count), bool(finished))

    def _own(self, array: jax.Array) -> np.ndarray:
        return np.asarray(array) if self.mesh is None else to_local(array, self.mesh)

    def _text(self, ids: np.ndarray) -> str:
        return self.tokenizer.decode(ids.tolist(), skip_special_tokens=True).strip()

    def _shape(self, prompts: Sequence[Row]) -> tuple[int, int, int]:
        """(P, M, R) that hold all rows."""
        P = max(int(row.prefix_mask.sum()) for row in prompts)
        R = max(int(row.input_mask.sum(-1).max()) for row in prompts)
        M = max(len(row.input_ids) for row in prompts)
        if jax.process_count() > 1 and self.mesh is not None:
            P, M, R = map(max, zip(*gather([P, M, R]), strict=True))
        return round_up(P, prefix_multiple(self.mesh)), M, round_up(R, self.question_multiple)

    def _batch(
        self,
        visuals: Sequence[np.ndarray | Pictures] | np.ndarray,
        prompts: Sequence[Row],
        draws: Sequence[tuple[int, int]],
        shape: tuple[int, int, int],
        rows: int,
    ) -> Batch:
        """Return `prefill`'s batch of `rows` rows; those that no prompt fills are empty."""
        (P, M, R), visuals = shape, list(visuals)
        frames, images = visual_sizes(visuals)
        sizes = BatchShape(
            rows=rows,
            prefix=P,
            questions=M,
            answers=1,
            response=R,
            frames=frames,
            frame_shape=self.config.frame_shape,
            images=images,
        )
        seeds = np.zeros(rows, np.uint32)
        for b, draw in enumerate(draws):
            seeds[b] = np.random.SeedSequence(draw).generate_state(1)[0]
        batch = dataclasses.replace(collate(self.config, prompts, visuals, sizes), seeds=seeds)
        if self.mesh is not None:
            return to_global(batch, self.mesh)
        return jax.tree.map(jnp.asarray, batch)

    def _begin(self, batch, most):
        """Prefilled prefix, first token of every answer, and the limits decoding goes on with."""
        used = batch.prefix_mask.sum(-1)[:, None] + batch.input_mask[:, :, 0].sum(-1)
        limits = Limits(
            new_tokens=jnp.minimum(most, self.config.max_length - used),
            stop_ids=self.stop_ids,
            vocabulary=self.tokenizer.get_vocab_size(),
        )
        room = round_up(self.max_new_tokens, ANSWER_MULTIPLE)
        with self._on_mesh():
            prefix, state = prefill(
                self.config, self.params, batch, self.sampling, limits, new_tokens=room
            )
        return prefix, state, limits

    def _go_on(self, prefix, state, batch, limits, steps):
        with self._on_mesh():
            return decode(
                *(self.config, self.params, prefix, state),
                *(batch.seeds, self.sampling, limits, steps),
            )

    def _on_mesh(self):
        """What keeps every chip to its rows: kernels know of no other chips without it."""
        return contextlib.nullcontext() if self.mesh is None else jax.set_mesh(self.mesh)
