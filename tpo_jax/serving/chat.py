"""Chat completions: turn a request into a job of the engine, and its answer into JSON or events."""

import asyncio
import json
import time
from collections.abc import AsyncGenerator, AsyncIterator, Coroutine, Mapping
from contextlib import aclosing
from typing import Any, TypeVar

from starlette.requests import Request
from starlette.responses import JSONResponse, Response, StreamingResponse
from starlette.types import Send

from tpo_jax.errors import InputError
from tpo_jax.inference.generator import Answer
from tpo_jax.serving.batching import Engine, Job
from tpo_jax.serving.errors import ApiError
from tpo_jax.serving.fields import short
from tpo_jax.serving.intake import Intake
from tpo_jax.serving.metrics import Metrics
from tpo_jax.serving.models import ServedModel
from tpo_jax.serving.protocol import ChatRequest, Reply, parse_chat
from tpo_jax.serving.settings import ServerSettings

T = TypeVar("T")


class Listener:
    """Receives the states of one answer on the event loop, for one client."""

    def __init__(self, engine: Engine, metrics: Metrics, began: float):
        self.engine, self.metrics, self.began = engine, metrics, began
        self.loop, self.states = asyncio.get_running_loop(), asyncio.Queue[Answer | ApiError]()
        self.finished = False

    def ask(self, job: Job) -> None:
        """Queue a question; raise `ApiError` if the queue is full."""
        self.job = job
        self.engine.submit(job)

    def deliver(self, state: Answer | ApiError) -> None:
        """Pass on a state; called from the engine's thread."""
        self.loop.call_soon_threadsafe(self.states.put_nowait, state)

    async def answers(self) -> AsyncGenerator[Answer, None]:
        """Yield every state of the answer; raise `ApiError` if it failed."""
        first = True
        while not self.finished:
            state = await self.states.get()
            if isinstance(state, ApiError):
                self.finished = True
                raise state
            self.finished = state.finished
            if first:
                self.metrics.first.observe(time.monotonic() - self.began)
            first = False
            yield state
        self.metrics.seconds.observe(time.monotonic() - self.began)

    async def last(self) -> Answer:
        """Return the finished answer."""
        states = [answer async for answer in self.answers()]
        return states[-1]

    def close(self) -> None:
        """Stop listening: an unfinished answer is cancelled."""
        self.job.wanted = False
        if not self.finished:
            self.metrics.disconnected.inc()


class Events(StreamingResponse):
    """Server-sent events of one answer; closes the listener however the client disconnects."""

    def __init__(self, listener: Listener, reply: Reply, include_usage: bool):
        self.listener = listener
        headers = {"cache-control": "no-cache", "x-accel-buffering": "no"}
        events = _events(listener, reply, include_usage)
        super().__init__(events, media_type="text/event-stream", headers=headers)

    async def stream_response(self, send: Send) -> None:
        """Send the events, then close the listener."""
        try:
            await super().stream_response(send)
        finally:
            self.listener.close()


async def _events(listener: Listener, reply: Reply, include_usage: bool) -> AsyncIterator[str]:
    def event(value: dict) -> str:
        return f"data: {json.dumps(value)}\n\n"

    yield event(reply.chunk({"role": "assistant", "content": ""}))
    sent, answer = "", None
    try:
        async with aclosing(listener.answers()) as answers:
            async for answer in answers:
                if len(answer.text) > len(sent):
                    yield event(reply.chunk({"content": answer.text[len(sent) :]}))
                    sent = answer.text
    except ApiError as error:
        yield event(error.body())
    else:
        assert answer
        yield event(reply.chunk({}, answer))
        if include_usage:
            yield event(reply.usage_chunk(answer.tokens))
    yield "data: [DONE]\n\n"


async def unless_gone(request: Request, work: Coroutine[Any, Any, T]) -> T:
    """Return the result of `work`, which is cancelled if the client disconnects.

    The request's body has been read before.
    """

    async def gone() -> None:
        while (await request.receive())["type"] != "http.disconnect":
            pass

    task, leaving = asyncio.ensure_future(work), asyncio.ensure_future(gone())
    try:
        await asyncio.wait({task, leaving}, return_when=asyncio.FIRST_COMPLETED)
        if not task.done():
            raise ApiError(499, "the client disconnected")
        return task.result()
    finally:
        task.cancel()
        leaving.cancel()


class Chat:
    """The handler of `/v1/chat/completions`."""

    def __init__(
        self,
        models: dict[str, ServedModel],
        settings: ServerSettings,
        engine: Engine,
        intake: Intake,
        metrics: Metrics,
    ):
        self.models, self.settings, self.engine = models, settings, engine
        self.intake, self.metrics = intake, metrics

    async def answer(self, request: Request) -> Response:
        """Answer one request."""
        listener = Listener(self.engine, self.metrics, time.monotonic())
        job, asked = await self._prepare(request, listener)
        listener.ask(job)
        reply = Reply(asked.model, job.prompt_tokens)
        if asked.stream:
            return Events(listener, reply, asked.include_usage)
        try:
            whole = await unless_gone(request, listener.last())
        finally:
            listener.close()
        return JSONResponse(reply.whole(whole))

    async def _prepare(self, request: Request, listener: Listener) -> tuple[Job, ChatRequest]:
        """Return the question with everything it names decoded.

        Not cancelled if the client disconnects: others may wait for the same video.
        """
        with self.intake.reserved(request):
            body = await self.intake.json(request)
            asked = await asyncio.to_thread(parse_chat, body, self.settings)
            model = find_model(self.models, asked.model)
            visual = await self.intake.look(model, asked.shown, asked.num_frames)
        try:
            row = await asyncio.to_thread(model.row, [asked.conversation], visual)
        except InputError as error:
            raise ApiError(400, str(error), "invalid_value", "messages") from error
        job = Job(
            *(model, visual, asked.conversation, row, asked.sampling, asked.seed),
            *(asked.max_tokens, asked.stop, listener.deliver),
        )
        return job, asked


def find_model(models: Mapping[str, ServedModel], name: str) -> ServedModel:
    """Return the model of that name; raise `ApiError` if there is none."""
    if name not in models:
        known = ", ".join(models)
        message = f"no model {short(name)!r}; available: {known}"
        raise ApiError(404, message, "model_not_found", "model")
    return models[name]
