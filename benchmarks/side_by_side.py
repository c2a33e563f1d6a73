"""Runs ways of doing the same thing in turns, each in a process of its own, and writes their table.

A way is a command that prints one JSON object of figures as its last line. Machines are shared and noisy: only ratios
of medians within one run are to be believed.
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
    """The figures of every round of each way, A B A B; a way that fails once is left out and said."""
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
    return {way: found for way, found in figures.items() if way not in failed}


def median(figures: list[dict], name: str) -> float:
    return statistics.median(round_[name] for round_ in figures)


def spread(figures: list[dict], name: str, shown: Callable[[float], str] = "{:.3g}".format) -> str:
    """Median (least to most)."""
    values = [round_[name] for round_ in figures]
    return f"{shown(statistics.median(values))} ({shown(min(values))} to {shown(max(values))})"


def over_plain(figures: dict[str, list[dict]], name: str) -> tuple[list[str], list[list[str]], str]:
    """Header, rows and notes of a table of `name`, each way over "plain"; the notes are profiles."""
    best = median(figures["plain"], name) if "plain" in figures else None
    rows = [
        [way, spread(found, name), f"{median(found, name) / best:.2f}" if best else "-"]
        for way, found in figures.items()
    ]
    notes = [
        f"{way}: " + ", ".join(f"{operator} {share:.0%}" for operator, share in found[-1]["profile"].items())
        for way, found in figures.items()
        if "profile" in found[-1]
    ]
    return ["way", "median (range)", "over plain"], rows, "\n\n".join(notes)


def speed(work: Callable[[], object], images: int, times: int, profiled: bool) -> dict[str, object]:
    """The figures of `work` on so many images, done so many times after three that do not count."""
    seconds = []
    for _ in range(times + 3):
        begin = time.perf_counter()
        work()
        seconds.append(time.perf_counter() - begin)
    figures = {"images_per_second": images / statistics.median(seconds[3:])}
    return figures | {"profile": operators(work)} if profiled else figures


def operators(work: Callable[[], object], count: int = 8) -> dict[str, float]:
    """The operators that take the most of the processor's time in `work`, with their shares."""
    with torch.profiler.profile() as profile:
        work()
    taken = Counter({e.key: e.self_cpu_time_total for e in profile.key_averages()})
    return {key: value / taken.total() for key, value in taken.most_common(count)}


def machine() -> str:
    """What the figures were measured with."""
    amx = "AMX" if torch.cpu._is_amx_tile_supported() else "no AMX"
    bf16 = "AVX512-BF16" if torch.cpu._is_avx512_bf16_supported() else "no AVX512-BF16"
    return (
        f"{processor()}, {torch.get_num_threads()} cores, {amx}, {bf16}; Python {platform.python_version()}, "
        f"torch {torch.__version__}"
    )


def write(name: str, title: str, header: list[str], rows: list[list[str]], notes: str = "") -> None:
    """Prints the table and keeps it, with the day and the machine, in results/."""
    lines = [f"# {title}", "", f"{date.today().isoformat()}. {machine()}.", "", _row(header)]
    lines += [_row(["---", *["---:"] * (len(header) - 1)]), *map(_row, rows)]
    text = "\n".join(lines + ["", notes.strip()] if notes else lines) + "\n"
    print(text)
    RESULTS.mkdir(exist_ok=True)
    (RESULTS / f"{date.today().isoformat()}-{name}.md").write_text(text)


def _row(cells: list[str]) -> str:
    return f"| {' | '.join(cells)} |"
