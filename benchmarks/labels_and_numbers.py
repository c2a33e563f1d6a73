"""Several labels and numbers from images: skipway against a plain PyTorch loop with the same network and settings.

    python benchmarks/labels_and_numbers.py [IMAGES] [EPOCHS]

The images are made: 2 x 2 places, each with a digit of scikit-learn's `digits` or empty. The labels are the digits in
an image, the number is their sum. Both loops train a ResNet-20 with SGD, the one-cycle schedule and batches of 64 in
fp32 on one thread, without augmentation, with seeds 0, 1 and 2. The plain loop shuffles with torch's generator. Both
report the weights of the last epoch. Default: 3,000 images and 8 epochs; 1,000 further images validate.
"""

import sys
import tempfile

import numpy as np
import torch
import torch.nn.functional as F
from sklearn.datasets import load_digits
from sklearn.metrics import average_precision_score, r2_score

import skipway as sw
from skipway.data.sources.image_source import Source
from skipway.runs import datamodule
from skipway.training.optimizers import make_optimizer, set_rates
from skipway.training.schedules import make_schedule, momentum_at

_VALIDATION, _BATCH, _SEEDS = 1000, 64, (0, 1, 2)


def make_images(count: int, seed: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Return images (N, 16, 16, 1) uint8, labels (N, 10) of their digits, and the sum (N, 1) of their digits."""
    random = np.random.default_rng(seed)
    digits = load_digits()
    x, y = np.zeros((count, 16, 16, 1), np.uint8), np.zeros((count, 10), np.float32)
    total = np.zeros((count, 1))
    for place in range(4):
        chosen, shown = random.integers(len(digits.target), size=count), random.random(count) < 0.6
        top, left = 8 * (place // 2), 8 * (place % 2)
        pixels = digits.images[chosen] * 15 * shown[:, None, None]
        x[:, top : top + 8, left : left + 8, 0] = pixels.astype(np.uint8)
        y[np.flatnonzero(shown), digits.target[chosen][shown]] = 1
        total[:, 0] += digits.target[chosen] * shown
    return x, y, total


def plain_loop(x: torch.Tensor, y: torch.Tensor, val: torch.Tensor, *, task: str, epochs: int, seed: int) -> np.ndarray:
    """Train with plain PyTorch, and return the outputs for `val`."""
    torch.manual_seed(seed)
    network = sw.create_model("resnet20", y.shape[1], in_chans=1)
    optimizer = make_optimizer(network, "sgd", lr=0.1, momentum=0.9, weight_decay=5e-4)
    schedule, steps = make_schedule("one-cycle", 0.0), -(-len(x) // _BATCH) * epochs
    step = 0
    for _ in range(epochs):
        network.train()
        for rows in torch.randperm(len(x)).split(_BATCH):
            rate = schedule(step / steps)
            set_rates(optimizer, rate * 0.1, momentum_at("one-cycle", 0.9, rate))
            outputs = network(x[rows])
            loss_of = F.mse_loss if task == "regression" else F.binary_cross_entropy_with_logits
            loss_of(outputs, y[rows]).backward()
            optimizer.step()
            optimizer.zero_grad()
            step += 1
    network.eval()
    with torch.no_grad():
        return torch.cat([network(part) for part in val.split(500)]).numpy()


def main(count: int, epochs: int) -> None:
    torch.set_num_threads(1)
    parts = {"train": make_images(count, 0), "val": make_images(_VALIDATION, 1)}
    pixels = {split: values[0] for split, values in parts.items()}
    mean, std = float(pixels["train"].mean()) / 255, float(pixels["train"].std()) / 255
    x, val = (
        torch.from_numpy((pixels[split].astype(np.float32) / 255 - mean) / std).permute(0, 3, 1, 2)
        for split in ("train", "val")
    )
    for task, column, metric in (("multilabel", 1, "map"), ("regression", 2, "r2")):
        targets = {split: values[column] for split, values in parts.items()}
        y = torch.from_numpy(targets["train"]).float()
        center, scale = (float(y.mean()), float(y.std(correction=0))) if task == "regression" else (0.0, 1.0)
        scores = {"skipway": [], "plain": []}
        for seed in _SEEDS:
            scores["skipway"].append(_skipway_score(pixels, targets, task, epochs, seed)[f"val_{metric}"])
            outputs = plain_loop(x, (y - center) / scale, val, task=task, epochs=epochs, seed=seed)
            outputs = outputs * scale + center
            score = r2_score if task == "regression" else average_precision_score
            scores["plain"].append(float(score(targets["val"], outputs)))
        for who, values in scores.items():
            text = " ".join(f"{value:.4f}" for value in values)
            print(f"{task:<11} {metric:<4} {who:<8} {np.mean(values):.4f} +- {np.std(values, ddof=1):.4f} ({text})")


def _skipway_score(
    pixels: dict[str, np.ndarray], targets: dict[str, np.ndarray], task: str, epochs: int, seed: int
) -> dict[str, float]:
    """Return the metrics of a run on the images."""
    source = Source(
        "digits",
        tuple(map(str, range(10))) if task == "multilabel" else (),
        {split: [f"{split}/{i}" for i in range(len(values))] for split, values in targets.items()},
        targets,
        lambda split: iter(list(pixels[split])),
        lambda: list(pixels["train"][:100]),
        task=task,
        target_names=("sum",) if task == "regression" else (),
    )
    datamodule.open_recipe_data = lambda recipe: source
    run = sw.train(
        "digits",
        "resnet20",
        epochs=epochs,
        batch_size=_BATCH,
        lr=0.1,
        augment="none",
        allow_duplicates=True,
        precision="fp32",
        threads=1,
        seed=seed,
        output=tempfile.mkdtemp(),
    )
    return run.history[-1]


if __name__ == "__main__":
    main(*(int(argument) for argument in sys.argv[1:]) if len(sys.argv) > 2 else (3000, 8))
