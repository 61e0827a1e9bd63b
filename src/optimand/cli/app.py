"""The commands. Each is short: what it does lives in `studies`, `report`, or beside this file."""

from pathlib import Path
from typing import Annotated, Any

import typer

from .guard import guarded

app = typer.Typer(
    no_args_is_help=True,
    rich_markup_mode=None,
    pretty_exceptions_enable=False,
    help="Optimisation problems that contain physics, constraints, inner problems, simulators and learned models.",
    epilog="Exit codes: 0 done, 1 a claim does not hold or a solve failed, 2 misuse, 130 stopped by Ctrl-C.",
)


def _studies(incomplete: str) -> list[tuple[str, str]]:
    from optimand.studies.registry import cards

    return [(card.slug, card.title) for card in cards().values() if card.slug.startswith(incomplete)]


def _rooms(incomplete: str) -> list[str]:
    from .listing import rooms

    return [room for room in [*rooms(), "studies"] if room.startswith(incomplete)]


def _version(wanted: bool | None) -> None:
    if wanted:
        from optimand import __version__

        print(f"optimand {__version__}")
        raise typer.Exit


Json = Annotated[bool, typer.Option("--json", help="Print the result as one line of JSON, the last of stdout.")]
Out = Annotated[Path | None, typer.Option("--out", help="Folder to write to; it must be empty.", show_default=False)]
Resume = Annotated[bool, typer.Option("--resume", help="Go on with what is in the folder.")]
Set = Annotated[
    list[str] | None, typer.Option("--set", metavar="NAME=VALUE ...", help="Change settings.", show_default=False)
]
Quick = Annotated[bool, typer.Option("--quick", help="The same at a small size, to see that it runs.")]
Quiet = Annotated[bool, typer.Option("--quiet", "-q", help="No progress on stderr.")]
RunFolder = Annotated[Path, typer.Argument(metavar="RUN", help="The folder of a run.")]


@app.callback()
def _root(
    version: Annotated[
        bool | None, typer.Option("--version", callback=_version, is_eager=True, help="Print it.")
    ] = None,
) -> None:
    pass


@app.command("list")
@guarded
def list_(
    room: Annotated[str | None, typer.Argument(metavar="[ROOM]", help="Only this room.", autocompletion=_rooms)] = None,
    as_json: Json = False,
) -> None:
    """Methods and studies, with their papers."""
    from .listing import show_list

    show_list(room, as_json)


@app.command()
@guarded
def run(
    study: Annotated[
        str, typer.Argument(metavar="SLUG", help="A study, or a .py file with one.", autocompletion=_studies)
    ],
    seed: Annotated[int | None, typer.Option(min=0, help="Seed.  [default: 0]", show_default=False)] = None,
    seeds: Annotated[list[int] | None, typer.Option(metavar="N ...", help="Several.", show_default=False)] = None,
    assignments: Set = None,
    quick: Quick = False,
    out: Out = None,
    resume: Resume = False,
    quiet: Quiet = False,
    as_json: Json = False,
) -> int:
    """Run a study, and print its claims.

    Without --out the folder is runs/SLUG-1, or the next number that is free.
    """
    from .running import run_one

    chosen = [*(seeds or []), *([] if seed is None else [seed])] or None
    return run_one(study, chosen, assignments or [], quick, out, resume, not quiet, as_json)


@app.command()
@guarded
def solve(
    file: Annotated[Path, typer.Argument(metavar="FILE", help="Defines `problem`, `method` and `guess`.")],
    assignments: Set = None,
    seed: Annotated[int, typer.Option(min=0, help="Of the key, unless the file has a `key`.")] = 0,
    out: Out = None,
    resume: Resume = False,
    save_every: Annotated[float, typer.Option(min=0.0, metavar="SECONDS", help="Between checkpoints.")] = 10.0,
    quiet: Quiet = False,
    as_json: Json = False,
) -> int:
    """Solve the problem of your own Python file.

    The file defines `problem`, `method` and `guess`, and if it likes `budget`, `key`, `report(solution)` (returns numbers
    by name, or `Findings`) and `claims(metrics)`. --set changes any top-level name that the file assigns a number, a text,
    a bool, None or a tuple of them.
    """
    from .solving import solve_file

    return solve_file(file, assignments or [], seed, out, resume, save_every, not quiet, as_json)


@app.command()
@guarded
def verify(
    studies: Annotated[
        list[str] | None, typer.Argument(metavar="[SLUG ...]", help="All by default.", autocompletion=_studies)
    ] = None,
    seeds: Annotated[int, typer.Option(min=1, help="Run seeds 0 to N-1.", metavar="N")] = 3,
    quick: Quick = False,
    out: Out = None,
    resume: Resume = False,
    quiet: Quiet = False,
    as_json: Json = False,
) -> int:
    """Run studies over seeds, and print every claim.

    Each claim stands with its measured figure, its bar and the paper's figure; exit 1 if one does not hold.
    """
    from .running import verify_all

    return verify_all(studies or [], seeds, quick, out, resume, not quiet, as_json)


@app.command()
@guarded
def report(
    runs: Annotated[
        list[Path] | None, typer.Argument(metavar="RUN ...", help="Folders of runs, or of `verify`.", show_default=False)
    ] = None,
    markdown: Annotated[
        Path | None, typer.Option(help="Write a page of results from all of them here.", show_default=False)
    ] = None,
    benchmarks: Annotated[Path, typer.Option(help="Folder of benchmark results for that page.")] = Path(
        "benchmarks/results"
    ),
) -> None:
    """Write the report of a run anew.

    With --markdown, a page of results from all the runs given, as docs/results.md; other studies that it has already stay, so without a run only benchmarks are
    read anew.
    """
    from .running import write_reports

    write_reports(runs or [], markdown, benchmarks)


@app.command()
@guarded
def compare(first: RunFolder, second: RunFolder, as_json: Json = False) -> None:
    """Two runs side by side.

    What differs in their settings, versions and machines; their metrics and claims beside each other.
    """
    from .running import compare_two

    compare_two(first, second, as_json)


@app.command()
@guarded
def cite(
    name: Annotated[str, typer.Argument(help="A method, a study, or a key of the bibliography.")],
) -> None:
    """Print the BibTeX of the source of a method or study."""
    from .listing import show_citation

    show_citation(name)


@app.command()
@guarded
def doctor(as_json: Json = False) -> int:
    """Examine this installation.

    Versions, devices, optional parts, and whether a small solve and its gradient come out right.
    """
    from .doctor import examine

    return examine(as_json)


bench = typer.Typer(no_args_is_help=True, rich_markup_mode=None, help="Benchmarks on problems that nobody here wrote.")
app.add_typer(bench, name="bench")


@bench.command()
@guarded
def cutest(
    kinds: Annotated[
        list[str] | None, typer.Option("--kind", metavar="KIND ...", help="unconstrained, bounded or constrained.", show_default=False)
    ] = None,
    problems: Annotated[
        list[str] | None, typer.Option("--problem", metavar="NAME ...", help="Only these.", show_default=False)
    ] = None,
    solvers: Annotated[
        list[str] | None,
        typer.Option("--solver", metavar="NAME ...", help="As smooth.LBFGS, scipy.SLSQP, ipopt.", show_default=False),
    ] = None,
    most_variables: Annotated[int, typer.Option("--max-variables", min=1, help="Leave larger problems out.")] = 1000,
    seconds: Annotated[float, typer.Option(help="Limit of one solver on one problem.")] = 60.0,
    workers: Annotated[int, typer.Option(min=1, help="Problems at a time; 1 for times that mean something.")] = 1,
    quick: Quick = False,
    out: Out = None,
    resume: Resume = False,
    quiet: Quiet = False,
    as_json: Json = False,
) -> int:
    """Methods and peers on the CUTEst collection, with performance profiles.

    Needs `sif2jax`, and the peers that are compared with. Whatever ends it, --resume goes on with the table in its folder.
    """
    from .benchmarking import run_cutest

    return run_cutest(
        kinds or [], problems or [], solvers or [], most_variables, seconds, workers, quick, out, resume, not quiet, as_json
    )


def command() -> Any:
    """The commands, for documentation tools."""
    return typer.main.get_command(app)
