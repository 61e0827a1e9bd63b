"""Fields in files: read and write them, in NumPy's `.npz` and in the HDF5 layouts of PDEBench.

Nothing is downloaded, and no data are kept here; `LICENSES.md` lists the licences of those that other packages bring.
"""

from .fields import FieldData, read_fields, write_fields

__all__ = ["FieldData", "read_fields", "write_fields"]
