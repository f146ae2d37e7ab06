"""The error of wrong input, and how a door reports it."""

import re
import sys
from collections.abc import Callable, Mapping

from absl import app, flags, logging

LONGEST = 1000  # characters of an error; what it quotes may be a whole file


class InputError(ValueError):
    """Something the user gave is wrong. The message is one line: which file, record or flag, and
    what to do.
    """


def printable(text: str) -> str:
    """One line of bounded length that does nothing to a terminal, whatever the input it quotes."""
    shown = "".join(c if c.isprintable() else ascii(c)[1:-1] for c in text)
    if len(shown) > LONGEST:
        shown = f"{shown[: LONGEST // 2]} … {shown[-LONGEST // 2 :]}"
    return shown


def _report(reason: str) -> None:
    print(f"error: {printable(reason)}", file=sys.stderr)


def run_command(main: Callable[[], int | None] | Mapping[str, Callable[[], int | None]]) -> None:
    """Runs a command: flags parsed, wrong input reported as one line on standard error with exit
    code 2. Where a door has several, by name, the first argument says which.
    """

    def guarded(arguments: list[str]) -> int | None:
        logging.set_verbosity(logging.WARNING)  # Orbax and Grain tell their whole story otherwise
        try:
            rest, command = arguments[1:], main
            if isinstance(command, Mapping):
                name = rest.pop(0) if rest else ""
                if name not in command:
                    raise InputError(
                        f"the first argument must be one of {', '.join(command)}, not {name!r}"
                    )
                command = command[name]
            if rest:
                raise InputError(f"unexpected argument {rest[0]!r}; see --help")
            return command()
        except InputError as error:
            _report(str(error))
        except OSError as error:  # a file that cannot be read or written; ml_collections adds lines
            _report(str(error).splitlines()[-1].strip())
        return 2

    def parse(arguments: list[str]) -> list[str]:
        flags.FLAGS.set_gnu_getopt()  # flags may stand behind the name of a command
        try:
            return flags.FLAGS(arguments)
        except flags.Error as error:
            # An error in a config file has its traceback between the first line and the last.
            lines = str(error).strip().splitlines()
            reason = lines[0] if len(lines) == 1 else f"{lines[0]} {lines[-1]}"
            if lacking := re.fullmatch(r"flag (--\w+)=None: .* other than None\.", reason):
                reason = f"flag {lacking[1]} must have a value"
        except (AttributeError, KeyError) as error:
            # Quoted once or twice, with a suggestion on a line of its own where there is one.
            words = re.findall(r"\w+", str(error).replace("\\n", " "))
            name, *rest = words or [repr(str(error))]
            reason = f"--config has no such field: {name}"
            if rest[:3] == ["Did", "you", "mean"]:
                reason += f"; did you mean {rest[3]}?"
        except ValueError as error:  # a name of a field that is none
            reason = f"--config: {str(error).splitlines()[0]}"
        except OSError as error:
            reason = str(error).splitlines()[-1].strip()
        _report(reason)
        sys.exit(2)

    app.run(guarded, flags_parser=parse)
