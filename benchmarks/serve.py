"""Load the server: rates with batching on and off, and malicious clients.

    python benchmarks/serve.py [--clients=64] [--output=docs/results/reliability.md]

A tiny random model served by `python -m tpo_jax.serve` in a process of its own. Prints a section in
Markdown; with `--output` it replaces the section "Serving" of that file.
"""

import asyncio
import contextlib
import logging
import os
import re
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import httpx
import numpy as np
from absl import app, flags

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from tpo_jax import families
from tpo_jax.checkpoints.models import save_model
from tpo_jax.worlds.tokenizer import save_tokenizer, train_tokenizer
from tpo_jax.worlds.world import make_videos

ROOT = Path(__file__).resolve().parents[1]
CLIENTS = flags.DEFINE_integer("clients", 64, "Clients at a time, at most.", lower_bound=8)
OUTPUT = flags.DEFINE_string("output", None, "File whose section is replaced.")

VIDEOS, FRAMES, NEW, BATCH = 4, 8, 16, 8
REPEATS = 3
GIGABYTE, PIECE = 1 << 30, b" " * (1 << 16)
HEADING = "## Serving\n"


def make_folder(folder: Path) -> list[str]:
    """Make a model and videos; return the paths of the videos."""
    words = ["What happens?", "Who is there, and when?", "Is it red or blue?"]
    save_tokenizer(train_tokenizer(words, vocab_size=270), folder / "tokenizer")
    config = families.preset("tiny_llava_video")
    save_model(folder / "model", config, families.init_params(config, 0), folder / "tokenizer")
    made = make_videos(folder / "videos", seed=0, seconds=[10] * VIDEOS, workers=1)
    return [str(Path(video.path).resolve()) for video in made]


@contextlib.contextmanager
def serving(folder: Path, max_batch: int) -> Iterator[tuple[str, int]]:
    """Return the server's address and process id."""
    values = {"checkpoint": folder / "model", "media_folders": folder / "videos", "port": 0}
    values |= {"num_frames": FRAMES, "max_new_tokens": NEW, "max_batch": max_batch}
    command = [sys.executable, "-m", "tpo_jax.serve", *(f"--{k}={v}" for k, v in values.items())]
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    process = subprocess.Popen(
        command, cwd=ROOT, env=environment, stdout=subprocess.PIPE, text=True
    )
    assert process.stdout
    try:
        yield process.stdout.readline().strip(), process.pid
    finally:
        process.terminate()
        process.wait(30)


def request(question: str, video: str, **more) -> dict:
    """Return the body of a request."""
    part = {"type": "video_url", "video_url": {"url": video}}
    content = [part, {"type": "text", "text": question}]
    return {"model": "model", "messages": [{"role": "user", "content": content}], **more}


def http(url: str) -> httpx.AsyncClient:
    """Return a client without limits of its own."""
    limits = httpx.Limits(max_connections=None)
    return httpx.AsyncClient(base_url=url, timeout=300, limits=limits, trust_env=False)


async def ask(client: httpx.AsyncClient, body: dict) -> tuple[str, float]:
    """The answer, or the status if there is none, and its seconds."""
    began = time.perf_counter()
    reply = await client.post("/v1/chat/completions", json=body)
    seconds = time.perf_counter() - began
    if reply.status_code != 200:
        return f"status {reply.status_code}", seconds
    return reply.json()["choices"][0]["message"]["content"], seconds


def questions(count: int, videos: list[str]) -> list[dict]:
    """Yield different questions about the videos in turn; half of the answers are sampled."""
    letters = "abcdefghijklmnopqrstuvwxyz"
    texts = [f"{letters[i % 26] * (1 + i // 26)}: what happens?" for i in range(count)]
    draws = [{"temperature": 1.5, "seed": i} if i // len(videos) % 2 else {} for i in range(count)]
    return [request(texts[i], videos[i % len(videos)], **draws[i]) for i in range(count)]


async def load(url: str, bodies: list[dict], clients: int) -> tuple[list[str], np.ndarray, float]:
    """Answers, latencies and the time of all requests, so many under way at a time."""
    places = asyncio.Semaphore(clients)
    async with http(url) as client:

        async def one(body: dict) -> tuple[str, float]:
            async with places:
                return await ask(client, body)

        began = time.perf_counter()
        results = await asyncio.gather(*map(one, bodies))
        seconds = time.perf_counter() - began
    return [text for text, _ in results], np.array([s for _, s in results]), seconds


async def measure(url: str, videos: list[str], batching: bool) -> tuple[list[list[str]], list[str]]:
    """Rows of rates, and the answers of the most clients."""
    rows, answers = [], []
    for name, shown in (("one video", videos[:1]), (f"{VIDEOS} videos", videos)):
        bodies = questions(CLIENTS.value, shown)
        for clients in (1, 8, CLIENTS.value):
            asked = bodies[: 32 if clients < CLIENTS.value else None]
            runs = [await load(url, asked, clients) for _ in range(1 + REPEATS)]
            # The first run compiles what is new; others may still meet a new size of batch.
            answers, seconds, took = sorted(runs[1:], key=lambda run: run[2])[REPEATS // 2]
            p50, p95 = np.percentile(seconds, [50, 95])
            times = [f"{len(asked) / took:.1f}", f"{p50 * 1e3:.0f}", f"{p95 * 1e3:.0f}"]
            rows.append(["on" if batching else "off", name, str(clients), *times])
    return rows, answers


async def flood(url: str, announced: bool) -> tuple[int, int]:
    """Sends a body that does not end before a gigabyte; the status, and bytes sent till then."""
    host, port = re.fullmatch(r"http://(.+):(\d+)", url).groups()  # type: ignore[union-attr]
    reader, writer = await asyncio.open_connection(host, int(port))
    length = f"content-length: {GIGABYTE}" if announced else "transfer-encoding: chunked"
    head = f"POST /v1/chat/completions HTTP/1.1\r\nhost: {host}\r\n{length}\r\n"
    writer.write(f"{head}content-type: application/json\r\n\r\n".encode())
    answer, sent = asyncio.ensure_future(reader.readline()), 0
    with contextlib.suppress(OSError):
        while not answer.done() and sent < GIGABYTE:
            writer.write(PIECE if announced else b"10000\r\n" + PIECE + b"\r\n")
            await writer.drain()
            sent += len(PIECE)
            await asyncio.sleep(0)
    try:
        status = int((await answer).split()[1])
    except (OSError, IndexError):
        status = 0  # the connection was closed before the status could be read
    writer.close()
    return status, sent


async def leave(client: httpx.AsyncClient, body: dict) -> None:
    """Closes the connection after the first piece of an answer."""
    where = "/v1/chat/completions"
    async with client.stream("POST", where, json=body | {"stream": True}) as reply:
        async for _ in reply.aiter_bytes():
            break


def memory(pid: int, name: str = "VmRSS") -> float:
    """Return MB of a process."""
    text = Path(f"/proc/{pid}/status").read_text()
    return int(re.search(rf"{name}:\s+(\d+)", text)[1]) / 1024  # type: ignore[index]


async def abuse(url: str, pid: int, videos: list[str], alone: list[str]) -> list[str]:
    """Lines: what became of bad clients, and of good ones beside them."""
    bodies = questions(len(alone), videos)
    broken = {"type": "image_url", "image_url": {"url": "data:image/png;base64,?"}}
    bad = request("Why?", videos[0])
    bad["messages"][0]["content"][0] = broken
    before = memory(pid)
    async with http(url) as client:
        good = asyncio.ensure_future(load(url, bodies, 16))
        leaving = asyncio.gather(*(leave(client, body) for body in bodies[:16]))
        floods = asyncio.gather(*(flood(url, announced) for announced in [True] * 8 + [False] * 4))
        wrong = await asyncio.gather(*(ask(client, bad) for _ in range(32)))
        await leaving
        statuses = await floods
        texts, _, _ = await good
        counted = (await client.get("/metrics")).text
        waiting = re.search(r"^tpo_jax_waiting_questions (\S+)", counted, re.M)
        left = re.search(r"^tpo_jax_disconnected_total (\S+)", counted, re.M)
    announced, endless = statuses[:8], statuses[8:]
    right = sum(a == b for a, b in zip(texts, alone, strict=True))
    peak = memory(pid, "VmHWM")
    return [
        f"| 16 disconnect after the first chunk | {float(left[1]):.0f} counted, "  # type: ignore[index]
        f"{float(waiting[1]):.0f} questions left in the queue |",  # type: ignore[index]
        f"| 8 announce 1 GB and send it | {counts(s for s, _ in announced)}, after at most "
        f"{max(n for _, n in announced) / 2**20:.1f} MB sent |",
        f"| 4 send chunks without an end | {counts(s for s, _ in endless)}, after at most "
        f"{max(n for _, n in endless) / 2**20:.1f} MB sent (64 MB are allowed) |",
        f"| 32 send broken base64 | {counts(text for text, _ in wrong)} |",
        f"| {len(alone)} valid questions meanwhile, 16 at a time | {right} get the same answer as "
        "alone |",
        f"| memory of the server | {before:.0f} MB before, {peak:.0f} MB at its peak |",
    ]


def counts(values) -> str:
    """Return `8 × 413`; 0 is a connection closed before the status could be read."""
    values = [f"status {v}" if isinstance(v, int) else v for v in values]
    shown = {"status 0": "closed unread"}
    return ", ".join(f"{values.count(v)} × {shown.get(v, v)}" for v in dict.fromkeys(values))


def run(folder: Path) -> str:
    """Return the section of the page."""
    videos = make_folder(folder)
    began = os.getloadavg()[0]
    with serving(folder, 1) as (url, _):
        off, _ = asyncio.run(measure(url, videos, False))
        alone, _, _ = asyncio.run(load(url, questions(CLIENTS.value, videos), 1))
    with serving(folder, BATCH) as (url, pid):
        on, together = asyncio.run(measure(url, videos, True))
        lines = asyncio.run(abuse(url, pid, videos, alone))
    lost = sum(text.startswith("status") for text in together)
    mixed = sum(a != b for a, b in zip(together, alone, strict=True)) - lost
    command = "python benchmarks/serve.py --output=docs/results/reliability.md"
    if xla := os.environ.get("XLA_FLAGS"):
        command = f'XLA_FLAGS="{xla}" {command}'
    head = ["batching", "asked about", "clients", "requests/s", "p50, ms", "p95, ms"]
    table = [head, ["---"] * len(head), *off, *on]
    return f"""{HEADING}
Written by `{command}`: `tiny_llava_video`
with random weights, {FRAMES} frames, answers of at most {NEW} tokens, half of them greedy and half
sampled, batches of at most {BATCH}. Server and clients shared {os.cpu_count()} CPU cores with other
programs: load average {began:.1f} at the start and {os.getloadavg()[0]:.1f} at the end. Medians of
{REPEATS} runs on a busy machine: they vary from run to run and can only be compared with each
other. A single client pays the milliseconds for which a question waits for others.

{chr(10).join("| " + " | ".join(row) + " |" for row in table)}

{CLIENTS.value} clients at a time about {VIDEOS} videos, each with its own question
({len(set(alone))} different answers): {lost} lost, {mixed} that differ from the
answer to the same question alone on a server without batching.

| malicious clients, all at a time | result |
| --- | --- |
{chr(10).join(lines)}
"""


def main(argv: list[str]) -> None:
    """Measure, print and write."""
    del argv
    logging.getLogger("httpx").setLevel(logging.WARNING)
    with tempfile.TemporaryDirectory() as directory:
        section = run(Path(directory))
    print(section, end="")
    if OUTPUT.value:
        path = Path(OUTPUT.value)
        text = path.read_text(encoding="utf-8") if path.exists() else "# Reliability, measured\n\n"
        before, _, rest = text.partition(HEADING)
        after = rest[rest.index("\n## ") + 1 :] if "\n## " in rest else ""
        path.write_text(before + section + ("\n" + after if after else ""), encoding="utf-8")


if __name__ == "__main__":
    app.run(main)
