"""An OpenAI-compatible endpoint in a thread: scripted replies in all roles, faults on demand."""

import hashlib
import json
import re
import threading
import time
from collections import Counter
from collections.abc import Callable
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

FAULTS = ("timeout", "429", "500", "html", "cut", "hang up")


def words(body: dict) -> tuple[str, int]:
    """Return the text of a request and its number of images."""
    (message,) = body["messages"]
    texts = [part["text"] for part in message["content"] if part["type"] == "text"]
    images = [part for part in message["content"] if part["type"] == "image_url"]
    assert all(i["image_url"]["url"].startswith("data:image/jpeg;base64,") for i in images)
    return "\n".join(texts), len(images)


def play(body: dict) -> str:
    """Return a reply that depends on the request alone; some verdicts are no, some are prose."""
    text, images = words(body)
    pictures = json.dumps(body["messages"])
    number = int(hashlib.sha256(pictures.encode()).hexdigest()[:8], 16)
    if text.startswith("These frames"):
        return f"A person walks past {number % 97} lamps." if images else "?"
    if text.startswith("Below is a description"):
        lamps = re.search(r"past (\d+) lamps", text)[1]
        focus = hashlib.sha256(text.encode()).hexdigest()[:4]
        if number % 7 == 0:
            return "None"
        return f"Q: What is seen past lamp {lamps} in {focus}?\nA: {lamps} lamps."
    if text.startswith("You check training data"):
        if number % 6 == 0:
            return "Both answers have their merits."
        return "1: Yes\n2: No\n3: Yes" if number % 5 else "1: No\n2: No\n3: Yes"
    return f"It shows {number % 1000} lamps."


class Endpoint:
    """Counts what the server is asked and says how it behaves."""

    def __init__(self) -> None:
        self.asked: Counter[str] = Counter()  # by text and images
        self.calls = 0
        self.reply: Callable[[dict], str] = play
        self.fault: Callable[[int, str], str] = lambda call, key: ""
        self.status = 0
        self.delay = 0.0
        self.most_at_once = 0
        self._now = 0
        self.lock = threading.Lock()
        self.url = ""


@contextmanager
def serve():
    """Run a server; yield its `Endpoint`."""
    endpoint = Endpoint()

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def do_POST(self):
            with endpoint.lock:
                endpoint._now += 1
                endpoint.most_at_once = max(endpoint.most_at_once, endpoint._now)
            try:
                self._reply()
            finally:
                with endpoint.lock:
                    endpoint._now -= 1

        def _reply(self):
            body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
            assert self.headers["Authorization"] == "Bearer secret"
            key = hashlib.sha256(json.dumps(body["messages"]).encode()).hexdigest()
            with endpoint.lock:
                endpoint.calls += 1
                call, fault = endpoint.calls, endpoint.fault(endpoint.calls, key)
                if not fault:
                    endpoint.asked[key] += 1
            time.sleep(endpoint.delay)
            if endpoint.status:
                return self._send(endpoint.status, "application/json", b'{"error": {}}')
            choice = {
                "index": 0,
                "finish_reason": "stop",
                "message": {"role": "assistant", "content": endpoint.reply(body)},
            }
            whole = {
                "id": str(call),
                "object": "chat.completion",
                "created": 0,
                "model": body["model"],
                "choices": [choice],
                "usage": {"prompt_tokens": 100, "completion_tokens": 10, "total_tokens": 110},
            }
            data = json.dumps(whole).encode()
            if fault == "timeout":
                time.sleep(1.0)
            elif fault == "429":
                return self._send(429, "application/json", b"{}", {"Retry-After": "0"})
            elif fault == "500":
                return self._send(500, "text/plain", b"oops")
            elif fault == "html":
                return self._send(200, "text/html", b"<html><body>Login</body></html>")
            elif fault == "cut":
                return self._send(200, "application/json", data[: len(data) // 2])
            elif fault == "hang up":
                self.close_connection = True
                return self.connection.close()
            return self._send(200, "application/json", data)

        def _send(self, status, kind, data, headers=None):
            self.send_response(status)
            for name, value in {"Content-Type": kind, **(headers or {})}.items():
                self.send_header(name, value)
            self.send_header("Content-Length", str(len(data)))
            self.end_headers()
            self.wfile.write(data)

        def log_message(self, *_):
            pass

    class Server(ThreadingHTTPServer):
        daemon_threads = True

        def handle_error(self, *_):  # the client has disconnected
            pass

    server = Server(("127.0.0.1", 0), Handler)
    endpoint.url = f"http://127.0.0.1:{server.server_port}/v1"
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02})
    thread.start()
    try:
        yield endpoint
    finally:
        server.shutdown()
        thread.join()
        server.server_close()
