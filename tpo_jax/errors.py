"""The error of wrong input, and how a door reports it."""

import sys
from collections.abc import Callable

from absl import app, flags, logging


class InputError(ValueError):
    """Something the user gave is wrong. The message is one line: which file, record or flag, and
    what to do.
    """


def run_door(main: Callable[[], int | None]) -> None:
    """Runs a command: flags parsed, wrong input reported as one line on standard error with exit
    code 2.
    """

    def guarded(arguments: list[str]) -> int | None:
        logging.set_verbosity(logging.WARNING)  # Orbax and Grain tell their whole story otherwise
        try:
            if len(arguments) > 1:
                raise InputError(f"unexpected argument {arguments[1]!r}; see --help")
            return main()
        except InputError as error:
            print(f"error: {error}", file=sys.stderr)
            return 2

    def parse(arguments: list[str]) -> list[str]:
        try:
            return flags.FLAGS(arguments)
        except flags.Error as error:
            print(f"error: {error}", file=sys.stderr)
            sys.exit(2)

    app.run(guarded, flags_parser=parse)
