"""Benchmarks on problems that nobody here wrote: `optimand bench cutest`.

- `catalogue`: the problems of the CUTEst collection in `sif2jax`, found without importing all of it.
- `entry`: one of them as functions of a vector, which every solver is given alike.
- `solvers`: our methods, and those of SciPy, Ipopt, JAXopt and Optimistix, behind one function.
- `judge`: whether a point is a solution, computed apart from every solver in double precision.
- `worker` and `running`: a process a problem, with a time limit a solver, into a table that can be resumed.
- `profiles`: what the table says: counts, failures with their reasons, Dolan-Moré performance profiles.
"""

__all__: list[str] = []
