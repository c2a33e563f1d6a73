"""Fault injection: kills, damaged files, failing disks, races and limits, with counts of lost or wrong results.

    python benchmarks/faults.py [--only PART ...] [--quick] [--seed N] [--minutes M]

Each part writes its table to benchmarks/results/ when it ends. --quick runs a small share of all attempts and writes
separate tables. --minutes limits the time of each row; the table reports the number of attempts.
"""

import argparse
import sys
from importlib import import_module

import side_by_side
from faults.counting import HEADER, Settings

# Share of the attempts with --quick.
_QUICK = {"kills": 0.05, "files": 0.01, "run_folders": 0.01, "disks": 0.1, "races": 0.05, "limits": 0.1}


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--only", nargs="+", choices=_QUICK, default=[*_QUICK])
    parser.add_argument("--quick", action="store_true")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--minutes", type=float, default=1e9)
    request = parser.parse_args()
    has_faults = False
    for part in request.only:
        settings = Settings(_QUICK[part] if request.quick else 1.0, request.seed, request.minutes)
        rows, faults = [], []
        for count in import_module(f"faults.{part}").parts(settings):
            print(count.row(), flush=True)
            rows.append(count.row())
            faults += count.faults
            has_faults = has_faults or count.has_faults
            notes = "\n".join(f"- {line}" for line in faults) or "No faults."
            title = f"Faults: {part}{' (quick)' if request.quick else ''}, seed {request.seed}"
            name = f"faults-{part}{'-quick' if request.quick else ''}"
            side_by_side.write(name, title, HEADER, rows, notes)
    return 1 if has_faults else 0


if __name__ == "__main__":
    sys.exit(main())
