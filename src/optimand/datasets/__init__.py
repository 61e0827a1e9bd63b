"""Fields in files: read and write them, in NumPy's `.npz` and in the HDF5 layouts of PDEBench and The Well; make them, of linear systems.

Nothing is downloaded, and no data are kept here; `LICENSES.md` lists the licences of those that other packages bring.
"""

from .fields import FieldData, read_fields, write_fields
from .generate import Generated, generate_dataset

__all__ = ["FieldData", "Generated", "generate_dataset", "read_fields", "write_fields"]
