"""The examples: parameter counts as published, and each run in miniature."""

import importlib.util
import inspect
import shutil
import sys
from functools import partial
from pathlib import Path

import numpy as np
import pytest
import torch
from image_folders import parquet, split_folders
from PIL import Image
from processes import run
from small_runs import QUICK
from torch import nn

import skipway as sw

FOLDER = Path(__file__).parent.parent / "examples"
NAMES = ("airplane", "automobile", "bird")


def example(name):
    spec = importlib.util.spec_from_file_location(f"example_{name}", FOLDER / f"{name}.py")
    module = sys.modules[spec.name] = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


notes, fastbook, unet, policy = (example(name) for name in ("notes", "fastbook", "unet", "policy"))
transformer = example("transformer")


def count(network):
    return sum(p.numel() for p in network.parameters())


def drawn(path):
    with Image.open(path) as image:
        return image.size


# Counts


@pytest.mark.parametrize(
    "name, parameters",
    [
        ("Net", 18_090),
        ("NetWidth", 38_386),
        ("NetDropout", 38_386),
        ("NetBatchNorm", 38_386 + 2 * (32 + 16)),
        ("NetDepth", 16_130),
        ("NetRes", 16_130),
        ("NetResDeep, 10", 159_330),
        ("NetResDeep, 100", 994_530),
    ],
)
def test_the_road_has_the_published_counts(name, parameters):
    network = notes.NETWORKS[name][0]()
    assert count(network) == parameters and network(torch.randn(2, 3, 32, 32)).shape == (2, 2)


@pytest.mark.parametrize(
    "name, parameters",
    [
        ("plain", 395_674),
        ("one block", 1_226_890),
        ("two blocks", 2_800_202),
        ("xresnet18", 11_200_874),
        ("xresnet50", 23_547_754),
    ],
)
def test_the_five_networks_have_the_published_counts(name, parameters):
    assert count(fastbook.NETWORKS[name](10)) == parameters


def test_the_policy_and_the_digits_network_have_the_counts_of_their_layers():
    assert count(policy.policy()) == (224 * 128 + 128) + (128**2 + 128) + (128 * 32 + 32) + (32**2 + 32) + (32 * 4 + 4)
    assert policy.digits_network()(torch.randn(2, 1, 28, 28)).shape == (2, 10)  # 28 -> 27 -> 13 -> 12 -> 6 -> 5
    assert count(policy.digits_network()) == 99_626


# What they say of themselves


def test_a_hundred_blocks_are_a_hundred_and_a_block_begins_as_it_should():
    network = notes.residual(100)
    skips = [skip for _, skip in sw.named_skips(network)]
    assert len(skips) == 100 and len({id(p) for p in network.parameters()}) == 306
    norm = skips[0].body[1]
    x = torch.randn(64, 32, 8, 8)
    assert norm.weight.eq(0.5).all() and norm(skips[0].body[0](x)).var().item() == pytest.approx(0.25, rel=0.02)


def test_an_l2_penalty_and_weight_decay_of_twice_its_factor_are_the_same_step():
    data = (torch.randn(64, 3, 32, 32), torch.randint(2, (64,)))
    ends = []
    for penalty, decay in ((1e-3, 0.0), (0.0, 2e-3)):
        torch.manual_seed(0)
        network = notes.net()
        notes.train(network, (data, data), 1, 1e-2, penalty, decay)
        ends.append(torch.cat([p.detach().flatten() for p in network.parameters()]))
    assert torch.allclose(*ends, atol=1e-7)


def test_a_shortcut_adds_no_parameter_and_its_network_gives_another_answer():
    plain, with_skip = notes.deeper(shortcut=False), notes.deeper(shortcut=True)
    values = dict(zip(with_skip.state_dict(), plain.state_dict().values(), strict=True))
    with_skip.load_state_dict(values)
    x = torch.randn(2, 3, 32, 32)
    assert count(plain) == count(with_skip) and not torch.allclose(plain(x), with_skip(x))


def test_a_new_block_of_the_five_starts_as_its_shortcut_with_a_gradient():
    block = fastbook.block(8, 8)
    assert sw.output_shape(block, (1, 8, 4, 4)) == (1, 8, 4, 4) and block.shortcut is None
    x = torch.randn(2, 8, 4, 4).relu()
    assert torch.equal(block(x), x)
    block(x).square().sum().backward()
    assert block.body[-1].weight.grad.abs().sum() > 0


@pytest.mark.parametrize("size", [16, 17, 23, (9, 14)])
def test_a_u_net_keeps_any_size(size):
    height, width = (size, size) if isinstance(size, int) else size
    assert unet.unet(2, 5, (4, 6, 8))(torch.randn(2, 2, height, width)).shape == (2, 5, height, width)


def test_the_u_net_is_nested_skips_in_under_forty_lines():
    parts = [unet.convolutions, unet.AsLargeAs, unet.level, unet.unet]
    assert sum(len(inspect.getsource(part).splitlines()) for part in parts) < 40
    paths = [path for path, _ in sw.named_skips(unet.unet(1, 2, (4, 6, 8)))]
    assert len(paths) == 3 and all(inner.startswith(outer) for outer, inner in zip(paths, paths[1:], strict=False))


# In miniature


@pytest.fixture(scope="module")
def cifar(tmp_path_factory):
    folder = tmp_path_factory.mktemp("cifar")
    parquet(folder / "train-0.parquet", [i % 3 for i in range(96)], NAMES, seed=0)
    parquet(folder / "test-0.parquet", [i % 3 for i in range(30)], NAMES, seed=1)
    return folder


def test_the_road_ends_in_a_table_and_a_image(cifar, tmp_path):
    pytest.importorskip("pyarrow")
    command = [sys.executable, FOLDER / "notes.py", cifar, "--epochs", "1", "--only", "Net,NetRes", "--out", "road.png"]
    done = run(*command, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    lines = done.stdout.splitlines()
    assert lines[0].split() == ["network", "parameters", "seconds", "train", "validation"]
    assert lines[1].split()[:2] == ["Net", "18,090"] and lines[2].split()[:2] == ["NetRes", "16,130"]
    assert drawn(tmp_path / "road.png") == (1080, 540)


def test_depth_is_shown_with_and_without_shortcuts(cifar, tmp_path):
    options = ["--depths", "8,14", "--epochs", "1", "--widths", "4,8,8", "--size", "8", "--points", "3"]
    command = [sys.executable, str(FOLDER / "depth.py"), str(cifar), *options]
    done = run(*command, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    rows = [line.split() for line in done.stdout.splitlines()]
    assert [row[0] for row in rows[1:5]] == ["plain-8", "residual-8", "plain-14", "residual-14"]
    assert rows[1][1] == rows[2][1], "a shortcut has added parameters"
    assert (tmp_path / "depth" / "index.html").read_text().count("data:image/png;base64") == 4


def test_photographs_train_in_a_table(tmp_path):
    for split, many in (("train", 34), ("val", 4)):
        for kind, shade in (("dark", 40), ("light", 200)):
            (tmp_path / split / kind).mkdir(parents=True)
            for i in range(many // 2):
                noise = np.random.default_rng(i + len(split)).integers(-30, 30, (40, 50, 3)) + shade
                Image.fromarray(noise.astype(np.uint8)).save(tmp_path / split / kind / f"{i}.png")
    data = fastbook.photographs(tmp_path, 32)
    assert data[0][0].shape == (34, 3, 32, 32) and data[2] == ("dark", "light")
    network = sw.Chain(nn.AvgPool2d(32), nn.Flatten(), nn.Linear(3, 2))
    seconds, share = fastbook.train(network, data, epochs=8, lr=0.3)
    assert share == 1 and seconds > 0


def test_photographs_are_copied_once_and_trained_on_offline(tmp_path, monkeypatch, capsys):
    ants_bees, quick = example("ants_bees"), partial(sw.train, **QUICK)
    source = split_folders(tmp_path / "hymenoptera", ("ants", "bees"), count=6)
    archive = shutil.make_archive(tmp_path / "data", "zip", tmp_path, "hymenoptera")
    ants_bees.copy_photographs(source, tmp_path / "of_folder")
    monkeypatch.setattr(ants_bees, "download", None)
    monkeypatch.setattr(ants_bees.sw, "train", quick)
    run = ants_bees.main(["--source", archive, "--data", str(tmp_path / "copy"), "--output", str(tmp_path / "runs")])
    for copy in ("copy", "of_folder"):
        folders = {str(path.relative_to(tmp_path / copy)) for path in (tmp_path / copy).rglob("*s")}
        assert folders == {"train/ants", "train/bees", "val/ants", "val/bees"}
    assert run.metrics["epochs"] and "validation accuracy" in capsys.readouterr().out
    ants_bees.copy_photographs("nowhere", tmp_path / "copy")  # it is there


def test_a_u_net_learns_its_scenes_and_draws_them(tmp_path):
    _, shares, shown = unet.train(steps=25, size=25, widths=(8, 12))
    assert shares[0] > 0.7 and max(shares[1:]) > 0.15
    unet.draw(*shown, tmp_path / "u.png")
    assert drawn(tmp_path / "u.png")[0] > 500


def test_a_policy_finds_its_way():
    network = policy.skipping(1)
    sw.output_shape(network, (1, 224))
    x, y = policy.boards(200, seed=3)
    assert x.sum(1).eq(0).all() and set(y.tolist()) == {0, 1, 2, 3}
    optimizer = torch.optim.AdamW(network.parameters(), 1e-2)
    for _ in range(60):
        optimizer.zero_grad()
        nn.functional.cross_entropy(network(x), y).backward()
        optimizer.step()
    assert (network(x).argmax(1) == y).double().mean() > 0.9


def test_the_transformer_learns_and_ignores_padding(capsys):
    assert transformer.main(["--steps", "12"]) > 0.4
    assert "after 12 steps" in capsys.readouterr().out
    torch.manual_seed(0)
    network = transformer.Classifier().eval()
    tokens, padding, labels = transformer.batch(64, torch.Generator().manual_seed(0))
    changed = torch.where(padding, (tokens + 1) % transformer.TOKENS, tokens)
    assert torch.allclose(network(tokens, padding), network(changed, padding), atol=1e-5)
    for row, hidden, label in zip(tokens, padding, labels, strict=True):
        kept = row[~hidden]
        assert torch.equal(kept, kept.flip(0)) == bool(label)
