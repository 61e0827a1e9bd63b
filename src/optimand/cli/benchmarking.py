"""`bench cutest`."""

import dataclasses
from collections.abc import Sequence
from pathlib import Path

from optimand.report import record

from .guard import say
from .show import Out

__all__ = ["run_cutest"]


def run_cutest(
    kinds: Sequence[str],
    problems: Sequence[str],
    solvers: Sequence[str],
    most_variables: int,
    seconds: float,
    workers: int,
    quick: bool,
    folder: Path | None,
    resume: bool,
    verbose: bool,
    as_json: bool,
) -> int:
    """`optimand bench cutest`: 0 if every claim holds, else 1."""
    from optimand.bench import cutest, profiles

    folder = folder or record.next_folder("runs", "cutest", resume=resume)
    try:
        rows = cutest.run(
            folder, kinds=kinds, problems=problems, solvers=solvers, most_variables=most_variables, seconds=seconds,
            workers=workers, quick=quick, resume=resume, progress=say if verbose else lambda text: None,
        )  # fmt: skip
    except KeyboardInterrupt:
        say(f"interrupted; go on with: optimand bench cutest --out {folder} --resume")
        return 130
    claims = [dataclasses.asdict(claim) for claim in cutest.claims(rows)]
    out = Out(as_json)
    for kind in ("unconstrained", "bounded", "constrained"):
        counts = profiles.counts(rows, kind)
        if counts:
            problems_of_kind = len({row["problem"] for row in rows if row["kind"] == kind})
            ordered = sorted(counts.items(), key=lambda pair: -pair[1])
            out.table(f"{kind}: {problems_of_kind} problems", ("solver", "solved"), ordered, right=(1,))
    out.claims(claims, "CUTEst")
    out.line(f"page: {folder / 'cutest.md'}")
    out.result({"claims": claims})
    return 0 if all(claim["holds"] for claim in claims) else 1
