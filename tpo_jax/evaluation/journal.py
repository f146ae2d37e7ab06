"""Answers on disk, so that a run that was killed resumes where it stopped."""

from pathlib import Path
from typing import Any

from tpo_jax.errors import InputError
from tpo_jax.io import journal


class AnswerJournal(journal.Journal):
    """A journal of answers: `doc_id`, `input`, `answer`.

    Args:
        path: the file; created if missing.
        owner: what the answers depend on besides the question: weights, frames, dtype, ….

    Raises:
        InputError: another owner, another run that writes it, or a line that is not an answer.
    """

    def __init__(self, path: Path, owner: dict[str, Any]) -> None:
        super().__init__(path, owner, "choose another --output")
        self.answers: dict[int, tuple[str, str]] = {}
        for where, line in self.lines:
            try:
                self.answers[line["doc_id"]] = (line["input"], line["answer"])
            except (KeyError, TypeError) as error:
                raise InputError(f"{where}: no answer to a row: {error}") from error

    def answer(self, doc_id: int, prompt: str) -> str | None:
        """Return the answer to a row's question; None where there is none yet.

        Raises:
            InputError: the journal answers another question of that row.
        """
        known, answer = self.answers.get(doc_id, (prompt, None))
        if known != prompt:
            raise InputError(
                f"{self.path}: row {doc_id} had another question; choose another --output"
            )
        return answer

    def keep(self, rows: list[tuple[int, str, str]]) -> None:
        """Append (row, prompt, answer) triples; they are on disk when this returns."""
        self.add([{"doc_id": i, "input": text, "answer": answer} for i, text, answer in rows])
        self.answers |= {i: (text, answer) for i, text, answer in rows}
