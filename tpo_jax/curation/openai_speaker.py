"""A role played by an endpoint with OpenAI's chat interface; frames go along as JPEG images."""

import base64
import os
import threading
from collections.abc import Iterable, Iterator
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from typing import Any

import cv2
import numpy as np
from ml_collections import ConfigDict

from tpo_jax.curation.ledger import Ledger
from tpo_jax.curation.speakers import Clip, Failure, Request, Stop, try_read
from tpo_jax.errors import InputError

LONGEST_WAIT = 60.0  # seconds between two tries


class _Fault(Exception):
    """A try that failed in a way that another may not; `after`: seconds to wait, at least."""

    def __init__(self, reason: str, after: float = 0.0):
        super().__init__(reason)
        self.after = after


class OpenAISpeaker:
    """Asks an endpoint, several requests at a time.

    Timeouts, broken connections, status 408, 409, 429 and 5xx, and replies that are no whole JSON
    are tried again, `retries` times, with waits that double. Then the request is given up. After
    `patience` requests in a row were given up the endpoint is taken to be down, and none of them
    is reported as failed: a later run asks them again.

    Args:
        settings: section `openai` of the config.
        role: section of the role.
        model: the endpoint's name of the model.
        ledger: what replies cost.

    Raises:
        InputError: no address or key, or the `openai` package is missing.
    """

    def __init__(self, settings: ConfigDict, role: ConfigDict, model: str, ledger: Ledger):
        try:
            import openai
        except ImportError as error:
            raise InputError("backend 'openai' needs pip install 'tpo_jax[curation]'") from error
        if not settings.url:
            raise InputError("openai.url is empty: set the endpoint's address, as http://HOST/v1")
        if not (key := os.environ.get(settings.key_variable)):
            raise InputError(f"the environment variable {settings.key_variable} holds no key")
        self._openai = openai
        self._client = openai.OpenAI(
            api_key=key, base_url=settings.url, timeout=settings.timeout, max_retries=0
        )
        self._settings, self._role, self._model, self._ledger = settings, role, model, ledger
        self._stopped = threading.Event()

    def replies(self, requests: Iterable[Request]) -> Iterator[tuple[Request, str | Failure]]:
        """Replies in the order they come; at most `concurrency` requests are under way."""
        rest, running = iter(requests), dict[Future, Request]()
        given_up: list[tuple[Request, Failure]] = []
        stop: Stop | None = None
        pool = ThreadPoolExecutor(max(1, self._settings.concurrency))
        try:
            while True:
                while stop is None and len(running) < self._settings.concurrency:
                    if (request := next(rest, None)) is None:
                        break
                    running[pool.submit(self._ask, request)] = request
                if not running:
                    break
                for future in wait(running, return_when=FIRST_COMPLETED).done:
                    request = running.pop(future)
                    try:
                        reply, fault = future.result()
                    except Stop as error:  # what is still under way is paid for and is waited for
                        stop = error
                        continue
                    if fault:
                        given_up.append((request, reply))
                    else:
                        yield from given_up
                        given_up.clear()
                        yield request, reply
                if len(given_up) >= self._settings.patience:
                    stop = Stop(
                        f"{self._settings.url}: {len(given_up)} requests in a row failed, the "
                        f"last: {given_up[-1][1].reason}; run again to go on"
                    )
                    self._stopped.set()
            if stop is not None:
                raise stop
            yield from given_up
        finally:
            self._stopped.set()
            pool.shutdown(cancel_futures=True)
            self._client.close()

    def _ask(self, request: Request) -> tuple[Any, bool]:
        """(text or failure, whether the endpoint is to blame)."""
        content: list[dict] = [{"type": "text", "text": request.prompt}]
        if request.clip is not None:
            images = self._images(request.clip)
            if isinstance(images, Failure):
                return images, False
            content = images + content
        reason = ""
        for attempt in range(self._settings.retries + 1):
            held = self._ledger.reserve()
            try:
                return self._try(request, content)
            except _Fault as fault:
                reason = str(fault)
                pause = min(self._settings.backoff * 2**attempt, LONGEST_WAIT)
                pause = max(pause * (1 + 0.25 * np.random.random()), fault.after)
            finally:
                self._ledger.release(held)
            last = attempt == self._settings.retries
            if not last and self._stopped.wait(min(pause, LONGEST_WAIT)):
                break
        return Failure(f"given up after {self._settings.retries + 1} tries: {reason}"), True

    def _try(self, request: Request, content: list[dict]) -> tuple[Any, bool]:
        openai = self._openai
        try:
            reply = self._client.chat.completions.create(
                model=self._model,
                messages=[{"role": "user", "content": content}],  # type: ignore[list-item,misc]
                max_tokens=self._role.max_new_tokens,
                temperature=self._role.temperature,
                seed=request.seed,
            )
        except openai.APIStatusError as error:
            status = error.status_code
            if status in (401, 403, 404):
                raise Stop(
                    f"{self._settings.url}: refused with status {status}; look at openai.url, "
                    f"openai.model and {self._settings.key_variable}"
                ) from error
            if status in (408, 409, 429) or status >= 500:
                after = error.response.headers.get("retry-after", "")
                seconds = float(after) if after.isdecimal() else 0.0
                raise _Fault(f"status {status}", seconds) from error
            return Failure(f"refused with status {status}: {_line(error.message)}"), False
        except openai.APIConnectionError as error:
            raise _Fault(f"no reply: {_line(error)}") from error
        except (openai.OpenAIError, ValueError) as error:  # a body that is no JSON, or cut
            raise _Fault(f"not a chat completion: {_line(error)}") from error
        # The client hands out whatever came with status 200, a page in HTML as a string.
        choices = getattr(reply, "choices", None)
        if not choices or getattr(choices[0], "message", None) is None:
            raise _Fault(f"not a chat completion: {_line(reply)}")
        if usage := getattr(reply, "usage", None):
            self._ledger.add(request.id, usage.prompt_tokens, usage.completion_tokens)
        text = choices[0].message.content
        if choices[0].finish_reason == "length":
            return Failure(f"longer than {self._role.max_new_tokens} tokens: {_line(text)}"), False
        if not isinstance(text, str):
            return Failure("a reply without text"), False
        return text, False

    def _images(self, clip: Clip) -> list[dict] | Failure:
        frames = try_read(clip)
        if isinstance(frames, Failure):
            return frames
        parts = []
        for frame in frames:
            scale = min(1.0, self._settings.image_size / max(frame.shape[:2]))
            size = (max(1, round(frame.shape[1] * scale)), max(1, round(frame.shape[0] * scale)))
            small = cv2.resize(frame, size, interpolation=cv2.INTER_AREA) if scale < 1 else frame
            data = base64.b64encode(cv2.imencode(".jpg", small[..., ::-1])[1].tobytes()).decode()
            url = {"url": f"data:image/jpeg;base64,{data}"}
            parts.append({"type": "image_url", "image_url": url})
        return parts


def _line(text: Any) -> str:
    words = " ".join(str(text).split())
    return words if len(words) <= 100 else words[:97] + "..."
