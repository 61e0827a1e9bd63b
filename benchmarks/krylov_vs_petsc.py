"""Sequences of linear systems: recycling in sorted order beside PETSc's and SciPy's Krylov methods, for tolerances from 1e-3 to 1e-11.

    python benchmarks/krylov_vs_petsc.py [--count 30] [--family darcy]

Needs petsc4py, of a PETSc that was configured with HPDDM (without it that row is left out). The families are those of the study krylov-recycling: Darcy, Helmholtz,
convection and diffusion, and thermal, 32^2 unknowns, without preconditioner; on the first also with an incomplete factorisation. All methods have 30 vectors, recycling
and deflation 10 of them, preconditioners stand on the right, the residual is the true one, and 4,000 products a system are the most. PETSc's: GMRES, LGMRES (augmented), DGMRES (deflated), and HPDDM's GCRO-DR
that keeps its space from system to system; each in the order in which it is best, sorted where something is kept. SciPy: GMRES, and gcrotmk with its vectors
kept. Ours: GMRES, and SKR, which is GCRO-DR in the greedy order. What a solve begins with is made before: the matrices of PETSc and SciPy; ours are made in the compiled loop.

Products with the matrix are compared, and seconds for the whole sequence, compiled before. Bars: SKR at most the products of the best rival at tolerances of 1e-7 and below
on Helmholtz and Darcy, and a third of the seconds of SciPy's and of PETSc's GMRES on Helmholtz; at most 1.1 of HPDDM's GCRO-DR, the same method, anywhere; our GMRES
within a tenth of the products of PETSc's. A rival that failed on a system, by its word or by the true residual, is not compared with.
"""

import argparse
import time
from typing import Any

import jax
import numpy as np
import record
import scipy.sparse.linalg
from petsc4py import PETSc

from optimand.linear import greedy_order
from optimand.studies import krylov_recycling as study

__all__: list[str] = []

TOLERANCES = (1e-3, 1e-5, 1e-7, 1e-9, 1e-11)
FAMILIES = ("darcy", "helmholtz", "convection", "thermal")
RESTART, RECYCLE, CAP = 30, 10, 4000
PETSC = {"GMRES": ("gmres", {}), "LGMRES": ("lgmres", {"ksp_lgmres_augment": 2}), "DGMRES": ("dgmres", {"ksp_dgmres_eigen": RECYCLE})}
HPDDM = ("hpddm", {"ksp_hpddm_type": "gcrodr", "ksp_hpddm_recycle": RECYCLE})


class Petsc:
    """A Krylov method of PETSc, from the matrices of a sequence to products, failures and seconds."""

    def __init__(self, kind: str, options: dict[str, Any], rtol: float, preconditioner: str):
        database = PETSc.Options()
        for name, value in options.items():
            database[name] = value
        self.ksp = PETSc.KSP().create()
        self.ksp.setType(kind)
        self.ksp.getPC().setType({"none": "none", "ilu": "ilu"}[preconditioner])
        self.ksp.setPCSide(PETSc.PC.Side.RIGHT)
        self.ksp.setTolerances(rtol=rtol, atol=1e-300, max_it=CAP)
        database["ksp_gmres_restart"] = RESTART
        database["ksp_max_it"] = CAP
        self.ksp.setFromOptions()
        for name in options:
            database.delValue(name)

    def __call__(self, systems: list[tuple[Any, np.ndarray]]) -> tuple[float, float, int, float]:
        """Mean products, the largest true residual, failures, seconds."""
        matrices = []
        for matrix, b in systems:
            ours = PETSc.Mat().createAIJ(size=matrix.shape, csr=(matrix.indptr.astype(np.int32), matrix.indices.astype(np.int32), matrix.data))
            matrices.append((ours, PETSc.Vec().createWithArray(b), PETSc.Vec().createSeq(len(b))))
        products, failures, worst = 0, 0, 0.0
        begun = time.perf_counter()
        for matrix, b, x in matrices:
            self.ksp.setOperators(matrix)
            self.ksp.solve(b, x)
            products += self.ksp.getIterationNumber()
            failures += self.ksp.getConvergedReason() <= 0
        seconds = time.perf_counter() - begun
        for (matrix, b), (_, _, x) in zip(systems, matrices, strict=True):
            worst = max(worst, float(np.linalg.norm(b - matrix @ x.getArray()) / np.linalg.norm(b)))
        return products / len(systems), worst, failures, seconds


def by_scipy_gmres(systems: list[tuple[Any, np.ndarray]], rtol: float, preconditioner: str) -> tuple[float, float, int, float]:
    products, failures, worst = 0, 0, 0.0
    begun = time.perf_counter()
    for matrix, b in systems:
        seen = [0]
        m = None
        if preconditioner == "ilu":
            factors = scipy.sparse.linalg.spilu(matrix.tocsc(), drop_tol=study.Settings().drop, fill_factor=10.0)
            m = scipy.sparse.linalg.LinearOperator(matrix.shape, matvec=factors.solve, dtype=float)

        def count(_, seen=seen):
            seen[0] += 1

        x, status = scipy.sparse.linalg.gmres(matrix, b, rtol=rtol, restart=RESTART, maxiter=CAP // RESTART, M=m, callback=count, callback_type="pr_norm")
        products, failures = products + seen[0], failures + (status != 0)
        worst = max(worst, float(np.linalg.norm(b - matrix @ x) / np.linalg.norm(b)))
    return products / len(systems), worst, failures, time.perf_counter() - begun


def rows_of(family_name: str, preconditioner: str, count: int) -> list[dict[str, Any]]:
    settings = study.Settings(count=count, cap=CAP)
    family = study.family_of(settings, family_name)
    parameters = family.sample(jax.random.key(0), count)
    order = np.asarray(greedy_order(parameters))
    systems = []
    for i in range(count):
        operator, b = family.system(parameters[i])
        systems.append((operator.to_scipy().tocsr(), np.array(b)))
    ordered = [systems[i] for i in order]
    rows = []
    for rtol in TOLERANCES:
        found: dict[str, tuple[float, float, int, float]] = {}
        for name, method in (("SKR", "SKR"), ("GMRES", "GMRES"), ("SciPy, gcrotmk", "gcrotmk")):
            one = study._measured(settings, family, parameters, order, preconditioner, rtol, method)
            found[name] = float(one.products.mean()), float(np.max(one.residuals)), int(one.failed.sum()), one.seconds
        found["SciPy, GMRES"] = by_scipy_gmres(systems, rtol, preconditioner)
        for name, (kind, options) in PETSC.items():
            found[f"PETSc, {name}"] = Petsc(kind, options, rtol, preconditioner)(systems)
        if has_hpddm():
            found["PETSc, HPDDM GCRO-DR"] = Petsc(*HPDDM, rtol, preconditioner)(ordered)
        for name, (products, worst, failures, seconds) in found.items():
            rows.append({"family": family_name, "preconditioner": preconditioner, "rtol": rtol, "method": name, "products": products, "failed": failures, "residual / rtol": worst / rtol, "seconds": seconds})
            print(rows[-1], flush=True)
    return rows


def has_hpddm() -> bool:
    try:
        PETSc.KSP().create().setType("hpddm")
    except PETSc.Error:
        return False
    return True


def solved(row: dict[str, Any]) -> bool:
    return not row["failed"] and row["residual / rtol"] <= 1.1


def claims_of(rows: list[dict[str, Any]]) -> list[tuple[str, float, float]]:
    at = {(row["family"], row["preconditioner"], row["rtol"], row["method"]): row for row in rows}
    said, same, parity = [], [], []
    for (family, preconditioner, rtol, method), ours in at.items():
        if method == "SKR":
            rivals = [row for key, row in at.items() if key[:3] == (family, preconditioner, rtol) and key[3] not in ("SKR", "GMRES") and solved(row)]
            if preconditioner == "none" and family in ("darcy", "helmholtz") and rtol <= 1e-7 and rivals:
                best = min(rivals, key=lambda row: row["products"])
                said.append((f"{family}, {rtol:g}: products, SKR / the best rival, {best['method']}", ours["products"] / best["products"], 1.0))
            if preconditioner == "none" and family == "helmholtz" and rtol <= 1e-7:
                for rival in ("SciPy, GMRES", "PETSc, GMRES"):  # where one ends at its cap, its time is a lower bound of what it needs
                    seconds = at[(family, preconditioner, rtol, rival)]["seconds"]
                    said.append((f"{family}, {rtol:g}: seconds, SKR / {rival}", ours["seconds"] / seconds, 1 / 3))
            theirs = at.get((family, preconditioner, rtol, "PETSc, HPDDM GCRO-DR"))
            if theirs and solved(theirs):
                same.append(ours["products"] / theirs["products"])
        theirs = at.get((family, preconditioner, rtol, "PETSc, GMRES"))
        if method == "GMRES" and preconditioner == "none" and theirs and solved(theirs) and solved(ours):
            parity.append(abs(ours["products"] / theirs["products"] - 1))
    if same:
        said.append(("products, SKR / HPDDM's GCRO-DR, the largest", max(same), 1.1))
    if parity:
        said.append(("GMRES: products, ours beside PETSc's, the largest difference of the ratio from one", max(parity), 0.1))
    return said


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--count", type=int, default=30, help="systems of a sequence; writes no file below the default")
    parser.add_argument("--family", choices=FAMILIES, help="only this one; writes no file")
    options = parser.parse_args()
    with jax.enable_x64(True):
        rows = [row for family in FAMILIES if options.family in (None, family) for row in rows_of(family, "none", options.count)]
        if options.family in (None, "darcy"):
            rows += rows_of("darcy", "ilu", options.count)
    claims = claims_of(rows)
    if options.count >= 30 and options.family is None:
        record.write("krylov_vs_petsc", "Sequences of linear systems, beside PETSc and SciPy", rows, claims, petsc=".".join(map(str, PETSc.Sys.getVersion())))
    else:
        print(claims)


if __name__ == "__main__":
    main()
