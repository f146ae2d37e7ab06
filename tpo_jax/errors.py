"""The error of wrong input, and how a command reports it."""

import fnmatch
import functools
import glob
import os
import re
import sys
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import NamedTuple, NoReturn

from absl import app, flags, logging

LONGEST = 1000  # characters of an error; what it quotes may be a whole file
# What a process that uses a TPU has open: libtpu's lock file and the chips.
TPU_FILES = ("/tmp/libtpu_lockfile", "/dev/accel[0-9]*", "/dev/vfio/[0-9]*")
# What libtpu says when another process uses the TPU (docs/troubleshooting.md).
_TPU_IN_USE = re.compile(
    r"(TPU is|libtpu\.so) already in use|/dev/(vfio/|accel)\d+\)?: Device or resource busy"
    r"|libtpu multi-process lockfile"
)


class InputError(ValueError):
    """Wrong user input; one line says which file, record or flag, and what to do."""


@functools.cache
def note(text: str) -> None:
    """Print what was guessed, or what else a user should know, to standard error; once each."""
    print(f"note: {printable(text)}", file=sys.stderr)


def printable(text: str) -> str:
    """Return one line of bounded length without control characters, whatever the text quotes."""
    shown = "".join(c if c.isprintable() else ascii(c)[1:-1] for c in text)
    if len(shown) > LONGEST:
        shown = f"{shown[: LONGEST // 2]} … {shown[-LONGEST // 2 :]}"
    return shown


def _report(reason: str) -> None:
    print(f"error: {printable(reason)}", file=sys.stderr)


def _exit(reason: str) -> NoReturn:
    _report(reason)
    sys.exit(2)


def _file_reason(error: OSError) -> str:
    """Return one line on a file that cannot be read or written.

    For a file that `--config` names, ml_collections gives several lines and not the flag.
    """
    if isinstance(error, FileExistsError):
        return f"{error.filename}: a file stands where a folder must be made"
    text = str(error)
    line = re.sub(r".*\[Errno -?\d+\] ", "", text.splitlines()[-1].strip())
    return f"--config: {line}" if re.search("config file|^Configuration", text) else line


def tpu_reason(error: Exception, files: Sequence[str] = TPU_FILES) -> str:
    """Return one line on a TPU that another process uses, or "" if the error says something else.

    Args:
        files: Patterns of what that process has open.
    """
    if not _TPU_IN_USE.search(str(error)):
        return ""
    users = _users(files)
    if users:
        return (
            f"the TPU is in use: {'; '.join(users)}; wait for its end or kill it, or set "
            "JAX_PLATFORMS=cpu if this command needs no TPU"
        )
    found = " ".join(path for pattern in files for path in sorted(glob.glob(pattern)))
    there = f"sudo fuser -v {found}" if found else "a look outside this container"
    said = str(error).partition(" (set JAX_PLATFORMS")[0]
    return (
        f"the TPU is in use, by no process that this user can see: {there} names it; if there is "
        f"none, sudo rm -f /tmp/libtpu_lockfile and start again ({said})"
    )


def _users(files: Sequence[str]) -> list[str]:
    """Return `process PID (COMMAND) has FILE, … open` for each other process that has any open."""
    users: dict[int, set[str]] = {}
    for link in glob.glob("/proc/[0-9]*/fd/*"):
        try:
            target = os.readlink(link)
        except OSError:  # closed meanwhile, or another user's
            continue
        pid = int(link.split("/")[2])
        if pid != os.getpid() and any(fnmatch.fnmatchcase(target, file) for file in files):
            users.setdefault(pid, set()).add(target)
    lines = []
    for pid, held in sorted(users.items()):
        try:
            command = Path(f"/proc/{pid}/cmdline").read_text(errors="replace")
        except OSError:
            continue
        shown = command.replace("\0", " ").strip()[:200] or "ending"
        lines.append(f"process {pid} ({shown}) has {', '.join(sorted(held))} open")
    return lines


class Subcommand(NamedTuple):
    """One of several commands of a program: its function, and the flags that it alone takes."""

    main: Callable[[], int | None]
    values: flags.FlagValues = flags.FlagValues()


def run_command(main: Callable[[], int | None] | Mapping[str, Subcommand]) -> None:
    """Run a command: parse its flags, call it, and report wrong input as one line with exit code 2.

    Args:
        main: the command, or subcommands by name; the first argument then says which.
    """
    commands: Mapping[str, Subcommand] = main if isinstance(main, Mapping) else {}
    name = sys.argv[1] if commands and len(sys.argv) > 1 else ""
    command = commands.get(name) if isinstance(main, Mapping) else Subcommand(main)
    if command is None and not name.startswith("-"):  # --help may stand alone
        _exit(f"the first argument must be one of {', '.join(commands)}, not {name!r}")

    def guarded(arguments: list[str]) -> int | None:
        logging.set_verbosity(logging.WARNING)  # Orbax and Grain log every step otherwise
        try:
            rest = arguments[2:] if commands else arguments[1:]
            if command is None:
                raise InputError(f"the first argument must be one of {', '.join(commands)}")
            if rest:
                raise InputError(f"unexpected argument {rest[0]!r}; see --help")
            return command.main()
        except InputError as error:
            _report(str(error))
        except OSError as error:  # a file that cannot be read or written
            _report(_file_reason(error))
        except RuntimeError as error:
            if not (reason := tpu_reason(error)):
                raise
            _report(reason)
        return 2

    def parse(arguments: list[str]) -> list[str]:
        values = command.values if command else flags.FlagValues()
        flags.FLAGS.append_flag_values(values)
        for flag in values:  # so that --help shows them
            flags.FLAGS.register_key_flag_for_module(sys.argv[0], values[flag])
        flags.FLAGS.set_gnu_getopt()  # flags may stand after the name of a subcommand
        for argument in arguments:  # ml_collections would cut it at the colon
            if re.match(r"--?(config|curate)=\w+://", argument):
                _exit(f"{argument.lstrip('-')}: must be a file on this machine")
        try:
            rest = flags.FLAGS(arguments)
            values.mark_as_parsed()
            _check_repeated(flags.FLAGS)
            return rest
        except flags.UnrecognizedFlagError as error:
            owners = [n for n, other in commands.items() if error.flagname in other.values]
            reason = str(error)
            if owners:
                reason = f"--{error.flagname} is a flag of {', '.join(owners)}, not of {name}"
        except (flags.Error, AttributeError, KeyError, ValueError, OSError) as error:
            reason = _flag_reason(error)
        except SystemExit:  # --help; absl exits with 1
            sys.exit()
        finally:
            flags.FLAGS.remove_flag_values(values)
        _exit(reason)

    app.run(guarded, flags_parser=parse)


def _check_repeated(values: flags.FlagValues) -> None:
    """Raise `flags.Error` if a path is given several times; absl would silently take the last.

    For other flags the last value counts, so that one can override those that a script sets.
    """
    for name in values:
        if values[name].present > 1 and values[name].flag_type() == "path":
            raise flags.Error(f"--{name} is given {values[name].present} times and takes one path")


def _flag_reason(error: Exception) -> str:
    """Return one line on what is wrong with a flag, a field of `--config` or its file."""
    lines = str(error).strip().splitlines()
    if isinstance(error, flags.Error):
        # An error in a config file has its traceback between the first line and the last.
        reason = lines[0] if len(lines) == 1 else f"{lines[0]} {lines[-1]}"
        lacking = re.fullmatch(r"flag (--\w+)=None: .* other than None\.", reason)
        return f"flag {lacking[1]} must have a value" if lacking else reason
    if isinstance(error, OSError):
        return _file_reason(error)
    if not isinstance(error, AttributeError | KeyError):  # not the name of a field
        return f"--config: {lines[0]}"
    # Quoted once or twice, with a suggestion on a line of its own where there is one.
    words = re.findall(r"\w+", str(error).replace("\\n", " "))
    if "get_config" in words:
        return "--config: the file has no function get_config"
    field, *more = words or [repr(str(error))]
    reason = f"--config has no such field: {field}"
    return f"{reason}; did you mean {more[3]}?" if more[:3] == ["Did", "you", "mean"] else reason
