"""Depth with and without shortcuts: accuracy, gradients and loss landscapes of plain and residual networks.

    python examples/depth.py CIFAR10 [--depths 20,32,44,56] [--epochs 8] [--count 20000] [--size 16] [--out depth]

CIFAR10 is a folder of Hugging Face parquet files. The networks of He et al. 2015 (arXiv:1512.03385, figure 6) are
trained with and without shortcuts, which add no parameters (option A). The initial convolutions and the order of the
images are the same. The folder OUT gets a table, plots and a page, index.html.
"""

import argparse
import base64
import html
import json
import time
from pathlib import Path

import torch
from torch import nn

import skipway as sw
from skipway.report import compare_plot, loss_landscape_plot, network_plots

KINDS = {"plain": "none", "residual": "pad"}


def images(folder, count, size):
    """Load (images, labels) of the training and the test set; images are (N, 3, size, size), normalized."""
    from skipway.data.images.choose_decode_settings import choose_decode_settings
    from skipway.data.images.decoded_cache import decode_images
    from skipway.data.sources.choose_source import open_source

    source = open_source(folder)
    packed = decode_images(source, choose_decode_settings(source, size, "squash", 10**6))
    rows = packed.splits["train"], packed.splits["test"]
    order = torch.randperm(len(rows[0]), generator=torch.Generator().manual_seed(0))[:count]
    parts = []
    for indices in (rows[0][order.numpy()], rows[1]):
        x = torch.from_numpy(packed.pixels[indices]).permute(0, 3, 1, 2).float() / 255
        start = (x.shape[-1] - size) // 2
        x = x[:, :, start : start + size, start : start + size]
        parts.append(
            (x.contiguous(memory_format=torch.channels_last), torch.from_numpy(packed.targets[indices]).long())
        )
    mean, std = (f(parts[0][0].transpose(0, 1).flatten(1), 1).view(1, 3, 1, 1) for f in (torch.mean, torch.std))
    return [((x - mean) / std, y) for x, y in parts]


def network(depth, kind, widths):
    """Create a CIFAR network of 6n + 2 layers. Plain and residual ones have the same initial convolutions."""
    torch.manual_seed(0)
    model = sw.create_model("resnet20", layers=[(depth - 2) // 6] * 3, shortcut=KINDS[kind], widths=widths)
    for module in model.modules():  # skipway zero-initializes residual bodies, which plain networks cannot use
        if isinstance(module, nn.BatchNorm2d):
            nn.init.ones_(module.weight)
    return model.to(memory_format=torch.channels_last)


def train(model, data, epochs, lr):
    """Train a network, and return a row per epoch with seconds, training accuracy and test accuracy."""
    (x, y), (test_x, test_y) = data
    optimizer = torch.optim.SGD(model.parameters(), lr, momentum=0.9, weight_decay=5e-4, nesterov=True)
    course = torch.optim.lr_scheduler.OneCycleLR(optimizer, lr, epochs=epochs, steps_per_epoch=-(-len(y) // 128))
    accuracy_of, rows = sw.probe.batches_accuracy(test_x, test_y), []
    for epoch in range(epochs):
        begin, right = time.perf_counter(), 0
        model.train()
        chance = torch.Generator().manual_seed(epoch)
        for batch in torch.randperm(len(y), generator=chance).split(128):
            mirrored = x[batch].flip(-1) if torch.rand((), generator=chance) < 0.5 else x[batch]
            with torch.autocast("cpu", torch.bfloat16):
                outputs = model(mirrored).float()
            loss = nn.functional.cross_entropy(outputs, y[batch])
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            course.step()
            right += int((outputs.argmax(1) == y[batch]).sum())
        row = {"epoch": epoch + 1, "seconds": time.perf_counter() - begin, "train_accuracy": right / len(y)}
        rows.append({**row, "val_accuracy": accuracy_of(model.eval())})
    return rows


def page(rows, folder):
    """Write index.html with the table and the plots embedded."""
    table = "".join(
        f"<tr><td>{r['network']}</td><td>{r['parameters']:,}</td><td>{r['train']:.1%}</td><td>{r['test']:.1%}</td>"
        f"<td>{r['gradient']:.2g}</td><td>{r['curvature']:.2g}</td></tr>"
        for r in rows
    )
    figures = "".join(
        f"<h2>{html.escape(title)}</h2><img src='data:image/png;base64,{base64.b64encode(file.read_bytes()).decode()}'>"
        for title, file in (
            ("Test accuracy", folder / "curves.png"),
            ("Activations and gradients of the deepest networks, before and after training", folder / "flow.png"),
            ("Loss along a random direction", folder / "landscape.png"),
            ("Loss landscape of the deepest networks", folder / "square.png"),
        )
    )
    (folder / "index.html").write_text(
        "<!DOCTYPE html><meta charset=utf-8><title>Depth</title><style>body{font:16px/1.5 system-ui;max-width:1000px;"
        "margin:40px auto;padding:0 20px}img{max-width:100%}td,th{padding:4px 14px 4px 0;text-align:left}</style>"
        "<h1>Depth with and without shortcuts</h1><table><tr><th>network<th>parameters<th>training accuracy"
        "<th>test accuracy<th>gradient norm of the first layer before training<th>curvature</tr>"
        f"{table}</table>{figures}"
    )


def main():
    parser = argparse.ArgumentParser(description="Depth with and without shortcuts.")
    parser.add_argument("data", metavar="CIFAR10", help="folder of Hugging Face parquet files")
    parser.add_argument("--depths", default="20,32,44,56", help="numbers of layers, 6n + 2")
    parser.add_argument("--epochs", type=int, default=8)
    parser.add_argument("--count", type=int, default=20_000, help="number of training images")
    parser.add_argument("--size", type=int, default=16)
    parser.add_argument("--widths", default="16,32,64")
    parser.add_argument("--lr", type=float, default=0.1)
    parser.add_argument("--points", type=int, default=21, help="points of the loss along a line")
    parser.add_argument("--out", type=Path, default=Path("depth"))
    options = parser.parse_args()
    options.out.mkdir(parents=True, exist_ok=True)
    data = images(options.data, options.count, options.size)
    depths, widths = [int(d) for d in options.depths.split(",")], [int(w) for w in options.widths.split(",")]
    batch, samples = (data[1][0][:128], data[1][1][:128]), (data[1][0][:256], data[1][1][:256])
    rows, courses, flows, lines, squares = [], {}, {}, {}, {}
    print(
        f"{'network':<14}{'parameters':>11}{'training':>10}{'test':>8}{'gradient':>10}{'curvature':>11}{'seconds':>9}"
    )
    for depth in depths:
        for kind in KINDS:
            name, model = f"{kind}-{depth}", network(depth, kind, widths)
            before = sw.probe.flow(model, *batch)
            courses[name] = train(model, data, options.epochs, options.lr)
            lines[name] = sw.probe.landscape(model, sw.probe.batches_loss(*samples), points=options.points).as_dict()
            if depth == depths[-1]:
                flows |= {
                    f"{name}, fresh": before.as_dict(),
                    f"{name}, trained": sw.probe.flow(model, *batch).as_dict(),
                }
                side = max(3, options.points * 3 // 5 // 2 * 2 + 1)
                square = sw.probe.landscape(model, sw.probe.batches_loss(*samples), points=side, dims=2)
                squares[name] = square.as_dict()
            row = {
                "network": name,
                "parameters": sum(p.numel() for p in model.parameters()),
                "train": courses[name][-1]["train_accuracy"],
                "test": courses[name][-1]["val_accuracy"],
                "gradient": before.layers[0].gradient_norm,
                "curvature": lines[name]["curvature"] or float("nan"),
                "seconds": sum(r["seconds"] for r in courses[name]),
            }
            rows.append(row)
            print(
                f"{name:<14}{row['parameters']:>11,}{row['train']:>10.1%}{row['test']:>8.1%}{row['gradient']:>10.2g}"
                f"{row['curvature']:>11.2g}{row['seconds']:>9.0f}",
                flush=True,
            )
    (options.out / "depth.json").write_text(json.dumps({"rows": rows, "courses": courses}, indent=1))
    compare_plot.plot_run_comparison(courses, options.out / "curves.png")
    network_plots.plot_signal_flow(flows, options.out / "flow.png")
    loss_landscape_plot.plot_loss_landscape(lines, options.out / "landscape.png")
    loss_landscape_plot.plot_loss_landscape(squares, options.out / "square.png")
    page(rows, options.out)
    print(f"saved {options.out / 'index.html'}")


if __name__ == "__main__":
    main()
