import pytest
import torch
import torch.nn.functional as F
from scipy.stats import beta, kstest

from skipway.data.images.mixup_cutmix import mix_samples, mix_weights


def random_images(count=5, size=16, channels=3, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return torch.randint(0, 256, (count, channels, size, size), generator=generator).float()


def uniform(count, columns=4, seed=0):
    return torch.rand(count, columns, generator=torch.Generator().manual_seed(seed))


def test_mixup_blends_each_image_and_its_target_with_the_one_before():
    x, y, c = random_images(64), torch.arange(64) % 4, uniform(64).double().numpy()
    found, target = mix_samples(x, y, c, num_classes=4, mixup=0.4, cutmix=0.0)
    share = target.gather(1, y[:, None])[:, 0]
    own = y != y.roll(1)
    blend = share.view(-1, 1, 1, 1) * x + (1 - share).view(-1, 1, 1, 1) * x.roll(1, 0)
    assert torch.allclose(found[own], blend[own], atol=1e-3) and torch.allclose(target.sum(1), torch.ones(64))
    assert own.all()


def test_shares_of_mixup_are_beta_distributed():
    count = 4000
    y = torch.arange(count) % 2
    _, target = mix_samples(
        torch.zeros(count, 1, 1, 1), y, uniform(count).double().numpy(), num_classes=2, mixup=0.3, cutmix=0.0
    )
    assert kstest(target.gather(1, y[:, None])[:, 0].numpy(), beta(0.3, 0.3).cdf).pvalue > 1e-3


def test_cutmix_puts_a_square_of_the_other_image_in_and_counts_it():
    x = torch.arange(32.0).view(-1, 1, 1, 1).expand(-1, 1, 20, 20).clone()
    y = torch.arange(32) % 4
    found, target = mix_samples(x, y, uniform(32).double().numpy(), num_classes=4, mixup=0.0, cutmix=1.0)
    inside = found == x.roll(1, 0)
    assert (inside | (found == x)).all()
    assert torch.allclose(target.gather(1, y[:, None])[:, 0], 1 - inside.float().mean((1, 2, 3)), atol=1e-6)


def test_where_both_are_asked_for_each_image_has_one():
    x, y = random_images(400, size=12), torch.arange(400) % 3
    found, target = mix_samples(x, y, uniform(400).double().numpy(), num_classes=3, mixup=1.0, cutmix=1.0)
    cut = ((found == x) | (found == x.roll(1, 0))).all(dim=(1, 2, 3))
    assert 0.4 < cut.double().mean() < 0.6 and target.shape == (400, 3)


@pytest.mark.parametrize("alphas", [(0.4, 0.0), (0.0, 1.0), (1.0, 1.0)])
def test_the_loss_of_a_weighted_mixture_is_the_weighted_mean_of_both_losses(alphas):
    x, y, c = random_images(64), torch.arange(64) % 4, uniform(64).double().numpy()
    options = {"mixup": alphas[0], "cutmix": alphas[1]}
    weights = torch.tensor([0.0, 1.0, 0.5, 4.0]).repeat_interleave(16)[torch.randperm(64)]
    _, plain = mix_samples(x, y, c, num_classes=4, **options)
    _, target = mix_samples(x, y, c, num_classes=4, **options, weights=weights)
    mixed = mix_weights(weights, c, size=16, **options)
    share = plain.gather(1, y[:, None])[:, 0]
    logits = torch.randn(64, 4)
    own, other = (F.cross_entropy(logits, labels, reduction="none") for labels in (y, y.roll(1)))
    expected = share * weights * own + (1 - share) * weights.roll(1) * other
    assert torch.allclose(mixed * F.cross_entropy(logits, target, reduction="none"), expected, atol=1e-5)
    equal = mix_samples(x, y, c, num_classes=4, **options, weights=torch.ones(64))[1]
    assert torch.allclose(equal, plain, atol=1e-6)
