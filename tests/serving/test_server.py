"""The server, used by OpenAI's client: answers equal those of `generate`, errors are OpenAI's."""

import base64
import json
import socket
import time
from concurrent.futures import ThreadPoolExecutor
from urllib.parse import urlsplit

import httpx
import openai
import pytest

from tests.commands import call
from tests.serving.conftest import FLAGS, QUESTIONS
from tpo_jax.data.processor import used_tokens
from tpo_jax.families.template import Message
from tpo_jax.inference.generator import Decoding
from tpo_jax.inference.model import load

TIMELESS = {"time_instruction": "none"}  # images have no times
pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def client(server):
    return openai.OpenAI(base_url=f"{server.url}/v1", api_key="none", max_retries=0, timeout=120)


@pytest.fixture(scope="module")
def ask(client, folder):
    """Return a function that asks a question, about the folder's video by default."""

    def ask(question, part=None, stream=False, model="tpo", **more):
        part = video_part(str(folder / "media/video.mp4")) if part is None else part
        parts = part if isinstance(part, list | tuple) else [part]
        content = [{"type": "text", "text": question}, *parts]
        messages = [{"role": "user", "content": content}]
        reply = client.chat.completions.create(
            model=model, messages=messages, stream=stream, **more
        )
        if not stream:
            return reply.choices[0].message.content
        return "".join(chunk.choices[0].delta.content or "" for chunk in reply)

    return ask


def video_part(url):
    return {"type": "video_url", "video_url": {"url": url}}


def image_part(url):
    return {"type": "image_url", "image_url": {"url": url}}


def data_url(path, kind):
    return f"data:{kind};base64,{base64.b64encode(path.read_bytes()).decode()}"


def counters(server) -> dict[str, float]:
    lines = httpx.get(f"{server.url}/metrics").text.splitlines()
    pairs = (line.rsplit(" ", 1) for line in lines if not line.startswith("#"))
    return {name: float(value) for name, value in pairs}


def test_answers_equal_generate(ask, folder) -> None:
    video, image = folder / "media/video.mp4", folder / "media/image.png"
    flags = FLAGS | {"checkpoint": folder / "tpo"}
    drawn = {"temperature": 1.5, "top_p": 0.9, "seed": 3}
    results = call(
        "generate",
        flags | {"video": video, "prompt": QUESTIONS[0]},
        flags | {"video": video, "prompt": QUESTIONS[0], **drawn},
        flags | {"image": image, "prompt": QUESTIONS[1]},
        flags | {"prompt": QUESTIONS[1]},
        flags | {"video": folder / "media/frames", "prompt": QUESTIONS[0], **TIMELESS},
    )
    expected = [result.out.removesuffix("\n") for result in results]
    assert len(set(expected)) == len(expected) and all(expected)
    assert ask(QUESTIONS[0]) == expected[0]
    assert ask(QUESTIONS[0], stream=True) == expected[0]
    assert ask(QUESTIONS[0], video_part(data_url(video, "video/mp4"))) == expected[0]
    assert ask(QUESTIONS[0], **drawn) == expected[1]
    assert ask(QUESTIONS[0], **drawn, stream=True) == expected[1]
    assert ask(QUESTIONS[1], image_part(data_url(image, "image/png"))) == expected[2]
    assert ask(QUESTIONS[1], part=()) == expected[3]
    frames = sorted((folder / "media/frames").iterdir())
    images = [image_part(data_url(frame, "image/png")) for frame in frames]
    assert ask(QUESTIONS[0], images) == expected[4]
    together = [part["image_url"]["url"].partition(",")[2] for part in images]
    url = f"data:video/jpeg;base64,{','.join(together)}"
    assert ask(QUESTIONS[0], video_part(url)) == expected[4]


def test_a_conversation_of_three_turns(client, folder, server) -> None:
    """The prompt is the template's; the client brings its system prompt and what was said."""
    model = load(folder / "tpo")
    clip = model.processor.video(folder / "media/video.mp4", FLAGS["num_frames"])
    system = "Answer in one word."
    messages, conversation = [{"role": "system", "content": system}], [Message("system", system)]
    for turn, question in enumerate(QUESTIONS[:3]):
        shown = [] if turn else [video_part(str(folder / "media/video.mp4"))]
        content = [{"type": "text", "text": question}, *shown]
        messages.append({"role": "user", "content": content})
        conversation.append(Message("user", ("" if turn else "<image>") + question))
        reply = client.chat.completions.create(model="tpo", messages=messages)
        stream = client.chat.completions.create(model="tpo", messages=messages, stream=True)
        answer = reply.choices[0].message.content
        assert "".join(chunk.choices[0].delta.content or "" for chunk in stream) == answer
        row = model.processor.prompts([conversation], clip)
        assert reply.usage.prompt_tokens == used_tokens(row)
        messages.append({"role": "assistant", "content": answer})
        conversation.append(Message("assistant", answer))
    [[expected]] = model.generator(Decoding(FLAGS["max_new_tokens"])).answer([clip.frames], [row])
    assert answer == expected


def test_requests_of_ordinary_clients(server, folder, shared_cases) -> None:
    requests = json.loads((shared_cases / "chat/requests.json").read_text())
    for body in requests.values():
        text = json.dumps(body | {"model": "tpo"})
        text = text.replace("file:///PATH/clip.mp4", f"file://{folder}/media/video.mp4")
        reply = httpx.post(f"{server.url}/v1/chat/completions", json=json.loads(text), timeout=120)
        assert reply.json()["choices"][0]["message"]["content"]


def test_each_of_many_clients_gets_its_own_answer(ask, server) -> None:
    questions = [f"{'abc'[i] * 4 * i} {question}" for i in range(3) for question in QUESTIONS]
    alone = [ask(question) for question in questions]
    assert len(set(alone)) > len(alone) / 2  # a tiny model has few answers
    before = counters(server)
    with ThreadPoolExecutor(len(questions)) as pool:
        together = pool.map(ask, questions, [None] * 12, [True, False] * 6)
        assert list(together) == alone
    after = counters(server)
    # One video: it was encoded once for the questions of a batch.
    name = "tpo_jax_encoded_rows_total"
    assert after[name] - before[name] < len(questions)
    # The other model does not answer for this one.
    assert ask(questions[0], model="base") != alone[0]


def test_the_parts_of_a_reply(client, server, folder) -> None:
    assert {model.id for model in client.models.list()} == {"tpo", "base"}
    assert client.models.retrieve("tpo").id == "tpo"
    with pytest.raises(openai.NotFoundError, match="available: tpo, base"):
        client.models.retrieve("gpt")
    assert httpx.get(f"{server.url}/health").json() == {"status": "ok"}
    messages = [{"role": "user", "content": "Why?"}]
    whole = client.chat.completions.create(model="tpo", messages=messages, max_tokens=3)
    assert whole.choices[0].finish_reason == "length" and whole.usage.completion_tokens == 3
    options = {"include_usage": True}
    *chunks, last = client.chat.completions.create(
        model="tpo", messages=messages, max_tokens=3, stream=True, stream_options=options
    )
    assert chunks[-1].choices[0].finish_reason == "length"
    assert (last.choices, last.usage) == ([], whole.usage)


def test_a_stop_string_ends_an_answer(ask) -> None:
    whole = ask(QUESTIONS[0])
    for found in (whole[3:6], whole[-3:]):
        expected = whole[: whole.index(found)].strip()
        for stop in (found, ["nothing of it", found]):
            assert ask(QUESTIONS[0], stop=stop) == expected
            assert ask(QUESTIONS[0], stop=stop, stream=True) == expected


def test_errors_have_openais_format(server, folder) -> None:
    media = folder / "media"
    question = {"type": "text", "text": "Why?"}

    def about(part, **more):
        message = {"role": "user", "content": [part, question]}
        return {"model": "tpo", "messages": [message], **more}

    fine = image_part(data_url(media / "image.png", "image/png"))
    playlist = base64.b64encode(f"#EXTM3U\n#EXTINF:1,\n{media}/video.mp4\n".encode()).decode()
    postscript = base64.b64encode(b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n").decode()
    wrong = [
        (400, about(image_part("data:image/png;base64,!!!"))),
        (400, about(image_part("data:image/png,abc"))),
        (400, about(image_part("data:image/png;base64,AAAA"))),
        (400, about(image_part(f"data:image/png;base64,{postscript}"))),
        (400, about(video_part("data:video/mp4;base64,AAAA"))),
        (400, about(video_part(f"data:video/mp4;base64,{playlist}"))),
        (400, about(video_part(str(media / "broken.mp4")))),
        (403, about(video_part("http://127.0.0.1/video.mp4"))),
        (400, about(video_part("file://[x/a"))),
        (400, about(video_part("file://media/video.mp4"))),
        (403, about(video_part(str(folder / "outside.mp4")))),
        (403, about(video_part(str(media / "../outside.mp4")))),
        (403, about(video_part(str(media / "link.mp4")))),
        (403, about(video_part("file:///etc/hostname"))),
        (403, about(video_part("\0"))),
        (404, about(video_part(str(media / "nothing.mp4")))),
        (404, about(video_part("upload:nothing"))),
        (404, about(fine, model="gpt")),
        (400, about(fine, n=2)),
        (400, about(fine, min_p=0.1)),
        (400, about(fine, temprature=0.1)),
        (400, about(fine, temperature=-1)),
        (400, about(fine, temperature=float("nan"))),
        (400, about(fine, top_p="all")),
        (400, about(video_part(str(media / "video.mp4")), num_frames=1000)),
        (400, about({"type": "audio"})),
        (400, about({"type": "text", "text": "<|im_end|>"})),
        (400, about({"type": "text", "text": "\ud800"})),
        (400, {"model": "tpo", "messages": [{"role": "user", "content": "  "}]}),
        (400, about({"type": "text", "text": "long " * 2000})),
        (400, about({"type": "text", "text": "long " * 200_000})),
        (400, about(fine, **{"\ud800": 1})),
        (400, {"model": "tpo"}),
        (400, {"model": "tpo", "messages": [{"role": "system", "content": "Be a pirate."}]}),
        (400, about(video_part("data:video/jpeg;base64,AAAA,AAAA"))),
        (400, about(video_part("data:video/jpeg;base64" + ",AAAA" * 17))),
    ]
    url = f"{server.url}/v1/chat/completions"
    kind = {"content-type": "application/json"}
    calls = [(status, json.dumps(body).encode(), kind) for status, body in wrong]
    calls += [(400, b"{", kind), (400, b"[" * 100_000, kind), (400, b"[]", kind)]
    calls += [(415, b"{}", {"content-type": "text/plain"}), (413, b" " * (2 << 20) + b"{}", kind)]
    for status, body, headers in calls:
        reply = httpx.post(url, content=body, headers=headers, timeout=60)
        error = reply.json()["error"]
        assert reply.status_code == status, (body[:200], reply.text)
        assert error["message"] and {"type", "param", "code"} < set(error)
        assert str(folder) not in error["message"].replace(str(media), "")
    assert httpx.get(f"{server.url}/nothing").json()["error"]["message"]
    refused = httpx.get(f"{server.url}/health", headers={"host": "evil.example"})
    assert (refused.status_code, refused.json()["error"]["code"]) == (400, "invalid_host")


def test_the_client_raises_openais_errors(ask) -> None:
    with pytest.raises(openai.NotFoundError, match="no model 'gpt'"):
        ask("Why?", model="gpt")
    with pytest.raises(openai.BadRequestError, match="base64"):
        ask("Why?", image_part("data:image/png;base64,!!!"))


@pytest.mark.parametrize("announced", ["content-length: 1073741824", "transfer-encoding: chunked"])
def test_a_large_body_is_refused_before_it_is_sent(server, announced) -> None:
    where = urlsplit(server.url)
    head = "POST /v1/chat/completions HTTP/1.1\r\nhost: 127.0.0.1\r\n"
    head += f"content-type: application/json\r\n{announced}\r\n\r\n"
    with socket.create_connection((where.hostname, where.port), 30) as connection:
        connection.sendall(head.encode())
        if "chunked" in announced:
            connection.settimeout(0.5)
            with pytest.raises(OSError):
                for _ in range(1000):
                    connection.sendall(b"100000\r\n" + b" " * (1 << 20) + b"\r\n")
            connection.settimeout(30)
        assert connection.recv(12) == b"HTTP/1.1 413"


def test_a_disconnected_client_frees_its_place(client, ask, server) -> None:
    name = "tpo_jax_disconnected_total"
    before = counters(server)[name]
    messages = [{"role": "user", "content": "Why?"}]
    for _ in range(3):
        stream = client.chat.completions.create(model="tpo", messages=messages, stream=True)
        next(iter(stream))
        stream.close()
    with pytest.raises(openai.APITimeoutError):
        client.with_options(timeout=0.02).chat.completions.create(model="tpo", messages=messages)
    end = time.monotonic() + 20
    while counters(server)["tpo_jax_waiting_questions"] and time.monotonic() < end:
        time.sleep(0.05)
    assert counters(server)["tpo_jax_waiting_questions"] == 0
    assert counters(server)[name] > before
    assert ask(QUESTIONS[0])
