"""The command line, `optimand`: see `app` for its commands.

Exit codes: 0 done; 1 a claim does not hold, or a solve or study failed; 2 misuse (an unknown name, a bad value, a file that
is not right); 130 stopped by Ctrl-C. With `--json` the last line of standard output is the result, and everything else
goes to standard error. JAX is imported by the commands that compute, and only when they do.
"""

import sys

__all__ = ["main"]


def main(arguments: list[str] | None = None) -> None:
    """Run the command line; `arguments` are those of the process by default. Ends with `SystemExit`."""
    from .app import app

    app(args=spread(sys.argv[1:] if arguments is None else arguments), prog_name="optimand")


def spread(arguments: list[str]) -> list[str]:
    """Let `--set a=1 b=2` and `--seeds 0 1 2` take several values, which the parser does not know."""
    out: list[str] = []
    option, taken = "", False
    for word in arguments:
        if word.startswith("-") or not option:
            option, taken = (word, False) if word in ("--set", "--seeds") else ("", False)
            out.append(word)
        elif not taken:
            out.append(word)
            taken = True
        elif (option == "--seeds" and word.isdigit()) or (option == "--set" and _is_assignment(word)):
            out += [option, word]
        else:
            option = ""
            out.append(word)
    return out


def _is_assignment(word: str) -> bool:
    name, equals, _ = word.partition("=")
    return bool(equals) and name.replace("-", "_").isidentifier()
