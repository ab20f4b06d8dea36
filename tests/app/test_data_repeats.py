"""Repeated augmentation: each image several times in an epoch, each time another picture of it."""

from __future__ import annotations

from collections import Counter
from pathlib import Path

import pytest
import torch

from masksub.app.data import TrainBatches, open_source
from masksub.app.data.order import epoch_order, of_process
from masksub.app.settings import Augment, Data
from masksub.core.seeds import generator
from tests.app.test_data_sources import folders, write_images

DIGITS = Data(name="digits", image_size=8, channels=1, train_images=200)
WAYS = [
    pytest.param({"crop": "pad", "crop_padding": 3}, "memory", id="held"),
    pytest.param({"crop": "resized", "flip": 0.5}, "none", id="not-held"),
]


def batches(data: Data = DIGITS, cache: str = "none", batch_size: int = 10, rank: int = 0, world: int = 1, **augment):
    data = data.model_copy(update={"cache": cache, "workers": 0})
    kwargs = {"seed": 0, "batch_size": batch_size, "rank": rank, "world": world, "num_classes": 10}
    return TrainBatches(open_source(data, "train", 0), data, Augment(**augment), **kwargs)


def order(repeats: int, images: int = 200, usable: int = 200, epoch: int = 0):
    return epoch_order(torch.arange(usable), images=images, seed=0, epoch=epoch, repeats=repeats)


def test_without_repeats_the_order_is_the_plain_permutation() -> None:
    """Runs that were begun before repeats existed must go on bit for bit."""
    indices, copies = order(1, images=192)
    assert torch.equal(indices, torch.randperm(200, generator=generator(0, "order", 0))[:192]) and not copies.any()
    part = of_process(indices, batches=12, batch_size=8, repeats=1, rank=1, world=2)
    assert torch.equal(part, indices.view(12, 2, 8)[:, 1])


@pytest.mark.parametrize("repeats", [2, 3, 7])
def test_each_image_comes_as_often_as_asked_or_not_at_all(repeats: int) -> None:
    """And the epoch is no longer than before: 200 images, of which the last may lack copies."""
    indices, copies = order(repeats)
    counts = Counter(indices.tolist())
    assert indices.shape == copies.shape == (200,)
    last = counts.pop(int(indices[-1]))
    assert set(counts.values()) == {repeats} and last == (200 % repeats or repeats)
    assert len({*zip(indices.tolist(), copies.tolist())}) == 200, "each copy has a number of its own"
    assert copies.max() == repeats - 1
    assert batches(repeats=repeats).images_per_epoch == batches().images_per_epoch == 200


def test_over_epochs_all_images_are_met() -> None:
    """A third an epoch: the chance that one of 200 is in none of 40 epochs is 200 * (2 / 3) ** 40, below 1e-4."""
    met = {index for epoch in range(40) for index in order(3, epoch=epoch)[0].tolist()}
    assert len(met) == 200
    assert set(order(3, epoch=0)[0].tolist()) != set(order(3, epoch=1)[0].tolist())


@pytest.mark.parametrize(("augment", "cache"), WAYS)
def test_copies_are_augmented_each_in_its_own_way(augment, cache, tmp_path: Path) -> None:
    """Copies that look the same only waste time: the augmentation must depend on the copy's number or place."""
    root = write_images(tmp_path, {"a": 20}, size=16)
    for image in root.rglob("*.png"):
        from PIL import Image

        Image.effect_noise((16, 16), 80).save(image)
    data = folders(root).model_copy(update={"image_size": 16})
    made = batches(data, cache, batch_size=20, repeats=2, **augment)
    (x, _), (indices, copies) = next(made.epoch(0)), made._order(0)
    assert indices[0, ::2].tolist() == indices[0, 1::2].tolist() and copies[0].tolist() == [0, 1] * 10
    alike = [torch.equal(first, second) for first, second in zip(x[::2], x[1::2])]
    assert sum(alike) <= 1, "two of 49 crops may be the same by chance"


def test_the_first_copy_is_the_one_without_repeats() -> None:
    """What changes with repeats is which images come, not how the generators are used."""
    augment = {"crop": "resized", "flip": 0.5}
    once, twice = batches(**augment), batches(repeats=2, **augment)
    x = {int(index): image for index, (image, _) in zip(once._order(0)[0].flatten(), _images(once))}
    same = torch.tensor(
        [torch.equal(image, x[int(index)]) for index, (image, _) in zip(twice._order(0)[0].flatten(), _images(twice))]
    )
    first = twice._order(0)[1].flatten() == 0
    assert same[first].all() and same[~first].float().mean() < 0.2, "small crops are the same by chance now and then"


def _images(made: TrainBatches):
    return [(image, label) for xs, ys in made.epoch(0) for image, label in zip(xs, ys)]


def places(made: TrainBatches) -> list[list[tuple[int, int]]]:
    indices, copies = made._order(2)
    return [list(zip(row.tolist(), numbers.tolist())) for row, numbers in zip(indices, copies)]


def test_processes_share_one_order_and_copies_go_to_different_ones() -> None:
    """Two processes with batches of 10 make the updates of one with 20; else copies meet in one process's batch."""
    one = places(batches(batch_size=20, repeats=2))
    two = [places(batches(batch_size=10, repeats=2, rank=rank, world=2)) for rank in (0, 1)]
    for whole, first, second in zip(one, *two, strict=True):
        assert sorted(whole) == sorted(first + second)
        assert {index for index, _ in first} == {index for index, _ in second}
        assert len({index for index, _ in first}) == 10
    three = [batches(repeats=3, batch_size=9, rank=rank, world=3)._order(2)[0] for rank in range(3)]
    indices = torch.cat(three, dim=1)
    assert all(set(Counter(update.tolist()).values()) == {3} for update in indices)


@pytest.mark.parametrize(("augment", "cache"), WAYS)
def test_taken_up_in_the_middle(augment, cache) -> None:
    """Bit for bit, on a fresh object."""
    whole = list(batches(cache=cache, repeats=3, mixup=0.5, **augment).epoch(3))
    rest = list(batches(cache=cache, repeats=3, mixup=0.5, **augment).epoch(3, start=7))
    assert len(rest) == 13
    assert all(torch.equal(x, u) and torch.equal(y, v) for (x, y), (u, v) in zip(whole[7:], rest, strict=True))


def test_labels_go_with_their_images() -> None:
    made = batches(repeats=3)
    labels = made._source.labels[made._order(0)[0]]
    assert torch.equal(torch.stack([y for _, y in made.epoch(0)]), labels)
