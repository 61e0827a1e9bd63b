"""The command line, `optimand`: see `app` for its commands.

Exit codes: 0 done; 1 a claim does not hold, or a solve or study failed; 2 misuse (an unknown name, a bad value, a file that
is not right); 130 stopped by Ctrl-C. With `--json` the last line of standard output is the result, and everything else
goes to standard error. JAX is imported by the commands that compute, and only when they do.
"""

import sys
from collections.abc import Callable

__all__ = ["main"]


def main(arguments: list[str] | None = None) -> None:
    """Run the command line; `arguments` are those of the process by default. Ends with `SystemExit`."""
    from .app import app

    app(args=spread(sys.argv[1:] if arguments is None else arguments), prog_name="optimand")


def _is_assignment(word: str) -> bool:
    name, equals, _ = word.partition("=")
    return bool(equals) and name.replace("-", "_").isidentifier()


# Options that take several values, with what tells one of them from an argument of its own.
_SEVERAL: dict[str, Callable[[str], bool]] = {
    "--set": _is_assignment,
    "--seeds": str.isdigit,
    "--kind": bool,  # the command that these belong to has no arguments
    "--problem": bool,
    "--solver": bool,
}


def spread(arguments: list[str]) -> list[str]:
    """Let `--set a=1 b=2`, `--seeds 0 1 2` and `--solver ipopt scipy.SLSQP` take several values, which the parser does not know."""
    out: list[str] = []
    option, taken = "", False
    for word in arguments:
        if word.startswith("-") or not option:
            option, taken = (word, False) if word in _SEVERAL else ("", False)
            out.append(word)
        elif not taken:
            out.append(word)
            taken = True
        elif _SEVERAL[option](word):
            out += [option, word]
        else:
            option = ""
            out.append(word)
    return out
