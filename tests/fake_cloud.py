"""Stand-ins for `gcloud` and `xpk`: the commands they get are recorded, and what would run on a
worker runs here, in a home directory of its own.

`Cloud.install` writes them to a directory for the PATH. The state lies in `state.json` beside it.
"""

import contextlib
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

HERE = Path(__file__).resolve().parent
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
        preemptions; of several slices also late, expires, untold and loses_slice, which is the exit
        status of the other slices' command and the state that Google then reports.
        """
        cloud = cls(root)
        (root / "bin").mkdir()
        cloud.bucket.mkdir()
        # A module, unlike a script, is compiled once for the many short calls.
        code = f'import sys; sys.path[:0] = ["{HERE}"]; import fake_cloud; fake_cloud.main()'
        script = f"exec '{sys.executable}' -IS -c '{code}' '{root}' \"${{0##*/}}\" \"$@\""
        quick = {"sudo": "exit 0", "mountpoint": "exit 1"}
        for name in ("gcloud", "xpk", "gcsfuse", "curl", *quick):
            (root / "bin" / name).write_text(f"#!/bin/sh\n{quick.get(name, script)}\n")
            (root / "bin" / name).chmod(0o755)
        cloud.save({"request": [], "type": "", "count": 1, "nodes": {}, **knobs})
        return cloud

    def load(self) -> dict:
        return json.loads(self._state.read_text())

    def save(self, state: dict) -> None:
        partial = self._state.with_suffix(f".{os.getpid()}")
        partial.write_text(json.dumps(state))
        partial.replace(self._state)

    def calls(self, *words: str) -> list[list[str]]:
        """Recorded calls that begin with `words`."""
        record = self.root / "calls.jsonl"
        lines = record.read_text().splitlines() if record.exists() else []
        return [call for call in map(json.loads, lines) if call[: len(words)] == list(words)]

    def lend(self, type_: str = "v5litepod-16", slices: int = 1) -> None:
        """The slices are there."""
        self.save(
            self.load() | {"request": ["ACTIVE"], "type": type_, "count": slices, "nodes": {}}
        )
        for slice_ in range(slices):
            self.make_machines(slice_)

    def make_machines(self, slice_: int) -> None:
        """New machines with empty disks."""
        for worker in range(WORKERS):
            shutil.rmtree(self.home(worker, slice_), ignore_errors=True)
            self.home(worker, slice_).mkdir()

    def home(self, worker: int, slice_: int = 0) -> Path:
        return self.root / (f"worker{worker}" + f"-{slice_}" * (slice_ > 0))

    def environment(self, home: Path) -> dict[str, str]:
        """What a program on a worker sees."""
        path = f"{self.root / 'bin'}:{Path(sys.executable).parent}:{os.environ['PATH']}"
        return {"PATH": path, "HOME": str(home), "FAKE_BUCKET": str(self.bucket)}

    def preempt(self, slice_: int = 0) -> None:
        """The machines of a slice tell their processes, and are gone."""
        for worker in range(WORKERS):
            home = self.home(worker, slice_)
            pid = int((home / "tpo_jax_run/pid").read_text())
            with contextlib.suppress(ProcessLookupError):  # it ends with one that was told before
                os.kill(pid, signal.SIGTERM)
            while Path(f"/proc/{pid}").exists():
                time.sleep(0.02)
            shutil.rmtree(home)


def main() -> None:
    """Answer one call of a program."""
    sys.exit(answer(*sys.argv[1:]))


def answer(root: str, program: str, *arguments: str) -> int:
    cloud = Cloud(Path(root))
    state = cloud.load()
    if program == "curl":
        return metadata(state)
    with (cloud.root / "calls.jsonl").open("a") as file:
        file.write(json.dumps([program, *arguments]) + "\n")
    flags = dict(a[2:].partition("=")[::2] for a in arguments if a.startswith("--"))
    if program == "gcsfuse":
        return 0
    if program == "xpk":
        return xpk(cloud, arguments[1], flags)
    if state.get("no_login"):
        print("ERROR: You do not currently have an active account selected.", file=sys.stderr)
        return 1
    kind, verb = arguments[2:4]
    if kind == "tpu-vm":
        return tpu_vm(cloud, verb, arguments[4:], flags)
    return queue(cloud, verb, flags)


def metadata(state: dict) -> int:
    """What the metadata server of a machine says of the slices of its request."""
    if not state.get("untold"):
        print(f"ZONE: 'us-west4-a'\nMEGASCALE_NUM_SLICES: '{state['count']}'")
        print("MEGASCALE_SLICE_ID: '0'\nMEGASCALE_COORDINATOR_ADDRESS: '10.0.0.1'")
    return 0


def not_found() -> int:
    print("ERROR: (gcloud) NOT_FOUND: Resource 'x' was not found", file=sys.stderr)
    return 1


def queue(cloud: Cloud, verb: str, flags: dict[str, str]) -> int:
    state = cloud.load()
    if verb == "create":
        if state.get("no_quota"):
            print("ERROR: RESOURCE_EXHAUSTED: Quota limit exceeded.", file=sys.stderr)
            return 1
        cloud.lend(flags["accelerator-type"], int(flags.get("node-count", 1)))
        creation = ["FAILED"] if state.get("unlucky") else CREATION
        if state.get("expires"):
            creation = [*CREATION[:-1], "PROVISIONING", "FAILED"]
        late = {"1": ["CREATING"] * state.get("late", 0) + ["READY"]}
        cloud.save(cloud.load() | {"request": creation, "nodes": late})
        return 0
    if not state["request"]:
        return not_found()
    if verb == "delete":
        cloud.save(state | {"request": []})
        return 0
    print(state["request"][0], state["count"] if state["count"] > 1 else "", sep="\t")
    if len(state["request"]) > 1:
        cloud.save(state | {"request": state["request"][1:]})
    return 0


def tpu_vm(cloud: Cloud, verb: str, arguments: tuple[str, ...], flags: dict[str, str]) -> int:
    state = cloud.load()
    *files, name = (a for a in arguments if not a.startswith("--"))
    slice_ = int(name.rstrip(":").rpartition("-")[2]) if state["count"] > 1 else 0
    own = state["nodes"].get(str(slice_))
    node = own[0] if own and state["count"] > 1 else "READY"
    if state["request"][:1] != ["ACTIVE"]:
        node = NODE.get((state["request"] or [""])[0])
        if state.get("expires") and node:  # of the slices only the first was made
            node = None if slice_ else "READY"
    if verb == "describe":
        if not node or node == "NOT_FOUND":
            return not_found()
        print(f"{node}\t{state['type']}")
        if own and len(own) > 1 and state["request"] == ["ACTIVE"]:
            cloud.save(state | {"nodes": state["nodes"] | {str(slice_): own[1:]}})
        return 0
    if node != "READY":
        return 255
    if state.get("ssh_failures"):
        cloud.save(state | {"ssh_failures": state["ssh_failures"] - 1})
        return 255
    workers = range(WORKERS) if flags["worker"] == "all" else [int(flags["worker"])]
    if verb == "scp":
        for worker in workers:
            for file in files:
                shutil.copy(file, cloud.home(worker, slice_))
        return 0
    codes = [run(cloud, cloud.home(w, slice_), flags["command"]) for w in workers]
    return next((code for code in codes if code), 0)


def run(cloud: Cloud, home: Path, command: str) -> int:
    state = cloud.load()
    if " follow " in command and state.get("preemptions"):
        wait_for_workers(cloud)
        cloud.preempt()
        cloud.save(
            cloud.load()
            | {"preemptions": state["preemptions"] - 1, "request": ["SUSPENDING", "SUSPENDED"]}
        )
        return 255
    if " follow " in command and state.get("loses_slice"):
        wait_for_workers(cloud)
        cloud.preempt(1)
        code, left = state["loses_slice"]
        cloud.save(cloud.load() | left | {"loses_slice": None})
        if "READY" in left.get("nodes", {"1": []})["1"]:  # Google replaces it
            cloud.make_machines(1)
        (cloud.bucket / "lost").write_text(str(code))
    shell = ["bash", "-c", command]
    return subprocess.run(shell, cwd=home, env=cloud.environment(home), check=False).returncode


def wait_for_workers(cloud: Cloud) -> None:
    homes = [cloud.home(w, s) for s in range(cloud.load()["count"]) for w in range(WORKERS)]
    while not all((cloud.bucket / f"{home.name}.started").exists() for home in homes):
        time.sleep(0.02)


def xpk(cloud: Cloud, verb: str, flags: dict[str, str]) -> int:
    if verb != "create":
        return 0
    source, home = Path(flags["script-dir"]), cloud.home(0)
    shutil.copytree(source, home)
    shell = ["bash", "-c", f"({flags['command']}) & wait $!"]
    return subprocess.run(shell, cwd=home, env=cloud.environment(home), check=False).returncode
