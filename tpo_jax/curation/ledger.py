"""What requests to paid endpoints have cost, on disk, and when to stop."""

import json
import threading
from pathlib import Path
from typing import Any, NamedTuple

from ml_collections import ConfigDict

from tpo_jax.curation.speakers import Stop
from tpo_jax.io.journal import cut_torn_line


class Spent(NamedTuple):
    """Tokens and costs of replies."""

    tokens_in: int = 0
    tokens_out: int = 0
    cost: float = 0.0

    def __add__(self, other: Any) -> "Spent":
        return Spent(*(a + b for a, b in zip(self, other, strict=True)))

    def __sub__(self, other: Any) -> "Spent":
        return Spent(*(a - b for a, b in zip(self, other, strict=True)))


class Ledger:
    """Tokens and costs, one line per reply in an append-only file; safe for threads.

    The limit is on all files of a working directory: what other parts and earlier runs have spent
    counts. Before a request, `reserve` holds back as much as the dearest one so far has cost, so
    that requests in flight do not overrun the limit together; those of other parts that are in
    flight at that moment are not known.

    Args:
        path: of this part's file.
        prices: section `openai` of the config; `price_in` and `price_out` per million tokens.
        limit: most that may be spent; 0: no limit.
    """

    def __init__(self, path: Path, prices: ConfigDict, limit: float):
        self.limit = limit
        self.own = Spent()  # by this part, in this run and before
        self._others, self._read = Spent(), dict[Path, int]()
        self._held, self._dearest = 0.0, 0.0
        self._prices = prices.price_in / 1e6, prices.price_out / 1e6
        self._lock = threading.Lock()
        if limit and not sum(self._prices):
            raise Stop("--max_cost needs openai.price_in and openai.price_out")
        self._path, self._file = path, path.open("a+b")
        cut_torn_line(self._file)
        self._file.seek(0)
        self.own = self._read_replies(self._file.read())

    def reserve(self) -> float:
        """Holds back the costs of a request and returns them, for `add` or `release`.

        Raises:
            Stop: the limit is reached.
        """
        with self._lock:
            if self.limit:
                self._look_at_others()
                spent = self.own.cost + self._others.cost
                if spent + self._held + self._dearest >= self.limit:
                    raise Stop(
                        f"--max_cost={self.limit:g}: {spent:.4f} spent, another request might go "
                        "beyond; raise it to go on"
                    )
            self._held += self._dearest
            return self._dearest

    def _look_at_others(self) -> None:
        """Counts the lines that other parts have written since the last look."""
        for path in self._path.parent.glob("costs*.jsonl"):
            start = self._read.get(path, 0)
            if path != self._path and path.stat().st_size > start:
                with path.open("rb") as file:
                    file.seek(start)
                    content = file.read()
                self._others += self._read_replies(content)
                self._read[path] = start + content.rfind(b"\n") + 1

    def _read_replies(self, content: bytes) -> Spent:
        """The sum of the whole lines of a file; the dearest one counts for what is held back."""
        total = Spent()
        for line in content[: content.rfind(b"\n") + 1].splitlines():
            reply = json.loads(line)
            total += Spent(reply["in"], reply["out"], reply["cost"])
            self._dearest = max(self._dearest, reply["cost"])
        return total

    def release(self, held: float) -> None:
        """Gives back what `reserve` held."""
        with self._lock:
            self._held -= held

    def add(self, name: str, tokens_in: int, tokens_out: int) -> None:
        """Notes a reply, used or not, that the endpoint has counted."""
        cost = tokens_in * self._prices[0] + tokens_out * self._prices[1]
        line = {"id": name, "in": tokens_in, "out": tokens_out, "cost": cost}
        with self._lock:
            self._file.write(json.dumps(line).encode() + b"\n")
            self._file.flush()
            self.own += Spent(tokens_in, tokens_out, cost)
            self._dearest = max(self._dearest, cost)

    def close(self) -> None:
        """Closes the file."""
        self._file.close()
