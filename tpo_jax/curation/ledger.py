"""What requests to paid endpoints have cost, on disk, and when to stop."""

import json
import threading
from pathlib import Path
from typing import Any, NamedTuple

from tpo_jax.curation.clients import Stop
from tpo_jax.curation.config import OpenAI
from tpo_jax.io.files import read_lines
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


def spent_in(workdir: Path) -> Spent:
    """Return what all parts and runs in a working directory have spent."""
    total = Spent()
    for path in sorted(workdir.glob("costs*.jsonl")):
        for _, reply in read_lines(path, growing=True):
            total += Spent(reply["in"], reply["out"], reply["cost"])
    return total


class Ledger:
    """Tokens and costs, one line per reply in an append-only file; safe for threads.

    The limit is on all files of a working directory: what other parts and earlier runs have spent
    counts. Before a request, `reserve` holds back as much as the most expensive one so far has
    cost, so that requests in flight do not exceed the limit together; requests of other parts that
    are in flight at that moment are not known.

    Args:
        path: This part's file.
        prices: Per million tokens, `price_in` and `price_out`.
        limit: The most that may be spent; 0: no limit.
        spent_before: Cost of work elsewhere that counts, too.

    Raises:
        Stop: There is a limit and no price.
    """

    def __init__(self, path: Path, prices: OpenAI, limit: float, spent_before: float = 0.0):
        self.limit = limit
        self._others, self._read = Spent(cost=spent_before), dict[Path, int]()
        self._held, self._highest = 0.0, 0.0
        self._prices = prices.price_in / 1e6, prices.price_out / 1e6
        self._lock = threading.Lock()
        if limit and not sum(self._prices):
            raise Stop("--max_cost needs openai.price_in and openai.price_out")
        self._path, self._file = path, path.open("a+b")
        cut_torn_line(self._file)
        self.own = self._sum(path.read_bytes())  # spent by this part, in this run and before

    def reserve(self) -> float:
        """Hold back the cost of a request and return it, for `release`.

        Raises:
            Stop: The limit is reached.
        """
        with self._lock:
            if self.limit:
                self._read_others()
                spent = self.own.cost + self._others.cost
                if spent + self._held + self._highest >= self.limit:
                    raise Stop(
                        f"--max_cost={self.limit:g}: {spent:.4f} spent, another request could "
                        "exceed it; raise it to resume"
                    )
            self._held += self._highest
            return self._highest

    def _read_others(self) -> None:
        """Count the lines that other parts have written since the last call."""
        for path in self._path.parent.glob("costs*.jsonl"):
            start = self._read.get(path, 0)
            if path != self._path and path.stat().st_size > start:
                with path.open("rb") as file:
                    file.seek(start)
                    content = file.read()
                self._others += self._sum(content)
                self._read[path] = start + content.rfind(b"\n") + 1

    def _sum(self, content: bytes) -> Spent:
        """Return the sum of all whole lines; remember the highest cost of a single reply."""
        total = Spent()
        for line in content[: content.rfind(b"\n") + 1].splitlines():
            reply = json.loads(line)
            total += Spent(reply["in"], reply["out"], reply["cost"])
            self._highest = max(self._highest, reply["cost"])
        return total

    def release(self, held: float) -> None:
        """Give back what `reserve` held."""
        with self._lock:
            self._held -= held

    def add(self, name: str, tokens_in: int, tokens_out: int) -> None:
        """Record a reply, used or not, for which the endpoint counted tokens."""
        cost = tokens_in * self._prices[0] + tokens_out * self._prices[1]
        line = {"id": name, "in": tokens_in, "out": tokens_out, "cost": cost}
        with self._lock:
            self._file.write(json.dumps(line).encode() + b"\n")
            self._file.flush()
            self.own += Spent(tokens_in, tokens_out, cost)
            self._highest = max(self._highest, cost)

    def close(self) -> None:
        """Close the file."""
        self._file.close()
