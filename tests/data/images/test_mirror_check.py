import numpy as np
import pytest
from PIL import Image
from small_runs import Words, image_folder, quick

from skipway.data.images.mirror_check import flip_harm, sided_names
from skipway.report import html

SIDED = [
    ("left", "right"),
    ("Left", "Right", "Straight"),
    ("turn_left", "turn_right"),
    ("turnLeft", "turnRight"),
    ("arrow-right", "arrow-up"),
    ("Pfeil hoch", "Haus"),
    ("links", "rechts"),
    ("Linke Hand", "Rechte Hand"),
    ("main gauche", "main droite"),
    ("mano_izquierda", "mano_derecha"),
    ("flèche", "maison"),
    ("clockwise", "counter-clockwise", "anticlockwise"),
    ("plain", "mirrored"),
    ("normal", "gespiegelt"),
    tuple("0123456789"),
    tuple(f"digit_{n}" for n in range(10)),
    ("A", "B", "C"),
    ("letter b", "letter d"),
    ("p", "q"),
]
EITHER = [
    ("cat", "dog"),
    ("right whale", "blue whale"),
    ("copyright", "leftover"),
    ("golf links", "beach"),
    ("mirror", "window"),
    ("0", "1"),
    ("1", "2", "10"),
    tuple(f"class_{n}" for n in range(10)),
    ("a", "bb"),
    ("vitamin b", "vitamin c", "iron"),
    ("ant", "bee"),
]


@pytest.mark.parametrize("names", SIDED, ids="-".join)
def test_names_that_depend_on_left_and_right_are_found(names):
    assert sided_names(names)


@pytest.mark.parametrize("names", EITHER, ids="-".join)
def test_other_names_are_not(names):
    assert not sided_names(names)


def bars(count, sided, side=16):
    """Noise with a bright bar at the left or the right; the class is its side, or whether there is a second bar."""
    rng = np.random.default_rng(0)
    pixels = rng.integers(0, 120, (count, side, side, 1), dtype=np.uint8)
    labels, left = np.arange(count) % 2, rng.random(count) < 0.5
    for i, image in enumerate(pixels):
        at_left = labels[i] == 0 if sided else left[i]
        image[:, slice(1, 5) if at_left else slice(-5, -1)] += 100
        if not sided and labels[i]:
            image[2:5] += 30
    return pixels, labels


@pytest.mark.parametrize("count", [40, 400, 3000])
def test_images_whose_class_is_their_side_are_found(count):
    harm, chance = flip_harm(*bars(count, sided=True), np.arange(count))
    assert harm > 0.2 and chance < 1e-3


def test_images_that_a_mirror_leaves_in_their_class_are_not():
    for count in (40, 400):
        harm, chance = flip_harm(*bars(count, sided=False), np.arange(count))
        assert harm < 0.1 or chance > 1e-3
    assert flip_harm(*bars(12, sided=True), np.arange(12)) == (0.0, 1.0)
    flat = np.zeros((20, 8, 8, 3), np.uint8)
    assert flip_harm(flat, np.arange(20) % 2, np.arange(20))[0] == 0


@pytest.fixture
def bare(monkeypatch):
    monkeypatch.setattr(html, "write", lambda folder: folder / "report.html")


def sides(root, names=("left", "right"), count=16):
    pixels, labels = bars(2 * count, sided=True, side=8)
    for k, name in enumerate(names):
        (root / name).mkdir(parents=True)
        for i, image in enumerate(pixels[labels == k]):
            Image.fromarray(image[:, :, 0]).save(root / name / f"{i}.png")
    return root


@pytest.mark.parametrize(
    "names, reason",
    [(("left", "right"), "are mirror images of"), (("kind0", "kind1"), "accuracy of a simple classifier by")],
)
def test_a_run_on_sides_does_not_flip_and_reports_why(tmp_path, bare, names, reason):
    words = Words()
    run = quick(sides(tmp_path / "d", names, count=40), tmp_path / "runs", words, epochs=12, lr=0.05)
    assert "flips are disabled: " in words and reason in words and "flip" not in run.metrics["augmentation"]
    assert any(warning.startswith("flips are disabled") for warning in run.metrics["data"]["warnings"])
    assert not run.network().spec.mirrored and run.metrics["val_accuracy"] > 0.8


def test_flips_that_are_asked_for_are_trained_with_a_warning(tmp_path, bare):
    words = Words()
    run = quick(sides(tmp_path / "d"), tmp_path / "runs", words, epochs=1, augment="shift+flip")
    assert "flips may hurt: the classes 'left' and 'right' are mirror images of each other. Remove flip from" in words
    assert "flip" in run.metrics["augmentation"]


def test_other_images_are_flipped_without_a_word(tmp_path, bare):
    words = Words()
    run = quick(image_folder(tmp_path / "d", 10), tmp_path / "runs", words, epochs=1)
    assert "flip" in run.metrics["augmentation"] and "flips" not in words
