"""Answers to batches of prepared rows: whole, or step by step as they grow."""

import bisect
import dataclasses
from collections.abc import Callable, Iterator, Sequence
from typing import TYPE_CHECKING, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from tpo_jax.data.collate import collate, visual_sizes
from tpo_jax.data.rows import Row
from tpo_jax.errors import InputError
from tpo_jax.generation.decode import Limits, Prefix, State, decode, prefill
from tpo_jax.generation.sampling import Sampling
from tpo_jax.generation.stopping import first_stop, held_back
from tpo_jax.inference.checks import check_whole
from tpo_jax.models.batch import Batch, BatchShape
from tpo_jax.models.pictures import Pictures
from tpo_jax.parallel.attention import prefix_multiple
from tpo_jax.parallel.distributed import gather
from tpo_jax.parallel.sharding import to_global, to_local

if TYPE_CHECKING:
    from tpo_jax.inference.model import Model

ANSWER_MULTIPLE = 16  # space for answers is rounded up to it, so that few shapes are compiled
STREAM_STEPS = 4


class Answer(NamedTuple):
    """An answer so far; its text never ends inside a character, nor with part of a stop string."""

    text: str
    tokens: int  # without the stop token; with those of a stop string
    finished: bool
    cut_off: bool = False  # finished by the limit on tokens


@dataclasses.dataclass(frozen=True)
class Decoding:
    """How answers are decoded, and in which shapes."""

    max_new_tokens: int = 128  # shorter where the model's context ends before
    sampling: Sampling = Sampling()
    # The draw of a question depends on this, the seed of its row and its place in the row, not on
    # what else is in the batch.
    seed: int = 0
    # Rows of a batch of all processes, rounded up to what the mesh asks for.
    batch_rows: int = 16
    # Lengths of questions are rounded up to a multiple of it, so that few shapes are compiled.
    question_multiple: int = 16

    def __post_init__(self) -> None:
        if not isinstance(self.sampling, Sampling):
            raise InputError(f"sampling={self.sampling!r} must be a tpo_jax.Sampling")
        self.sampling.check()
        check_whole("max_new_tokens", self.max_new_tokens)
        check_whole("seed", self.seed, least=0)


class _Sizes(NamedTuple):
    """Lengths that hold the rows of all processes."""

    prefix: int
    questions: int
    response: int
    frames: int
    images: bool


def round_up(n: int, multiple: int) -> int:
    """Return `n` rounded up to a multiple, at least to the first one."""
    return max(1, -(-n // multiple)) * multiple


class Generator:
    """Answers questions about batches of videos or images.

    With several processes all must make the same calls together; each brings rows of its own, not
    necessarily as many as the others, and gets the answers to them.
    """

    def __init__(self, model: "Model", decoding: Decoding) -> None:
        self.model = model
        # No answer is longer than the context, whatever was asked for: its space is allocated.
        longest = min(decoding.max_new_tokens, model.config.max_length)
        self.decoding = dataclasses.replace(decoding, max_new_tokens=longest)
        processes = len({device.process_index for device in model.mesh.devices.flat})
        self._parts = max(1, model.row_parts // processes)
        # Rows of a batch that this process brings.
        self.batch_rows = round_up(-(-decoding.batch_rows // processes), self._parts)
        stop = model.processor.template.stop
        known = (model.tokenizer.token_to_id(token) for token in stop)
        self._stop_ids = np.array([i for i in known if i is not None], np.int32)

    def answer(
        self,
        visuals: Sequence[np.ndarray | Pictures],
        rows: Sequence[Row],
        seeds: Sequence[int] | None = None,
        shape: tuple[int, int] | None = None,
    ) -> list[list[str]]:
        """Answer every question; a video and its prefix are encoded once.

        Args:
            visuals: of `n` rows, frames uint8 `[F, *frame_shape]` of equal `F`, or images.
            rows: of `Processor.prompts`; they may differ in their number of questions.
            seeds: of the rows; their indices by default. A caller that splits its videos over
                several calls gives every video its own.
            shape: B and Q to pad every batch to, so that calls of few rows share one program; by
                default as small as the rows allow.

        Returns:
            `[n][Q]` texts, special tokens and surrounding blanks removed.
        """
        seeds = range(len(rows)) if seeds is None else seeds
        sizes, most = self._sizes(visuals, rows)
        size = min(self.batch_rows, round_up(most, self._parts))
        if shape:
            size, sizes = shape[0], sizes._replace(questions=max(sizes.questions, shape[1]))
        answers: list[list[str]] = []
        for start in range(0, most, size):
            part = slice(start, start + size)
            draws = [(self.decoding.seed, seed) for seed in seeds[part]]
            batch = self._batch(visuals[part], rows[part], draws, sizes, size)
            prefix, state, limits = self._begin(batch, self.decoding.max_new_tokens)
            state = self._more(prefix, state, batch, limits, self.decoding.max_new_tokens - 1)
            tokens, counts = (to_local(x, self.model.mesh) for x in (state.tokens, state.counts))
            for row, row_tokens, row_counts in zip(rows[part], tokens, counts, strict=False):
                ids = [t[:n] for t, n in zip(row_tokens, row_counts, strict=True)]
                answers.append([self._decode(i).strip() for i in ids[: len(row.input_ids)]])
        return answers

    def stream(self, visual: np.ndarray | Pictures, row: Row, seed: int = 0) -> Iterator[str]:
        """Yield pieces of the answer to the one question of a row, as they come.

        Joined they are what `answer` returns. A piece never ends inside a character.
        """
        sent = ""
        for [[answer]] in self.steps([visual], [row], [(self.decoding.seed, seed)]):
            if len(answer.text) > len(sent):
                yield answer.text[len(sent) :]
                sent = answer.text

    def steps(
        self,
        visuals: Sequence[np.ndarray | Pictures],
        rows: Sequence[Row],
        draws: Sequence[tuple[int, int]],
        *,
        new_tokens: np.ndarray | None = None,
        shape: tuple[int, int] | None = None,
        dropped: Callable[[], np.ndarray] | None = None,
        stop: Sequence[Sequence[Sequence[str]]] | None = None,
    ) -> Iterator[list[list[Answer]]]:
        """Yield the answers of one batch as they grow, every few tokens, until all have finished.

        Works in a single process only.

        Args:
            visuals: of `n` rows, as for `answer`.
            draws: of every row, what seeds its random draws: a seed, and the seed of the row.
            new_tokens: int `[B, Q]`, most tokens of the answers, where below `max_new_tokens`.
            shape: B and Q to pad to; as small as the rows allow by default.
            dropped: called between the steps for a bool `[B, Q]`: answers that are no longer
                wanted, which then count as finished.
            stop: `[n][Q]`, the stop strings of every question; see `generation.stopping`.
        """
        sizes, _ = self._sizes(visuals, rows)
        size, questions = shape or (round_up(len(rows), self._parts), sizes.questions)
        batch = self._batch(visuals, rows, draws, sizes._replace(questions=questions), size)
        most = self.decoding.max_new_tokens if new_tokens is None else new_tokens
        prefix, state, limits = self._begin(batch, most)
        longest = np.asarray(limits.new_tokens)
        while True:
            tokens, counts, finished = map(np.array, (state.tokens, state.counts, state.finished))
            answers: list[list[Answer]] = []
            for b, row in enumerate(rows):
                answers.append([])
                for q in range(len(row.input_ids)):
                    ids, stops = tokens[b, q, : counts[b, q]], stop[b][q] if stop else ()
                    answer = self._answer(ids, finished[b, q], longest[b, q], stops)
                    finished[b, q] = answer.finished
                    answers[b].append(answer)
            yield answers
            if finished.all():
                return
            if dropped:
                finished |= dropped()
            state = state._replace(finished=state.finished | finished)
            state = self._more(prefix, state, batch, limits, STREAM_STEPS)

    def _answer(self, ids: np.ndarray, finished: bool, longest: int, stop: Sequence[str]) -> Answer:
        """Return the state of an answer of these tokens.

        Args:
            finished: whether a stop token or the limit `longest` ended it.
            stop: stop strings.
        """

        def text(count: int) -> str:
            decoded = self._decode(ids[:count])
            # A character of several tokens decodes to a replacement character until it is whole.
            return decoded if finished and count == len(ids) else decoded.rstrip("\ufffd")

        whole = text(len(ids))
        if (end := first_stop(whole, stop)) is not None:
            # The model may have continued after it.
            used = bisect.bisect_left(
                range(len(ids)), True, key=lambda n: first_stop(text(n), stop) is not None
            )
            return Answer(whole[:end].strip(), used, True)
        if not finished:
            shown = whole[: len(whole) - held_back(whole, stop)].strip()
            return Answer(shown, len(ids), False)
        return Answer(whole.strip(), len(ids), True, cut_off=bool(len(ids) >= longest))

    def _decode(self, ids: np.ndarray) -> str:
        return self.model.tokenizer.decode(ids.tolist(), skip_special_tokens=True)

    def _sizes(
        self, visuals: Sequence[np.ndarray | Pictures], rows: Sequence[Row]
    ) -> tuple[_Sizes, int]:
        """Return the lengths of a batch, and the most rows that a process has."""
        frames, images = visual_sizes(visuals) if len(visuals) else (0, False)
        own = [
            max((int(row.prefix_mask.sum()) for row in rows), default=0),
            max((len(row.input_ids) for row in rows), default=0),
            max((int(row.input_mask.sum(-1).max()) for row in rows), default=0),
            *(frames, images, len(rows)),
        ]
        *own, most = map(max, zip(*gather(own), strict=True)) if jax.process_count() > 1 else own
        prefix, questions, response, views, stills = own
        prefix = round_up(prefix, prefix_multiple(self.model.mesh))
        response = round_up(response, self.decoding.question_multiple)
        return _Sizes(prefix, questions, response, views, bool(stills)), most

    def _batch(
        self,
        visuals: Sequence[np.ndarray | Pictures],
        rows: Sequence[Row],
        draws: Sequence[tuple[int, int]],
        sizes: _Sizes,
        size: int,
    ) -> Batch:
        """Return `prefill`'s batch of `size` rows; those beyond the given ones are empty."""
        config = self.model.config
        shape = BatchShape(rows=size, answers=1, frame_shape=config.frame_shape, **sizes._asdict())
        batch = collate(config, rows, list(visuals), shape)
        self.model.padding.look(batch)
        seeds = np.zeros(size, np.uint32)
        for b, draw in enumerate(draws):
            seeds[b] = np.random.SeedSequence(draw).generate_state(1)[0]
        return to_global(dataclasses.replace(batch, seeds=seeds), self.model.mesh)

    def _begin(self, batch: Batch, most: int | np.ndarray) -> tuple[Prefix, State, Limits]:
        """Return the prefilled prefix, the state with each answer's first token, the limits."""
        model = self.model
        used = batch.prefix_mask.sum(-1)[:, None] + batch.input_mask[:, :, 0].sum(-1)
        limits = Limits(
            new_tokens=jnp.minimum(most, model.config.max_length - used),
            stop_ids=self._stop_ids,
            vocabulary=model.tokenizer.get_vocab_size(),
        )
        space = round_up(self.decoding.max_new_tokens, ANSWER_MULTIPLE)
        sampling = self.decoding.sampling
        with model.computing():
            prefix, state = prefill(
                model.config, model.params, batch, sampling, limits, new_tokens=space
            )
        return prefix, state, limits

    def _more(
        self, prefix: Prefix, state: State, batch: Batch, limits: Limits, steps: int
    ) -> State:
        """Return the state after at most `steps` more tokens."""
        model = self.model
        with model.computing():
            return decode(
                *(model.config, model.params, prefix, state),
                *(batch.seeds, self.decoding.sampling, limits, steps),
            )
