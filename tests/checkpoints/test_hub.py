"""Names on the Hugging Face Hub in place of folders: a Hub that the test serves, and a cache that
was filled beforehand.
"""

import hashlib
import http.server
import json
import os
import subprocess
import sys
import threading
import urllib.parse
from pathlib import Path

import jax
import numpy as np
import pytest

from tpo_jax import families
from tpo_jax.checkpoints.huggingface_export import export_model
from tpo_jax.checkpoints.models import load_model
from tpo_jax.families.llava_qwen.config import LlavaQwenConfig

ROOT = Path(__file__).resolve().parents[2]
COMMIT = hashlib.sha1(b"commit").hexdigest()
REPOSITORY, REVISION, TOKEN = "someone/tiny-video-model", "v1.0", "hf_secret"


class Hub(http.server.BaseHTTPRequestHandler):
    """One repository behind a token, as the Hub serves it."""

    folder: Path
    requests: list[str]

    def do_HEAD(self):
        self.answer(body=False)

    def do_GET(self):
        self.answer(body=True)

    def answer(self, body):
        path = urllib.parse.unquote(urllib.parse.urlparse(self.path).path)
        self.requests.append(path)
        files = {str(p.relative_to(self.folder)): p for p in self.folder.rglob("*") if p.is_file()}
        resolve = f"/{REPOSITORY}/resolve/{COMMIT}/"
        if self.headers.get("Authorization") != f"Bearer {TOKEN}":
            return self.reply(401, b"{}", {"X-Error-Code": "RepoNotFound"}, body)
        if path == f"/api/models/{REPOSITORY}/revision/{REVISION}":
            return self.reply(200, json.dumps({"id": REPOSITORY, "sha": COMMIT}).encode(), {}, body)
        if path.startswith(f"/api/models/{REPOSITORY}/revision/"):
            return self.reply(404, b"{}", {"X-Error-Code": "RevisionNotFound"}, body)
        if path == f"/api/models/{REPOSITORY}/tree/{COMMIT}":
            rows = [
                {"type": "file", "path": name, "size": p.stat().st_size, "oid": digest(p)}
                for name, p in files.items()
            ]
            return self.reply(200, json.dumps(rows).encode(), {}, body)
        if path.startswith(resolve) and (file := files.get(path.removeprefix(resolve))):
            headers = {"ETag": f'"{digest(file)}"', "X-Repo-Commit": COMMIT}
            return self.reply(200, file.read_bytes(), headers, body)
        return self.reply(404, b"{}", {"X-Error-Code": "EntryNotFound"}, body)

    def reply(self, status, content, headers, body):
        self.send_response(status)
        for name, value in {**headers, "Content-Length": str(len(content))}.items():
            self.send_header(name, value)
        self.end_headers()
        if body:
            self.wfile.write(content)

    def log_message(self, *arguments):
        pass


def digest(path):
    return hashlib.sha1(path.read_bytes()).hexdigest()


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory):
    """A checkpoint with files that no command may fetch."""
    folder = tmp_path_factory.mktemp("hub") / "repository"
    folder.mkdir()
    config = families.preset("tiny_llava_video")
    params = jax.tree.map(np.asarray, families.init_params(config, 0))
    export_model(folder, config, params, None)
    (folder / "pytorch_model.bin").write_bytes(b"pickled")
    (folder / "README.md").write_text("a model")
    return folder


@pytest.fixture(scope="module")
def hub(checkpoint):
    handler = type("Handler", (Hub,), {"folder": checkpoint, "requests": []})
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{server.server_port}", handler.requests
        server.shutdown()


def folder_of(name, home, **variables):
    """What `hub.folder` returns in a process of its own: the library reads its variables once."""
    program = (
        "import sys\nfrom tpo_jax.checkpoints.hub import folder\n"
        "from tpo_jax.errors import run_command\n"
        "name = sys.argv.pop()\n"
        "run_command(lambda: print(folder(name)))"
    )
    given = {k: v for k, v in os.environ.items() if not k.startswith("HF_")}
    return subprocess.run(
        [sys.executable, "-c", program, name],
        cwd=ROOT,
        env=given | {"HF_HOME": str(home), "HF_HUB_DISABLE_TELEMETRY": "1"} | variables,
        capture_output=True,
        text=True,
    )


def test_a_name_is_fetched_once_and_found_offline(hub, checkpoint, tmp_path):
    endpoint, requests = hub
    name = f"{REPOSITORY}@{REVISION}"
    online = {"HF_ENDPOINT": endpoint, "HF_TOKEN": TOKEN}
    done = folder_of(name, tmp_path, **online)
    assert done.returncode == 0, done.stderr
    found = Path(done.stdout.strip())
    assert found.is_relative_to(tmp_path) and found.name == COMMIT
    wanted = {p.name for p in checkpoint.rglob("*") if p.suffix in (".json", ".safetensors")}
    assert {p.name for p in found.rglob("*") if p.is_file()} == wanted
    assert not [path for path in requests if path.endswith((".bin", ".md"))]
    jax.tree.map(
        np.testing.assert_array_equal, load_model(found).params, load_model(checkpoint).params
    )
    # The cache that this filled is enough without the Hub.
    offline = folder_of(name, tmp_path, HF_HUB_OFFLINE="1", HF_ENDPOINT="http://127.0.0.1:9")
    assert (offline.returncode, Path(offline.stdout.strip())) == (0, found), offline.stderr


@pytest.mark.parametrize(
    ("name", "variables", "message"),
    [
        (f"{REPOSITORY}@{REVISION}", {}, "RepositoryNotFoundError"),  # no token
        (f"{REPOSITORY}@v2", {"HF_TOKEN": TOKEN}, "RevisionNotFoundError"),
        (f"{REPOSITORY}@{REVISION}", {"HF_HUB_OFFLINE": "1"}, "LocalEntryNotFoundError"),
    ],
    ids=["token", "revision", "offline"],
)
def test_what_cannot_be_downloaded_is_one_line(hub, tmp_path, name, variables, message):
    done = folder_of(name, tmp_path, **{"HF_ENDPOINT": hub[0]} | variables)
    assert done.returncode == 2
    assert done.stderr.count("\n") == 1, done.stderr
    assert done.stderr.startswith(f"error: {name}: no such folder") and message in done.stderr


def test_folders_come_first(tmp_path, monkeypatch):
    from tpo_jax.checkpoints import hub

    monkeypatch.chdir(tmp_path)
    (tmp_path / "someone" / "model").mkdir(parents=True)
    assert hub.folder("someone/model") == Path("someone/model")
    # Nothing of these is the name of a repository; whoever reads them says what is wrong.
    for name in ("model", "a/b/c", "/a/b", "./a/b", "a/b@", "../b"):
        assert hub.folder(name) == Path(name)


def test_convert_takes_a_name(hub, checkpoint, tmp_path):
    name = f"{REPOSITORY}@{REVISION}"
    given = {"HF_HOME": str(tmp_path / "home"), "HF_ENDPOINT": hub[0], "HF_TOKEN": TOKEN}
    output = tmp_path / "native"
    done = subprocess.run(
        [sys.executable, "-m", "tpo_jax.convert", f"--input={name}", f"--output={output}"],
        cwd=ROOT,
        env=os.environ | given,
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    loaded = load_model(output)
    assert isinstance(loaded.config, LlavaQwenConfig)
    jax.tree.map(np.testing.assert_array_equal, loaded.params, load_model(checkpoint).params)
