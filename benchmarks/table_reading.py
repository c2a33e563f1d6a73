"""Reading and encoding of CSV tables, next to pandas, and the peak memory of a run on a large table.

    python benchmarks/table_reading.py [ROWS] [ROUNDS]

A table has 20 columns: 13 of numbers, 3 of categories, 1 each of dates, truths and identifiers, and a target. In every
round pandas.read_csv, read_table, the exact parser and the whole preparation (columns, splits, digests, encoding) run
one after the other in one process; the results are medians of CPU seconds. The peak memory is that of separate
processes that train for 1 epoch and predict. `ROWS` defaults to 100,000 and `ROUNDS` to 5.
"""

import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pandas as pd
from side_by_side import write

from skipway.data.column_roles import ColumnRoles
from skipway.data.sources.csv_parser import read_text
from skipway.data.sources.read_table import read_table
from skipway.data.tables.dataset import build_table_dataset
from skipway.data.tables.table_source import open_table_source

_PEAK = """
import sys
from skipway.cli.app import main
try:
    main(sys.argv[1:])
except SystemExit:
    pass
print("peak", next(line.split()[1] for line in open("/proc/self/status") if line.startswith("VmHWM")))
"""


def write_table(path: Path, rows: int) -> None:
    """Write a table of 20 columns, with missing values, full-precision and rounded numbers."""
    random = np.random.default_rng(0)
    columns: dict[str, object] = {f"rounded{i}": random.normal(50, 20, rows).round(3) for i in range(6)}
    columns |= {f"full{i}": random.normal(0, 1, rows) for i in range(4)}
    columns |= {f"count{i}": random.integers(0, 1000, rows) for i in range(3)}
    columns |= {f"city{i}": random.choice([f"city {k}" for k in range(30)], rows) for i in range(3)}
    columns["garden"] = random.choice(["yes", "no"], rows)
    days = pd.to_timedelta(random.integers(0, 1500, rows), unit="D")
    columns["day"] = (pd.to_datetime("2020-01-01") + days).strftime("%Y-%m-%d")
    columns["id"] = [f"u{k:07d}" for k in range(rows)]
    frame = pd.DataFrame(columns)
    frame["y"] = (frame["rounded0"] * 3 + (frame["city0"] == "city 3") * 40 + random.normal(0, 5, rows)).round(1)
    frame.loc[random.random(rows) < 0.1, "rounded1"] = np.nan
    frame.loc[random.random(rows) < 0.1, "city1"] = None
    frame.to_csv(path, index=False)


def peak_memory(words: list[str]) -> float:
    """Return the peak memory of a command in GB."""
    done = subprocess.run([sys.executable, "-c", _PEAK, *words], capture_output=True, text=True, check=True)
    return int(done.stdout.rsplit("peak", 1)[1]) / 1e6


def main(rows: int, rounds: int) -> None:
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, "t.csv")
        write_table(path, rows)
        roles = ColumnRoles(target=("y",))
        ways: dict[str, Callable[[], object]] = {
            "pandas.read_csv": lambda: pd.read_csv(path),
            "read_table": lambda: read_table(path),
            "read_table and encode": lambda: build_table_dataset(open_table_source(str(path), roles), 0.2, 0),
            "exact parser": lambda: [column.factorize() for column in read_text(path, plain=False).columns.values()],
        }
        seconds: dict[str, list[float]] = {way: [] for way in ways}
        for _ in range(rounds):
            for way, work in ways.items():
                begin = time.process_time()
                work()
                seconds[way].append(time.process_time() - begin)
        medians = {way: statistics.median(values) for way, values in seconds.items()}
        over = medians["pandas.read_csv"]
        lines = [[way, f"{value:.3f}", f"{value / over:.1f}"] for way, value in medians.items()]
        train = ["train", str(path), "--target", "y", "--epochs", "1", "--batch-size", "4096", "--output", folder]
        peaks = {
            "train": peak_memory([*train, "--name", "run"]),
            "predict": peak_memory(["predict", f"{folder}/run", str(path), "--csv", f"{folder}/p.csv"]),
        }
    notes = "; ".join(f"{command}: peak memory {peak:.2f} GB" for command, peak in peaks.items())
    title = f"Reading a CSV table of {rows:,} rows and 20 columns: CPU seconds, medians of {rounds}"
    write(f"table-reading-{rows}", title, ["way", "CPU seconds", "over pandas"], lines, notes)


if __name__ == "__main__":
    main(*(int(word) for word in (sys.argv[1:] + ["100000", "5"][len(sys.argv) - 1 :])))
