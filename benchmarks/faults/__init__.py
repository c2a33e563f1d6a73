"""The parts of `python benchmarks/faults.py`: one file for each kind of fault."""
