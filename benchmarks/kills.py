"""Kill a training 20 times at random moments; each must resume to the bits of a run that was never killed.

    python benchmarks/kills.py [--kills N] [--seed N]

One run is never killed. Others get SIGKILL at moments spread over a run's life (start-up, decoding, training, saving,
evaluation, report) and are started again, with --resume as soon as there is something to go on with, until all kills
are spent and each run has finished. Compared are all tensors of weights/best.safetensors and weights/last.
"""

import argparse
import hashlib
import random
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from skipway.training import checkpoint

KILLS_A_RUN = 4
OPTIONS = (
    "-m resnet20 --epochs 4 --threads 1 --ema 0.9 --drop-path 0.1 --grad-accum-steps 2 --save-every 0 -o runs".split()
)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--kills", type=int, default=20)
    parser.add_argument("--seed", type=int, default=0)
    asked = parser.parse_args()
    chance = random.Random(asked.seed)
    with tempfile.TemporaryDirectory(prefix="skipway-kills-") as name:
        place = Path(name)
        begun = time.monotonic()
        finish(place, "whole")
        life = time.monotonic() - begun
        wanted = digest(place / "runs" / "whole")
        print(f"never killed: {life:.1f} s, {wanted[:16]}", flush=True)
        good = kills = runs = 0
        while kills < asked.kills:
            runs += 1
            run, said = f"killed-{runs}", []
            while len(said) < min(KILLS_A_RUN, asked.kills - kills):
                where = killed(place, run, chance.uniform(0.05, life))
                if where is None:
                    life *= 0.8  # the machine is quicker now
                    break
                said.append(where)
            finish(place, run)
            same = digest(place / "runs" / run) == wanted
            for where in said:
                kills += 1
                good += same
                print(f"kill {kills:2}: {run}, {where}: {'bit-identical' if same else 'DIFFERENT'}", flush=True)
    print(f"{good} of {asked.kills} resumed to bit-identical weights")
    return 0 if good == asked.kills else 1


def command(place: Path, run: str) -> list[str]:
    """The same command again, or --resume as soon as there is something to go on with."""
    start = [sys.executable, "-m", "skipway", "train"]
    if (place / "runs" / run / "weights" / "last").exists():
        return [*start, "--resume", f"runs/{run}"]
    return [*start, "digits", *OPTIONS, "--name", run]


def killed(place: Path, run: str, moment: float) -> str | None:
    """Start or go on with a run, kill it after `moment` seconds, and say where that was; None where it was over."""
    with subprocess.Popen(command(place, run), cwd=place, stdout=subprocess.PIPE, stderr=subprocess.STDOUT) as process:
        try:
            process.wait(moment)
        except subprocess.TimeoutExpired:
            process.kill()
        if process.wait() != -signal.SIGKILL:
            return None
    folder = place / "runs" / run
    last = folder / "weights" / "last"
    saving = " while saving" if list(folder.rglob(".tmp-*")) or list(folder.rglob(".*.tmp-*")) else ""
    if not last.exists() or not any(last.glob("step-*")):
        return f"{moment:5.2f} s after its start, before the first checkpoint{saving}"
    return f"{moment:5.2f} s after its start, with step {checkpoint.load_checkpoint(last).step} saved{saving}"


def finish(place: Path, run: str) -> None:
    done = subprocess.run(command(place, run), cwd=place, capture_output=True, text=True)
    if done.returncode:
        raise SystemExit(f"{run} could not be finished (exit code {done.returncode}): {done.stderr.strip()}")


def digest(folder: Path) -> str:
    """SHA-256 over the name, type, shape and bytes of every tensor of best and last."""
    last = checkpoint.load_checkpoint(folder / "weights" / "last")
    both = {"best": checkpoint.load_weights(folder / "weights" / "best.safetensors")[0], "last": last.tensors}
    whole = hashlib.sha256(str(last.step).encode())
    for kind, tensors in both.items():
        for name, tensor in sorted(tensors.items()):
            whole.update(f"{kind} {name} {tensor.dtype} {tuple(tensor.shape)}".encode())
            whole.update(tensor.contiguous().numpy().tobytes())
    return whole.hexdigest()


if __name__ == "__main__":
    sys.exit(main())
