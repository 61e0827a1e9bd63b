"""From exceptions to messages and exit codes."""

import errno
import functools
import sys
from collections.abc import Callable

import typer

__all__ = ["guarded"]

_DISK = (errno.ENOSPC, errno.EDQUOT, errno.EROFS)  # nobody's mistake in the program: no traceback


def guarded(command: Callable) -> Callable:
    """A command that ends with an exit code: the number it returns, or what fits the exception it raised."""

    @functools.wraps(command)
    def run(*args, **kwargs):
        try:
            code = command(*args, **kwargs)
        except KeyboardInterrupt as error:
            say(f"interrupted{': ' + str(error) if str(error) else ''}")
            code = 130
        except BrokenPipeError:  # `optimand list | head`
            sys.stderr.close()
            code = 0
        except Exception as error:
            code = 1 if getattr(error, "errno", None) in _DISK else _code_of(error)
            if code is None:
                raise
            say(f"error: {_message(error)}")
        raise typer.Exit(code or 0)

    return run


def say(text: str) -> None:
    """On standard error."""
    print(text, file=sys.stderr, flush=True)


def _code_of(error: Exception) -> int | None:
    """None for what is neither the user's mistake nor a failed solve: that keeps its traceback, and exits 1."""
    core = sys.modules.get("optimand.core.errors")  # no error of the core without the core
    if core is None:
        return None
    if isinstance(error, core.ArgumentError | core.MissingExtra):
        return 2
    return 1 if isinstance(error, core.SolveError) else None


def _message(error: Exception) -> str:
    """The message, with arguments named as on the command line."""
    argument = getattr(error, "argument", None)
    text = str(error)
    if argument in ("set", "out", "resume", "seed"):
        return text.replace(f"`{argument}` ", f"--{argument}: ", 1)
    if argument in ("study", "run", "name", "room", "file"):
        return text.replace(f"`{argument}` ", f"{argument} ", 1)
    return text
