"""Augmentation: what is done to pixels, in batches and one by one, and where its random numbers come from."""

from __future__ import annotations

import random
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from masksub.app.data import normalise
from masksub.app.data.augment import Mixing, crop_and_flip, image_transform, seeded
from masksub.app.errors import InputError
from masksub.app.settings import Augment, Data


def pixels(batch: int = 64, channels: int = 3, side: int = 6) -> torch.Tensor:
    """Bytes from 1 to 255, so that padding can be told from an image."""
    generator = torch.Generator().manual_seed(0)
    return torch.randint(1, 256, (batch, channels, side, side), generator=generator).to(torch.uint8)


def test_normalise_by_hand() -> None:
    """(value / 255 - mean) / std for each channel; mean and std default to 0.5."""
    image = torch.tensor([0, 51, 255], dtype=torch.uint8).view(3, 1, 1)
    data = Data(mean=(0.1, 0.2, 0.5), std=(0.2, 0.5, 0.25))
    torch.testing.assert_close(normalise(image, data).flatten(), torch.tensor([-0.5, 0.0, 2.0]))
    torch.testing.assert_close(normalise(image, Data()).flatten(), torch.tensor([-1.0, -0.6, 1.0]))
    assert normalise(image, Data()).dtype == torch.float32


def windows_of(image: torch.Tensor, padding: int) -> dict[bytes, tuple[int, int, bool]]:
    """Every outcome of crop and flip for one image, made with slices and torch's own flip."""
    channels, side, _ = image.shape
    framed = torch.zeros(channels, side + 2 * padding, side + 2 * padding, dtype=torch.uint8)
    framed[:, padding : padding + side, padding : padding + side] = image
    outcomes = {}
    for top in range(2 * padding + 1):
        for left in range(2 * padding + 1):
            window = framed[:, top : top + side, left : left + side]
            outcomes[window.numpy().tobytes()] = (top, left, False)
            outcomes[window.flip(2).numpy().tobytes()] = (top, left, True)
    return outcomes


@pytest.mark.parametrize("channels", [1, 3])
def test_crop_and_flip_give_windows_of_the_padded_image_all_of_them_and_equally_often(channels: int) -> None:
    """Each result must be a true window, with black outside; a window left out or preferred would bias training."""
    padding, batch = 2, 4000
    image = pixels(1, channels)
    augment = Augment(crop="pad", crop_padding=padding, flip=0.25)
    result = crop_and_flip(image.expand(batch, -1, -1, -1), augment, torch.Generator().manual_seed(1))
    outcomes = windows_of(image[0], padding)
    met = [outcomes[each.contiguous().numpy().tobytes()] for each in result]  # KeyError: not a window
    assert {(top, left) for top, left, _ in met} == {(top, left) for top in range(5) for left in range(5)}
    # 160 of each window are expected, with a standard deviation of 12; flips 0.25 +- 0.007.
    assert all(100 < sum(each[:2] == place for each in met) < 220 for place in {each[:2] for each in met})
    assert abs(sum(flip for *_, flip in met) / batch - 0.25) < 0.03


def test_images_of_a_batch_are_augmented_each_in_its_own_way() -> None:
    """One offset for the whole batch is the usual mistake of batched augmentation. Images must not be mixed up."""
    images = pixels()
    result = crop_and_flip(images, Augment(crop="pad", crop_padding=2, flip=0.5), torch.Generator().manual_seed(0))
    met = [windows_of(image, 2)[each.contiguous().numpy().tobytes()] for image, each in zip(images, result)]
    assert len(set(met)) > 20


def test_without_augmentation_nothing_changes() -> None:
    images = pixels()
    assert torch.equal(crop_and_flip(images, Augment(), torch.Generator()), images)
    assert torch.equal(crop_and_flip(images, Augment(flip=1.0), torch.Generator()), images.flip(3))
    padded = crop_and_flip(images, Augment(crop="pad", crop_padding=0), torch.Generator())
    assert torch.equal(padded, images)


def states() -> list[Any]:
    return [random.getstate(), np.random.get_state()[1].tobytes(), torch.get_rng_state().numpy().tobytes()]


def test_seeded_puts_the_global_generators_back() -> None:
    """Otherwise the data would decide dropout and initial weights, and resuming would not be exact."""
    before = states()
    with pytest.raises(KeyError), seeded(5):
        first = random.random(), np.random.rand(), torch.rand(1).item()
        raise KeyError
    assert states() == before
    with seeded(5):
        assert (random.random(), np.random.rand(), torch.rand(1).item()) == first
    with seeded(2**63 - 1):
        assert (random.random(), np.random.rand(), torch.rand(1).item()) != first


def test_mixup_mixes_images_and_labels_in_the_same_share() -> None:
    """Labels that do not follow the pixels are wrong labels. Smoothing goes in with the off value s / classes."""
    x = torch.tensor([0.0, 1.0]).view(2, 1, 1, 1).repeat(1, 1, 4, 4)
    mixed, soft = Mixing(Augment(mixup=1.0), 2, smoothing=0.0)(x.clone(), torch.tensor([0, 1]), seed=3)
    assert 0.01 < mixed[0, 0, 0, 0] < 0.99
    torch.testing.assert_close(soft[:, 1], mixed[:, 0, 0, 0])
    torch.testing.assert_close(soft.sum(1), torch.ones(2))
    _, smooth = Mixing(Augment(mixup=1.0), 2, smoothing=0.1)(x.clone(), torch.tensor([0, 1]), seed=3)
    torch.testing.assert_close(smooth, soft * 0.9 + 0.05)


def test_cutmix_labels_are_shares_of_the_area() -> None:
    x = torch.tensor([0.0, 1.0]).view(2, 1, 1, 1).repeat(1, 1, 8, 8)
    before = states()
    mixing = Mixing(Augment(cutmix=1.0), 2, smoothing=0.0)
    results = [mixing(x.clone(), torch.tensor([0, 1]), seed=seed) for seed in range(20)]
    assert states() == before
    for mixed, soft in results:
        assert set(mixed.unique().tolist()) <= {0.0, 1.0}
        torch.testing.assert_close(soft[0, 1], mixed[0].mean())
    assert len({float(soft[0, 0]) for _, soft in results}) > 10, "the seed is not used"
    assert torch.equal(mixing(x.clone(), torch.tensor([0, 1]), seed=4)[1], results[4][1])


# One by one


def photo(mode: str, size: tuple[int, int] = (40, 30)) -> Image.Image:
    content = np.random.default_rng(0).integers(0, 256, (*size[::-1], 3), np.uint8)
    return Image.fromarray(content).convert(mode)


@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize(
    "augment",
    [
        Augment(crop="resized", flip=0.5),
        Augment(crop="pad", flip=0.5, color_jitter=0.4),
        Augment(crop="none", auto_augment="rand-m9-mstd0.5-inc1"),
        Augment(crop="resized", auto_augment="augmix-m5-w3"),
        Augment(crop="resized", auto_augment="3a", color_jitter=0.3),
        Augment(crop="resized", auto_augment="original"),
        Augment(crop="pad", random_erase=1.0),
    ],
    ids=lambda augment: f"{augment.crop}-{augment.auto_augment or augment.color_jitter or augment.random_erase}",
)
def test_transforms_of_one_image(augment: Augment, channels: int) -> None:
    """All of timm's operations must take grey images and this Pillow; the same seed must give the same image."""
    data = Data(image_size=16, channels=channels)
    transform = image_transform(data, augment)
    image = photo("L" if channels == 1 else "RGB")
    results = []
    for seed in [*range(60), 0]:
        with seeded(seed):
            results.append(transform(image))
    assert all(each.shape == (channels, 16, 16) for each in results)
    assert {each.dtype for each in results} == {torch.float32 if augment.random_erase else torch.uint8}
    assert torch.equal(results[0], results[-1])
    assert sum(not torch.equal(results[0], each) for each in results) > 30


def test_posterize_to_no_bits_is_a_black_image() -> None:
    """rand-m10-inc1 asks for it in one image of 15, and Pillow 13 refuses: training would stop with a traceback."""
    transform: Any = image_transform(Data(image_size=16), Augment(auto_augment="rand-m10-inc1"))
    operations = [each for step in transform.transforms for each in getattr(step, "ops", ())]
    posterize = next(each for each in operations if each.name == "PosterizeIncreasing")
    posterize.prob = 1.0
    assert posterize(photo("RGB")).getextrema() == ((0, 0),) * 3
    posterize.magnitude = 5  # keeps 2 bits
    assert np.unique(np.asarray(posterize(photo("L")))).tolist() == [0, 64, 128, 192]


def test_padded_crop_of_one_image_is_black_outside() -> None:
    """It must be what is done in batches: a window of the padded image."""
    image = photo("RGB", (6, 6))
    outcomes = windows_of(torch.from_numpy(np.array(image)).permute(2, 0, 1), 2)
    transform = image_transform(Data(image_size=6), Augment(crop="pad", crop_padding=2, flip=0.5))
    met = set()
    for seed in range(100):
        with seeded(seed):
            met.add(outcomes[transform(image).contiguous().numpy().tobytes()])
    assert len(met) > 30


@pytest.mark.parametrize(
    ("augment", "message"),
    [
        (Augment(auto_augment="rnd-m9"), r"augment\.auto_augment = 'rnd-m9' is not known to timm; accepted .*rand-m9"),
        (Augment(crop="resized", crop_scale=(0.9, 0.1)), r"augment\.crop_scale = \(0\.9, 0\.1\): the smaller"),
    ],
)
def test_settings_that_timm_does_not_take(augment: Augment, message: str) -> None:
    with pytest.raises(InputError, match=message):
        image_transform(Data(), augment)
