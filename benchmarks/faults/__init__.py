"""Parts of `python benchmarks/faults.py`: a file per kind of fault."""
