"""What requests to paid endpoints have cost, on disk, and when to stop."""

import json
import threading
from pathlib import Path

from ml_collections import ConfigDict

from tpo_jax.curation.speakers import Stop


class Ledger:
    """Tokens and costs, one line per reply in an append-only file; safe for threads.

    Before a request, `reserve` holds back as much as the dearest one so far has cost, so that
    requests in flight do not overrun the limit together.

    Args:
        path: of the file; what it holds counts.
        prices: section `openai` of the config; `price_in` and `price_out` per million tokens.
        limit: most that may be spent; 0: no limit.
    """

    def __init__(self, path: Path, prices: ConfigDict, limit: float):
        self.limit = limit
        self.spent, self._held, self._dearest = 0.0, 0.0, 0.0
        self._prices = prices.price_in / 1e6, prices.price_out / 1e6
        self._lock = threading.Lock()
        if limit and not sum(self._prices):
            raise Stop("--max_cost needs openai.price_in and openai.price_out")
        self._file = path.open("a+b")
        self._file.seek(0)
        content = self._file.read()
        self._file.truncate(content.rfind(b"\n") + 1)  # a line that a kill cut
        for line in content.splitlines()[: content.count(b"\n")]:
            self.spent += json.loads(line)["cost"]

    def reserve(self) -> float:
        """Holds back the costs of a request and returns them, for `add` or `release`.

        Raises:
            Stop: the limit is reached.
        """
        with self._lock:
            if self.limit and self.spent + self._held + self._dearest >= self.limit:
                raise Stop(
                    f"--max_cost={self.limit:g}: {self.spent:.4f} spent, another request might go "
                    "beyond; raise it to go on"
                )
            self._held += self._dearest
            return self._dearest

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
            self.spent += cost
            self._dearest = max(self._dearest, cost)

    def close(self) -> None:
        """Closes the file."""
        self._file.close()
