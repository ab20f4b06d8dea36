"""Batches: order, resumption, processes, holding; and what is said of settings that can't be had."""

from __future__ import annotations

from collections import Counter
from pathlib import Path

import psutil
import pytest
import torch

from masksub.app.data import EvalBatches, TrainBatches, open_data, open_source
from masksub.app.errors import InputError
from masksub.app.evaluate import evaluate
from masksub.app.settings import Augment, Data
from tests.app.test_data_augment import states
from tests.app.test_data_sources import folders, write_images

DIGITS = Data(name="digits", image_size=8, channels=1, train_images=200)
STRONG = Augment(crop="resized", flip=0.5, auto_augment="rand-m9-mstd0.5-inc1", random_erase=0.5, mixup=0.8, cutmix=1.0)
LIGHT = Augment(crop="pad", crop_padding=1, flip=0.5, mixup=0.8, cutmix=1.0)
WAYS = [
    pytest.param(LIGHT, "auto", 0, id="held"),
    pytest.param(Augment(), "device", 0, id="device"),
    pytest.param(STRONG, "none", 0, id="not-held"),
    pytest.param(STRONG, "none", 2, id="2-workers"),
]


def train_batches(augment: Augment = LIGHT, cache: str = "auto", workers: int = 0, data: Data = DIGITS, **more):
    data = data.model_copy(update={"cache": cache, "workers": workers})
    kwargs = {"seed": 0, "batch_size": 16, "num_classes": 10, **more}
    return TrainBatches(open_source(data, "train", 0), data, augment, **kwargs)


def same(first: list, second: list) -> bool:
    return len(first) == len(second) and all(
        torch.equal(x, u) and torch.equal(y, v) for (x, y), (u, v) in zip(first, second)
    )


# Order and resumption


@pytest.mark.parametrize(("augment", "cache", "workers"), WAYS)
def test_an_epoch_taken_up_in_the_middle_goes_on_as_the_unbroken_one(augment, cache, workers) -> None:
    """Bit for bit, on a fresh object: this is what makes a resumed run the same run."""
    whole = list(train_batches(augment, cache, workers).epoch(3))
    assert len(whole) == 12
    assert same(list(train_batches(augment, cache, workers).epoch(3, start=5)), whole[5:])
    assert list(train_batches(augment, cache, workers).epoch(3, start=12)) == []


def test_the_number_of_workers_changes_nothing() -> None:
    """A run that moves to a machine with more cores must stay the same run."""
    none, two = (list(train_batches(STRONG, "none", workers).epoch(1)) for workers in (0, 2))
    assert same(none, two)


@pytest.mark.parametrize(("augment", "cache", "workers"), WAYS)
def test_global_random_states_are_left_alone(augment, cache, workers) -> None:
    before = states()
    next(train_batches(augment, cache, workers).epoch(0))
    assert states() == before


def test_start_skips_without_decoding() -> None:
    """Skipping by decoding takes hours on a large set."""
    batches = train_batches(Augment(), "none")
    reads: list[int] = []
    read = batches._source.read
    batches._source.read = lambda index: reads.append(index) or read(index)  # type: ignore[method-assign]
    assert len(list(batches.epoch(0, start=10))) == 2 and len(reads) == 32


def test_epochs_and_seeds_differ_in_order_and_augmentation() -> None:
    batches, other = train_batches(), train_batches(seed=1)
    firsts = [next(batches.epoch(0)), next(batches.epoch(1)), next(other.epoch(0))]
    assert not any(torch.equal(firsts[a][0], firsts[b][0]) for a, b in ((0, 1), (0, 2), (1, 2)))
    flips = train_batches(Augment(crop="pad", crop_padding=3), batch_size=200)
    (first, _), (second, _) = next(flips.epoch(0)), next(flips.epoch(1))
    assert not torch.equal(first.flatten(1).sort(0).values, second.flatten(1).sort(0).values)


def content(pairs) -> Counter:
    """Images with their labels, as a set that counts."""
    return Counter((image.numpy().tobytes(), int(label)) for x, y in pairs for image, label in zip(x, y))


@pytest.mark.parametrize("cache", ["auto", "none"])
def test_each_image_comes_with_its_label_once_an_epoch(cache: str) -> None:
    """200 images in batches of 20: none may be left out or come twice, and labels must stay with their images."""
    data = DIGITS.model_copy(update={"cache": cache})
    met = content(train_batches(Augment(), cache, batch_size=20).epoch(0))
    source = open_source(data, "train", 0)
    assert met == content(EvalBatches(source, data, Augment(), batch_size=64))
    assert max(met.values()) == 1 and met.total() == 200


def test_two_processes_make_the_same_updates_as_one_with_twice_the_batch() -> None:
    """Otherwise a run on two devices trains on another sequence, or on the same images twice."""
    one = list(train_batches(Augment(), batch_size=16).epoch(2))
    two = [list(train_batches(Augment(), batch_size=8, rank=rank, world=2).epoch(2)) for rank in (0, 1)]
    accumulated = list(train_batches(Augment(), batch_size=8, accumulate=2).epoch(2))
    assert len(one) == len(two[0]) == len(two[1]) == len(accumulated) // 2 == 12
    for update, whole in enumerate(one):
        assert content([whole]) == content([two[0][update], two[1][update]])
        assert content([whole]) == content(accumulated[2 * update : 2 * update + 2])
        assert not content([two[0][update]]) & content([two[1][update]])


def test_processes_augment_with_numbers_of_their_own() -> None:
    """Rank 1 with the numbers of rank 0 would give both the same crops and the same mixing."""
    shares = [
        [
            round(float(y[y > 0].min()), 4)  # the smaller share of a mixed pair
            for _, y in train_batches(Augment(mixup=1.0), rank=rank, world=2, batch_size=8).epoch(0)
        ]
        for rank in (0, 1)
    ]
    assert not set(shares[0]) & set(shares[1])


@pytest.mark.parametrize(
    ("batch_size", "world", "accumulate", "batches"), [(16, 1, 1, 12), (16, 1, 5, 10), (16, 2, 3, 6), (25, 2, 4, 4)]
)
def test_only_whole_updates_are_counted(batch_size: int, world: int, accumulate: int, batches: int) -> None:
    """200 // (batch x world x accumulate) x accumulate batches on each process; schedules rest on this."""
    each = train_batches(Augment(), batch_size=batch_size, world=world, accumulate=accumulate)
    assert each.batches_per_epoch == batches == len(list(each.epoch(0)))
    assert each.images_per_epoch == batches * batch_size * world


def test_what_comes_out() -> None:
    """Types and shapes that the step relies on."""
    x, y = next(train_batches(Augment()).epoch(0))
    assert x.shape == (16, 1, 8, 8) and x.dtype == torch.float32 and -1 <= x.min() < x.max() <= 1
    assert y.shape == (16,) and y.dtype == torch.int64
    for augment, cache in ((LIGHT, "auto"), (LIGHT, "none"), (STRONG, "none")):
        x, y = next(train_batches(augment, cache, smoothing=0.1, num_classes=12).epoch(0))
        assert x.shape == (16, 1, 8, 8) and x.dtype == torch.float32
        assert y.shape == (16, 12) and y.dtype == torch.float32
        torch.testing.assert_close(y.sum(1), torch.ones(16))
        assert y.min() > 0, "label smoothing got lost"


@pytest.mark.parametrize("mixed", [False, True])
def test_held_and_not_held_are_the_same_where_nothing_is_drawn_for_an_image(tmp_path: Path, mixed: bool) -> None:
    """Holding is for speed; resize, crop, normalisation and mixing must not depend on it."""
    root = write_images(tmp_path, {"a": 8, "b": 8}, size=20)
    data = folders(root, mean=(0.2,), std=(0.7,))
    augment = Augment(test_crop=0.8, mixup=0.5 if mixed else 0.0)
    held, read = (train_batches(augment, cache, data=data, batch_size=4) for cache in ("memory", "none"))
    assert (held.held, read.held) == ("memory", "none")
    assert same(list(held.epoch(0)), list(read.epoch(0)))


# Evaluation


@pytest.mark.parametrize(("cache", "workers"), [("auto", 0), ("none", 0), ("none", 2)])
@pytest.mark.parametrize("world", [1, 3])
def test_evaluation_sees_each_image_once(cache: str, workers: int, world: int) -> None:
    """Left out or doubled images falsify the accuracy; 50 is no multiple of 16 nor of 3."""
    data = DIGITS.model_copy(update={"cache": cache, "workers": workers, "val_images": 50})
    _, source = open_data(data, 0)
    ranks = [EvalBatches(source, data, STRONG, batch_size=16, rank=rank, world=world) for rank in range(world)]
    assert [len(each) for each in ranks] == [len(list(each)) for each in ranks]
    met = content(pair for each in ranks for pair in each)
    assert met.total() == 50 and met == content(EvalBatches(source, DIGITS, Augment(), batch_size=7))
    assert sorted(label for _, label in met.elements()) == sorted(source.labels.tolist())


@pytest.mark.parametrize(
    ("images", "world", "batch_size", "rounds"),
    [(10, 3, 4, 1), (10, 2, 2, 3), (10, 3, 1, 4), (1, 3, 4, 1), (9, 3, 3, 1)],
)
def test_figures_of_an_evaluation_are_those_of_one_process(
    images: int, world: int, batch_size: int, rounds: int
) -> None:
    """Padding with images that come twice, as samplers for several processes do, falsifies accuracy and loss."""
    data = DIGITS.model_copy(update={"val_images": images})
    source = open_source(data, "val", 0)
    model = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(64, 10))
    parts = [EvalBatches(source, data, Augment(), batch_size=batch_size, rank=r, world=world) for r in range(world)]
    assert {each.rounds for each in parts} == {rounds} and max(len(each) for each in parts) == rounds
    sums: list[torch.Tensor] = []
    for each in parts:
        if len(each):
            evaluate(model, each, reduce=lambda part: sums.append(part) or part)
    together = evaluate(model, parts[0], reduce=lambda _: torch.stack(sums).sum(0))
    alone = evaluate(model, EvalBatches(source, data, Augment(), batch_size=64))
    assert together == pytest.approx(alone, rel=1e-6) and together["images"] == images


def test_evaluation_is_not_augmented() -> None:
    first, second = (list(EvalBatches(open_source(DIGITS, "val", 0), DIGITS, STRONG, batch_size=99)) for _ in "ab")
    assert same(first, second)


# Holding, and input that is wrong


def memory(monkeypatch, available: int) -> None:
    monkeypatch.setattr(psutil, "virtual_memory", lambda: type("Memory", (), {"available": available}))


def test_auto_holds_what_fits(monkeypatch) -> None:
    """200 images of 64 bytes take 12,800; a quarter of the free memory may be used."""
    memory(monkeypatch, 4 * 12_800)
    assert train_batches().held == "memory"
    assert train_batches(STRONG).held == "none", "these augmentations need the original image"
    memory(monkeypatch, 4 * 12_800 - 1)
    assert train_batches().held == "none"
    assert train_batches(data=DIGITS.model_copy(update={"cache_share": 0.26})).held == "memory"


def test_processes_of_a_machine_share_its_memory(monkeypatch) -> None:
    """Eight processes that each take a quarter of the memory end the machine."""
    memory(monkeypatch, 7 * 12_800)
    assert train_batches().held == "memory"
    monkeypatch.setenv("LOCAL_WORLD_SIZE", "2")
    assert train_batches().held == "none"


@pytest.mark.parametrize("cache", ["memory", "device"])
def test_holding_that_can_not_be_had(cache: str, monkeypatch) -> None:
    with pytest.raises(InputError, match=rf'data\.cache = "{cache}": crop "resized".* need the original images'):
        train_batches(STRONG, cache)
    assert train_batches(cache=cache).held == cache
    memory(monkeypatch, 1000)
    with pytest.raises(InputError, match=rf'data\.cache = "{cache}": 200 images of 1 x 8 x 8 .* MiB.*cache: "none"'):
        train_batches(cache=cache)


@pytest.mark.parametrize("cache", ["auto", "none"])
def test_fewer_images_than_one_update(cache: str) -> None:
    message = r"has 200 images to train on, fewer than the 240 .*batch_size 10 x 8 process\(es\) x 3 part\(s\)\)"
    with pytest.raises(InputError, match=message):
        train_batches(Augment(), cache, batch_size=10, world=8, accumulate=3)


def test_a_label_that_the_model_lacks() -> None:
    with pytest.raises(InputError, match=r"has label 9; with 9 classes, labels from 0 to 8 are accepted"):
        train_batches(num_classes=9)


def test_wrong_augmentation_ends_before_training() -> None:
    with pytest.raises(InputError, match=r"augment\.auto_augment = 'x'"):
        train_batches(Augment(auto_augment="x"))
