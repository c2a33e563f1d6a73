"""Alternating measurement of several variants in separate processes, and the table of the results.

A variant is a command whose last line is a JSON object of metrics. Shared machines are noisy: only ratios of medians
within a run are reliable.
"""

import json
import platform
import statistics
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Callable
from datetime import date
from pathlib import Path

import torch

from skipway.runs.environment import processor

RESULTS = Path(__file__).parent / "results"


def alternating(ways: dict[str, list[str]], rounds: int) -> dict[str, list[dict]]:
    """Run the variants in turn (A B A B), and return the metrics of each round. Failed ones are omitted.

    Args:
        ways: arguments of Python by variant.
        rounds: number of runs of each variant.
    """
    figures = {way: [] for way in ways}
    failed = set()
    for turn in range(rounds):
        for way, words in ways.items():
            if way in failed:
                continue
            done = subprocess.run([sys.executable, *words], capture_output=True, text=True)
            try:
                figures[way].append(json.loads(done.stdout.strip().splitlines()[-1]))
            except (IndexError, json.JSONDecodeError):
                failed.add(way)
                print(f"{way} failed ({done.returncode}): {done.stderr.strip().splitlines()[-1:]}", file=sys.stderr)
                continue
            print(f"round {turn + 1}/{rounds} {way}: {figures[way][-1]}", file=sys.stderr, flush=True)
    return {way: results for way, results in figures.items() if way not in failed}


def median(figures: list[dict], name: str) -> float:
    return statistics.median(round_[name] for round_ in figures)


def spread(figures: list[dict], name: str, shown: Callable[[float], str] = "{:.3g}".format) -> str:
    """Format the median and the range, as in "2 (1 to 3)"."""
    values = [round_[name] for round_ in figures]
    return f"{shown(statistics.median(values))} ({shown(min(values))} to {shown(max(values))})"


def over_plain(figures: dict[str, list[dict]], name: str) -> tuple[list[str], list[list[str]], str]:
    """Return the header, the rows and the notes (profiles) of a table of `name`, with ratios to "plain"."""
    best = median(figures["plain"], name) if "plain" in figures else None
    rows = [
        [way, spread(results, name), f"{median(results, name) / best:.2f}" if best else "-"]
        for way, results in figures.items()
    ]
    notes = [
        f"{way}: " + ", ".join(f"{operator} {share:.0%}" for operator, share in results[-1]["profile"].items())
        for way, results in figures.items()
        if "profile" in results[-1]
    ]
    return ["way", "median (range)", "over plain"], rows, "\n\n".join(notes)


def speed(work: Callable[[], object], images: int, times: int, profiled: bool) -> dict[str, object]:
    """Measure the images/s of `work`.

    Args:
        work: processes `images` images.
        images: batch size.
        times: number of timed calls, after three warm-up calls.
        profiled: add the slowest operators.
    """
    seconds = []
    for _ in range(times + 3):
        begin = time.perf_counter()
        work()
        seconds.append(time.perf_counter() - begin)
    figures = {"images_per_second": images / statistics.median(seconds[3:])}
    return figures | {"profile": operators(work)} if profiled else figures


def operators(work: Callable[[], object], count: int = 8) -> dict[str, float]:
    """Return the `count` operators with the largest share of the CPU time of `work`."""
    with torch.profiler.profile() as profile:
        work()
    taken = Counter({e.key: e.self_cpu_time_total for e in profile.key_averages()})
    return {key: value / taken.total() for key, value in taken.most_common(count)}


def machine() -> str:
    """Describe the processor and the versions of Python and torch."""
    amx = "AMX" if torch.cpu._is_amx_tile_supported() else "no AMX"
    bf16 = "AVX512-BF16" if torch.cpu._is_avx512_bf16_supported() else "no AVX512-BF16"
    return (
        f"{processor()}, {torch.get_num_threads()} cores, {amx}, {bf16}; Python {platform.python_version()}, "
        f"torch {torch.__version__}"
    )


def write(name: str, title: str, header: list[str], rows: list[list[str]], notes: str = "") -> None:
    """Print a table, and save it with the date and the machine to results/."""
    text = page(title, header, rows, notes)
    print(text)
    RESULTS.mkdir(exist_ok=True)
    (RESULTS / f"{date.today().isoformat()}-{name}.md").write_text(text)


def page(title: str, header: list[str], rows: list[list[str]], notes: str = "") -> str:
    """Return a table with the date and the machine as Markdown."""
    lines = [f"# {title}", "", f"{date.today().isoformat()}. {machine()}.", "", _row(header)]
    lines += [_row(["---", *["---:"] * (len(header) - 1)]), *map(_row, rows)]
    return "\n".join(lines + ["", notes.strip()] if notes else lines) + "\n"


def _row(cells: list[str]) -> str:
    return f"| {' | '.join(cells)} |"
