"""Answers on disk, one line each, so that a run that was killed goes on where it stood."""

import fcntl
import json
import os
from pathlib import Path
from typing import Any

from tpo_jax.errors import InputError
from tpo_jax.evaluation.rescoring import read_lines


class Journal:
    """An append-only file of answers: a first line that says whose, then `doc_id, input, answer`.

    A line without its end, which a kill leaves behind, is taken away. The file is locked as long as
    the journal is open: two runs never answer into one folder.

    Args:
        path: the file; made where there is none.
        owner: what the answers depend on besides the question: weights, frames, dtype, ….

    Raises:
        InputError: another owner, another run at work, or a line that is not one of a journal.
    """

    def __init__(self, path: Path, owner: dict[str, Any]):
        self.path = path
        self.answers: dict[int, tuple[str, str]] = {}
        self._file = path.open("a+b")
        try:
            self._start(owner)
        except BaseException:
            self._file.close()
            raise

    def _start(self, owner: dict[str, Any]) -> None:
        try:
            fcntl.flock(self._file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            raise InputError(f"{self.path}: another run is writing here") from error
        self._file.seek(0)
        whole = self._file.read().rfind(b"\n") + 1
        self._file.truncate(whole)
        if not whole:
            self._write([owner])
            return
        for number, (where, line) in enumerate(read_lines(self.path)):
            try:
                if number:
                    self.answers[line["doc_id"]] = (line["input"], line["answer"])
                elif line != owner:
                    names = [k for k in owner if line.get(k) != owner[k]]
                    was = ", ".join(f"{k} {line.get(k)!r}, not {owner[k]!r}" for k in names)
                    raise InputError(
                        f"{self.path.parent}: results of another run ({was}); choose another "
                        "--output"
                    )
            except KeyError as error:
                raise InputError(f"{where}: no {error} in this line") from error

    def answer(self, doc_id: int, prompt: str) -> str | None:
        """The answer to a row's question, None where there is none yet.

        Raises:
            InputError: that row was asked something else.
        """
        known, answer = self.answers.get(doc_id, (prompt, None))
        if known != prompt:
            raise InputError(
                f"{self.path}: row {doc_id} was asked another question; choose another --output"
            )
        return answer

    def add(self, rows: list[tuple[int, str, str]]) -> None:
        """Keeps (row, prompt, answer) triples; they are on disk when this returns."""
        self._write([{"doc_id": i, "input": text, "answer": answer} for i, text, answer in rows])
        self.answers |= {i: (text, answer) for i, text, answer in rows}

    def _write(self, lines: list[dict]) -> None:
        self._file.write("".join(json.dumps(line) + "\n" for line in lines).encode())
        self._file.flush()
        os.fsync(self._file.fileno())

    def __enter__(self) -> "Journal":
        return self

    def __exit__(self, *_) -> None:
        self._file.close()
