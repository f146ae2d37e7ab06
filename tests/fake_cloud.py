"""Stand-ins for `gcloud` and `xpk`: the commands they get are recorded, and what would run on a
worker runs here, in a home directory of its own.

`Cloud.install` writes them to a directory for the PATH. The state lies in `state.json` beside it.
"""

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

WORKERS = 2
CREATION = ["WAITING_FOR_RESOURCES", "PROVISIONING", "ACTIVE"]
NODE = {"ACTIVE": "READY", "PROVISIONING": "CREATING"}


class Cloud:
    """What Google would know, and the machines it would lend."""

    def __init__(self, root: Path):
        self.root = root
        self.bucket = root / "bucket"
        self._state = root / "state.json"

    @classmethod
    def install(cls, root: Path, **knobs) -> "Cloud":
        """An empty cloud; `knobs` are faults: no_login, no_quota, unlucky, ssh_failures,
        preemptions.
        """
        cloud = cls(root)
        (root / "bin").mkdir()
        cloud.bucket.mkdir()
        script = (
            f"#!/bin/sh\nexec '{sys.executable}' '{__file__}' '{root}' \"$(basename $0)\" \"$@\"\n"
        )
        for name in ("gcloud", "xpk", "gcsfuse", "sudo", "mountpoint"):
            (root / "bin" / name).write_text(script)
            (root / "bin" / name).chmod(0o755)
        cloud.save({"request": [], "type": "", "calls": [], **knobs})
        return cloud

    def load(self) -> dict:
        return json.loads(self._state.read_text())

    def save(self, state: dict) -> None:
        partial = self._state.with_suffix(f".{os.getpid()}")
        partial.write_text(json.dumps(state))
        partial.replace(self._state)

    def calls(self, *words: str) -> list[list[str]]:
        """Recorded calls that begin with `words`."""
        return [call for call in self.load()["calls"] if call[: len(words)] == list(words)]

    def lend(self, type_: str = "v5litepod-16") -> None:
        """The slice is there."""
        self.save(self.load() | {"request": ["ACTIVE"], "type": type_})
        for worker in range(WORKERS):
            shutil.rmtree(self.home(worker), ignore_errors=True)
            self.home(worker).mkdir()

    def home(self, worker: int) -> Path:
        return self.root / f"worker{worker}"

    def environment(self, home: Path) -> dict[str, str]:
        """What a program on a worker sees."""
        path = f"{self.root / 'bin'}:{Path(sys.executable).parent}:{os.environ['PATH']}"
        return {"PATH": path, "HOME": str(home), "FAKE_BUCKET": str(self.bucket)}

    def preempt(self) -> None:
        """Machines tell their processes, and are gone."""
        for worker in range(WORKERS):
            pid = int((self.home(worker) / "tpo_jax_run/pid").read_text())
            os.kill(pid, signal.SIGTERM)
            while Path(f"/proc/{pid}").exists():
                time.sleep(0.02)
            shutil.rmtree(self.home(worker))
        self.save(self.load() | {"request": ["SUSPENDING", "SUSPENDED"]})


def main(root: str, program: str, *arguments: str) -> int:
    cloud = Cloud(Path(root))
    state = cloud.load()
    if program == "sudo":
        return 0
    if program == "mountpoint":
        return 1
    state["calls"].append([program, *arguments])
    cloud.save(state)
    flags = dict(a[2:].partition("=")[::2] for a in arguments if a.startswith("--"))
    if program == "gcsfuse":
        return 0
    if program == "xpk":
        return xpk(cloud, arguments[1], flags)
    if state.get("no_login"):
        print("ERROR: You do not currently have an active account selected.", file=sys.stderr)
        return 1
    kind, verb = arguments[2:4]
    return (
        tpu_vm(cloud, verb, arguments[4:], flags) if kind == "tpu-vm" else queue(cloud, verb, flags)
    )


def not_found() -> int:
    print("ERROR: (gcloud) NOT_FOUND: Resource 'x' was not found", file=sys.stderr)
    return 1


def queue(cloud: Cloud, verb: str, flags: dict[str, str]) -> int:
    state = cloud.load()
    if verb == "create":
        if state.get("no_quota"):
            print("ERROR: RESOURCE_EXHAUSTED: Quota limit exceeded.", file=sys.stderr)
            return 1
        cloud.lend(flags["accelerator-type"])
        creation = ["FAILED"] if state.get("unlucky") else CREATION
        cloud.save(cloud.load() | {"request": creation})
        return 0
    if not state["request"]:
        return not_found()
    if verb == "delete":
        cloud.save(state | {"request": []})
        return 0
    print(state["request"][0])
    if len(state["request"]) > 1:
        cloud.save(state | {"request": state["request"][1:]})
    return 0


def tpu_vm(cloud: Cloud, verb: str, arguments: tuple[str, ...], flags: dict[str, str]) -> int:
    state = cloud.load()
    node = NODE.get((state["request"] or [""])[0])
    if verb == "describe":
        if not node:
            return not_found()
        print(f"{node}\t{state['type']}")
        return 0
    if node != "READY":
        return 255
    if state.get("ssh_failures"):
        cloud.save(state | {"ssh_failures": state["ssh_failures"] - 1})
        return 255
    workers = range(WORKERS) if flags["worker"] == "all" else [int(flags["worker"])]
    if verb == "scp":
        files = [Path(a) for a in arguments if not a.startswith("--")][:-1]
        for worker in workers:
            for file in files:
                shutil.copy(file, cloud.home(worker) / file.name)
        return 0
    codes = [run(cloud, w, flags["command"]) for w in workers]
    return next((code for code in codes if code), 0)


def run(cloud: Cloud, worker: int, command: str) -> int:
    home = cloud.home(worker)
    if " follow " in command and cloud.load().get("preemptions"):
        while not all((cloud.bucket / f"worker{w}.started").exists() for w in range(WORKERS)):
            time.sleep(0.02)
        cloud.preempt()
        state = cloud.load()
        cloud.save(state | {"preemptions": state["preemptions"] - 1})
        return 255
    shell = ["bash", "-c", command]
    return subprocess.run(shell, cwd=home, env=cloud.environment(home), check=False).returncode


def xpk(cloud: Cloud, verb: str, flags: dict[str, str]) -> int:
    if verb != "create":
        return 0
    source, home = Path(flags["script-dir"]), cloud.home(0)
    shutil.copytree(source, home)
    shell = ["bash", "-c", f"({flags['command']}) & wait $!"]
    return subprocess.run(shell, cwd=home, env=cloud.environment(home), check=False).returncode


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:]))
