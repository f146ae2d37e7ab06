"""A client for endpoints with OpenAI's chat interface; frames are sent as JPEG images."""

import base64
import os
import random
import threading
from collections.abc import Callable, Iterable
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from typing import Any, NamedTuple

import cv2
import httpx2
import openai
from openai.types.chat import ChatCompletion

from tpo_jax.curation.clients import Failure, Replies, Request, Stop, VideoView
from tpo_jax.curation.config import OpenAI, Role
from tpo_jax.curation.ledger import Ledger
from tpo_jax.errors import InputError

LONGEST_WAIT = 60.0  # seconds between two tries
RETRIED = (408, 409, 429)  # and 5xx: statuses that `openai` tries again


class _Cancelled(Exception):
    """The client stops; requests that wait for another try are not sent."""


class _Reply(NamedTuple):
    """A text, or a failure and whether the endpoint is to blame for it."""

    text: str | Failure
    faulty: bool = False


class OpenAIClient:
    """Asks an endpoint, several requests at a time.

    `openai` itself retries timeouts, broken connections, status 408, 409, 429 and 5xx, and replies
    that are no chat completion, `settings.retries` times with waits that double; then the request
    fails. After `settings.patience` requests in a row have failed like this the endpoint is
    considered down: the client stops and reports none of them, so a later run asks them again.

    Args:
        settings: Section `openai` of the config.
        role: Section of the role.
        model: The endpoint's name of the model.
        ledger: Records what replies cost.

    Raises:
        InputError: The address or the key is missing.
    """

    def __init__(self, settings: OpenAI, role: Role, model: str, ledger: Ledger):
        if not settings.url:
            raise InputError("openai.url is empty: set the endpoint's address, as http://HOST/v1")
        if not (key := os.environ.get(settings.key_variable)):
            raise InputError(f"the environment variable {settings.key_variable} holds no key")
        self._settings, self._role, self._model, self._ledger = settings, role, model, ledger
        self._stopped = threading.Event()
        hooks: dict[str, list[Callable[..., None]]] = {
            "request": [self._check_running],
            "response": [self._check_response],
        }
        self._client = openai.OpenAI(
            api_key=key,
            base_url=settings.url,
            timeout=settings.timeout,
            max_retries=settings.retries,
            http_client=openai.DefaultHttpxClient(event_hooks=hooks),
        )

    def replies(self, requests: Iterable[Request]) -> Replies:
        """Yield replies in the order they come; at most `concurrency` requests are in flight."""
        rest, running = iter(requests), dict[Future[_Reply], Request]()
        failed: list[tuple[Request, Failure]] = []  # in a row, by the endpoint's fault
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
                        reply = future.result()
                    except Stop as error:  # requests in flight are paid for: wait for them
                        stop = error
                        continue
                    if reply.faulty and isinstance(reply.text, Failure):
                        failed.append((request, reply.text))
                    else:
                        yield from failed
                        failed.clear()
                        yield request, reply.text
                if stop is None and len(failed) >= self._settings.patience:
                    stop = Stop(
                        f"{self._settings.url}: {len(failed)} requests in a row failed, the "
                        f"last: {failed[-1][1].reason}; run the command again to resume"
                    )
                    self._stopped.set()
            if stop is not None:
                raise stop
            yield from failed
        finally:
            self._stopped.set()
            pool.shutdown(cancel_futures=True)
            self._client.close()

    def _ask(self, request: Request) -> _Reply:
        content: list[dict[str, Any]] = [{"type": "text", "text": request.prompt}]
        if request.clip is not None:
            images = self._images(request.clip)
            if isinstance(images, Failure):
                return _Reply(images)
            content = images + content
        held = self._ledger.reserve()
        try:
            return self._read(request, self._send(request, content))
        except openai.APIStatusError as error:
            return self._refusal(error)
        except openai.APIConnectionError as error:
            if isinstance(error.__cause__, httpx2.DecodingError):
                return self._given_up(str(error.__cause__))
            return self._given_up(f"no reply: {_line(error)}")
        except openai.OpenAIError as error:
            return self._given_up(f"not a chat completion: {_line(error)}")
        except _Cancelled:
            return self._given_up("the run stops")
        finally:
            self._ledger.release(held)

    def _send(self, request: Request, content: list[dict[str, Any]]) -> ChatCompletion:
        return self._client.chat.completions.create(
            model=self._model,
            messages=[{"role": "user", "content": content}],  # type: ignore[list-item,misc]
            max_tokens=self._role.max_new_tokens,
            temperature=self._role.temperature,
            seed=request.seed,
        )

    def _read(self, request: Request, reply: ChatCompletion) -> _Reply:
        if usage := reply.usage:
            self._ledger.add(request.id, usage.prompt_tokens, usage.completion_tokens)
        choice = reply.choices[0]
        text = choice.message.content
        if choice.finish_reason == "length":
            reason = f"longer than {self._role.max_new_tokens} tokens: {_line(text)}"
            return _Reply(Failure(reason))
        return _Reply(text if isinstance(text, str) else Failure("a reply without text"))

    def _refusal(self, error: openai.APIStatusError) -> _Reply:
        status = error.status_code
        if status in (401, 403, 404):
            raise Stop(
                f"{self._settings.url}: refused with status {status}; check openai.url, "
                f"openai.model and {self._settings.key_variable}"
            ) from error
        if status in RETRIED or status >= 500:
            return self._given_up(f"status {status}")
        return _Reply(Failure(f"refused with status {status}: {_line(error.message)}"))

    def _given_up(self, reason: str) -> _Reply:
        tries = self._settings.retries + 1
        return _Reply(Failure(f"given up after {tries} tries: {reason}"), faulty=True)

    def _check_running(self, request: httpx2.Request) -> None:
        """Send nothing more, not even another try, once the client has stopped."""
        if self._stopped.is_set():
            raise _Cancelled

    def _check_response(self, response: httpx2.Response) -> None:
        """Make `openai` retry what it would not, and wait as configured after an error status.

        Raises:
            DecodingError: Status 200 with a body that is no chat completion, such as a login page
                or cut JSON. `openai` treats it as a broken connection.
        """
        if response.is_error:
            attempt = int(response.request.headers.get("x-stainless-retry-count", 0))
            pause = self._settings.backoff * 2**attempt * (1 + 0.25 * random.random())
            after = response.headers.get("retry-after", "")
            pause = max(pause, float(after) if after.isdecimal() else 0.0)
            response.headers["retry-after-ms"] = f"{1000 * min(pause, LONGEST_WAIT)}"
            return
        response.read()
        try:
            whole = response.json()["choices"][0]["message"] is not None
        except (ValueError, TypeError, LookupError):
            whole = False
        if not whole:
            reason = f"not a chat completion: {_line(response.text)}"
            raise httpx2.DecodingError(reason, request=response.request)

    def _images(self, clip: VideoView) -> list[dict[str, Any]] | Failure:
        sample = clip.read()
        if isinstance(sample, Failure):
            return sample
        parts: list[dict[str, Any]] = []
        for frame in sample.frames:
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
