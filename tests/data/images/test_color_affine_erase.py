import numpy as np
import pytest
import torch
from PIL import Image, ImageEnhance, ImageFilter, ImageOps

from skipway.data.images import color_affine_erase
from skipway.data.images.color_affine_erase import AUGMENT_OPS, NUM_UNIFORM

STRENGTH = 0.6


def random_images(count=5, size=16, channels=3, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return torch.randint(0, 256, (count, channels, size, size), generator=generator).float()


def uniform(count, columns=NUM_UNIFORM, seed=0):
    return torch.rand(count, columns, generator=torch.Generator().manual_seed(seed))


def image(x):
    return Image.fromarray(x.permute(1, 2, 0).to(torch.uint8).numpy())


def pixels(array):
    return torch.from_numpy(np.asarray(array).copy()).permute(2, 0, 1).float()


def changed(number, x, signed):
    return color_affine_erase._TRIVIAL[number](x, torch.full((len(x),), signed)).clamp(0, 255)


@pytest.mark.parametrize("channels", [1, 3, 5])
@pytest.mark.parametrize("name", AUGMENT_OPS)
def test_what_happens_to_a_image_does_not_depend_on_the_others(name, channels):
    x, c = random_images(40, channels=channels), uniform(40)
    whole = AUGMENT_OPS[name](x, c)
    assert whole.shape == x.shape and 0 <= whole.min() and whole.max() <= 255 and not torch.equal(whole, x)
    for rows in ([3], [39, 0, 17]):
        assert torch.allclose(AUGMENT_OPS[name](x[rows], c[rows]), whole[rows], atol=1e-3)


def test_affine_in_the_middle_of_its_range_only_enlarges():
    x = random_images(1, size=33)
    c = torch.tensor([[0.5, 0.0, 0.0, 0.0, 0.5, 0.0]])  # no turn, no enlarging, no shear
    assert torch.allclose(color_affine_erase.affine(x, c), x, atol=1e-2)
    c[0, 2] = 1.0
    enlarged = color_affine_erase.affine(x, c)
    assert torch.allclose(enlarged[..., 16, 16], x[..., 16, 16], atol=1e-2) and not torch.allclose(enlarged, x)


def test_affine_turns_as_pillow_does():
    x = random_images(1, size=32)
    x = torch.nn.functional.avg_pool2d(x, 5, 1, 2)  # smooth, so that two interpolations agree
    c = torch.tensor([[1.0, 0.0, 0.0, 0.9, 0.5, 0.9]])
    wanted = pixels(image(x[0]).rotate(10, Image.Resampling.BILINEAR))
    inner = slice(8, 24)
    assert (color_affine_erase.affine(x, c)[0] - wanted)[:, inner, inner].abs().mean() < 1.5


def test_a_quarter_of_each_change_is_not_made():
    x, c = random_images(4000, size=4), uniform(4000)
    same = (color_affine_erase.color(x, c) == x).all(dim=(1, 2, 3)).double().mean()
    assert abs(same - 0.25**3) < 0.01


@pytest.mark.parametrize(
    "number, wanted",
    [
        (6, lambda p: ImageEnhance.Brightness(p).enhance(1 + 0.99 * STRENGTH)),
        (7, lambda p: ImageEnhance.Color(p).enhance(1 + 0.99 * STRENGTH)),
        (8, lambda p: ImageEnhance.Contrast(p).enhance(1 + 0.99 * STRENGTH)),
        (9, lambda p: ImageEnhance.Sharpness(p).enhance(1 + 0.99 * STRENGTH)),
        (10, lambda p: ImageOps.posterize(p, round(8 - 6 * STRENGTH))),
        (11, lambda p: ImageOps.solarize(p, 255 * (1 - STRENGTH))),
        (12, lambda p: ImageOps.autocontrast(p)),
        (13, lambda p: ImageOps.equalize(p)),
    ],
)
def test_each_change_of_color_is_pillow_s(number, wanted):
    x = random_images(2, size=128) * 0.5 + 40
    x = x.round()
    found = changed(number, x, STRENGTH)
    for mine, original in zip(found, x, strict=True):
        assert (mine - pixels(wanted(image(original)))).abs().mean() < 2.5


def test_smoothing_leaves_the_edge_as_pillow_does():
    x = random_images(1, size=9)
    smooth = changed(9, x, -1 / 0.99)[0]  # a factor of 0 is the smoothed array
    assert (smooth - pixels(image(x[0]).filter(ImageFilter.SMOOTH))).abs().max() <= 1


@pytest.mark.parametrize("number, down, right", [(3, 0, 4), (4, 4, 0)])
def test_shifts_are_by_pixels(number, down, right):
    x = random_images(1, size=16)
    found = changed(number, x, 1.0)
    assert torch.allclose(found[..., : 16 - down, : 16 - right], x[..., down:, right:], atol=1e-2)


@pytest.mark.parametrize("number", [1, 2, 5])
def test_geometry_keeps_the_middle(number):
    x = random_images(1, size=33)
    assert torch.allclose(changed(number, x, 0.7)[..., 16, 16], x[..., 16, 16], atol=0.5)


def test_every_change_of_trivialaugment_is_as_frequent_as_any_other():
    x, c = random_images(2800, size=4), uniform(2800, seed=3)
    choice = (c[:, 0] * len(color_affine_erase._TRIVIAL)).long()
    assert torch.bincount(choice, minlength=14).min() > 140
    untouched = (color_affine_erase.trivial(x, c) == x).all(dim=(1, 2, 3))
    assert untouched[choice == 0].all() and untouched[choice == 5].double().mean() < 0.2


def test_a_image_of_one_value_survives_everything():
    x = torch.full((200, 3, 8, 8), 77.0)
    for name, change in AUGMENT_OPS.items():
        assert torch.isfinite(change(x, uniform(200))).all(), name


def test_erasing_leaves_a_rectangle_of_the_mean_in_a_quarter_of_the_images():
    x, c = random_images(2000, size=20), uniform(2000)
    found = color_affine_erase.erase(x, c)
    touched = (found != x).any(1)
    shares = touched.double().mean((1, 2))
    assert abs((shares > 0).double().mean() - 0.25) < 0.03
    assert 0.015 < shares[shares > 0].min() and shares.max() < 0.36
    for i in torch.where(shares > 0)[0][:20]:
        rows, columns = torch.where(touched[i])
        box = found[i, :, rows.min() : rows.max() + 1, columns.min() : columns.max() + 1]
        assert torch.allclose(box, x[i].mean((1, 2)).view(3, 1, 1).expand_as(box), atol=1e-3)


@pytest.mark.parametrize("channels", [2, 5])
def test_bands_are_changed_as_images_of_their_own(channels):
    """There is no gray of bands that are not RGB, so that no band gets values of another."""
    x, numbers = random_images(channels=channels), uniform(5)
    for name in ("color", "trivial"):
        out = AUGMENT_OPS[name](x, numbers)
        for c in range(channels):
            alone = AUGMENT_OPS[name](x[:, c : c + 1], numbers)
            assert torch.allclose(out[:, c : c + 1], alone, atol=1e-3)
