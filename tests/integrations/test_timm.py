"""MaskSubTask in a loop like that of timm's script. If these fail, timm's users train something else than MaskSub."""

from __future__ import annotations

import copy
import functools
import importlib
import logging
import os
import sys
from collections.abc import Iterable, Iterator
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist
import torch.multiprocessing as mp
import torch.nn.functional as F
from timm.data import Mixup
from timm.loss import BinaryCrossEntropy, JsdCrossEntropy, LabelSmoothingCrossEntropy, SoftTargetCrossEntropy
from timm.models import load_checkpoint, resume_checkpoint
from timm.task import ClassificationTask
from timm.utils import CheckpointSaver, ModelEmaV3, NativeScaler
from torch import Tensor, nn

import masksub
from masksub.core.seeds import MasksOfUpdates
from masksub.integrations.timm import MaskSubTask
from tests.integrations.reference import LEARNING_RATE, SEED, Batches, batches, build, same_weights, share, trained

NEW = hasattr(ClassificationTask, "get_task_state")
"""timm 1.0.27 and newer: tasks have EMA, compile, no_sync and checkpoint state of their own."""


def task_of(model: nn.Module | None = None, criterion: Any = F.cross_entropy, **options: Any) -> MaskSubTask:
    return MaskSubTask(build() if model is None else model, criterion, **{"seed": SEED, "verbose": False, **options})


def inner(task: nn.Module) -> nn.Module:
    """The task's model, with whatever timm has put around it."""
    return task.get_submodule("trainable_module" if NEW else "model")


class Training:
    """What timm's script has around a task: scaler, clipping, accumulation, EMA, checkpoints."""

    def __init__(self, task: Any, folder: Path | None = None, momentum: float = 0.0, clip: float | None = None) -> None:
        self.task, self.clip, self.plain = task, clip, inner(task)
        self.optimizer = torch.optim.SGD(self.plain.parameters(), lr=LEARNING_RATE, momentum=momentum)
        self.scaler = NativeScaler("cpu")
        self.ema = task.setup_ema(decay=0.9) if NEW else ModelEmaV3(self.plain, decay=0.9)
        also: dict[str, Any] = {"task": task} if NEW else {"model_ema": self.ema}
        self.saver = CheckpointSaver(
            self.plain, self.optimizer, amp_scaler=self.scaler, checkpoint_dir=str(folder), **also
        )
        self.updates = 0

    def epoch(self, data: Batches, accumulation: int = 1, call: Any = None) -> None:
        """Train on all of ``data``; the last update may have fewer parts, as in timm's script."""
        self.plain.train()
        for number, (x, y) in enumerate(data):
            last = number + 1 == len(data)
            update = last or (number + 1) % accumulation == 0
            parts = accumulation
            if number >= len(data) - len(data) % accumulation:
                parts = len(data) % accumulation
            # timm's own task of the old version has no no_sync.
            with nullcontext() if update or not hasattr(self.task, "no_sync") else self.task.no_sync():
                loss = (call or self.task)(x, y)["loss"]
                loss /= parts
                self.scaler(
                    loss, self.optimizer, clip_grad=self.clip, parameters=self.plain.parameters(), need_update=update
                )
            if update:
                self.updates += 1
                self.optimizer.zero_grad()
                if NEW:
                    self.task.update_ema(step=self.updates)
                else:
                    self.ema.update(self.plain, step=self.updates)

    def resume(self, path: Path) -> None:
        if NEW:
            from timm.task import load_task_ema_checkpoint, resume_task_checkpoint

            assert resume_task_checkpoint(self.task, str(path), self.optimizer, self.scaler) == 1
            load_task_ema_checkpoint(self.task, str(path))
        else:
            assert resume_checkpoint(self.plain, str(path), self.optimizer, self.scaler) == 1
            load_checkpoint(self.ema.module, str(path), use_ema=True)


def gradients(model: nn.Module) -> dict[str, Tensor]:
    return {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}


def gradients_of_core(x: Tensor, y: Tensor, criterion: Any = F.cross_entropy, **options: Any) -> dict[str, Tensor]:
    """Of one step in split mode, with the masks of the first update."""
    model = build().train()
    masksub.TwoBranchStep(model, criterion, **{"sub": masksub.MaskSub(0.5), **options})(
        x, y, generator=MasksOfUpdates(SEED)(0)
    )
    return gradients(model)


MIX = {"mixup_alpha": 0.8, "cutmix_alpha": 1.0, "num_classes": 5}
CRITERIA: dict[str, tuple[Any, bool]] = {
    "cross entropy": (nn.CrossEntropyLoss(), False),
    "label smoothing": (LabelSmoothingCrossEntropy(0.1), False),
    "mixup": (SoftTargetCrossEntropy(), True),
    "mixup, binary": (BinaryCrossEntropy(target_threshold=0.2), True),
    "binary, summed over classes": (BinaryCrossEntropy(0.1, sum_classes=True), False),
}


@pytest.mark.parametrize("name", CRITERIA)
def test_gradients_are_those_of_the_core(name: str) -> None:
    """Else a recipe of timm (smoothing, mixup, BCE) trains another loss than the library does."""
    criterion, mixed = CRITERIA[name]
    ((x, y),) = batches(1)
    if mixed:
        x, y = Mixup(**MIX)(x, y)
    task = task_of(criterion=criterion).train()
    result = task(x, y)
    result["loss"].backward()
    torch.testing.assert_close(gradients(inner(task)), gradients_of_core(x, y, criterion), atol=1e-6, rtol=1e-5)
    torch.testing.assert_close(result["loss"], (result["loss_main"] + result["loss_sub"]) / 2)
    assert not result["loss_main"].requires_grad and not result["loss_sub"].requires_grad  # else logs hold the graph


@pytest.mark.parametrize("accumulation", [1, 4])
def test_weights_after_20_updates_are_those_of_the_core(accumulation: int) -> None:
    data = batches(20 * accumulation)
    training = Training(task := task_of())
    training.epoch(data, accumulation)
    same_weights(training.plain, trained(data, updates=20, accumulation=accumulation))
    assert task.updates == 20


def test_the_last_update_of_an_epoch_may_have_fewer_parts() -> None:
    """Else masks after the first epoch are others on resume, which starts at a whole number of updates."""
    data = batches(5)
    training = Training(task := task_of())
    training.epoch(data, 2)
    assert task.updates == training.updates == 3
    same = Training(task_of())
    for part in (data[:2], data[2:4], data[4:]):
        same.epoch(part, len(part))
    same_weights(training.plain, same.plain)


def test_without_no_sync_each_part_draws_as_an_update_of_its_own() -> None:
    """The script of timm before 1.0.27 accumulates so: parts must not be masked alike."""
    task, model, draw = task_of().train(), build().train(), MasksOfUpdates(SEED)
    step = masksub.TwoBranchStep(model, F.cross_entropy, sub=masksub.MaskSub(0.5))
    for number, (x, y) in enumerate(batches(2)):
        task(x, y)["loss"].backward()
        step(x, y, generator=draw(number))
    torch.testing.assert_close(gradients(inner(task)), gradients(model), atol=1e-6, rtol=1e-5)
    assert task.updates == 2


def test_weight_0_is_the_task_of_timm_bit_for_bit(tmp_path: Path) -> None:
    """Else a user can't tell what masking changes from what the integration changes."""
    data = batches(6)
    pair = [
        Training(make, tmp_path, momentum=0.9, clip=1.0)
        for make in (task_of(weight=0.0), ClassificationTask(build(), F.cross_entropy, verbose=False))
    ]
    for training in pair:
        training.epoch(data, 2)
    ours, theirs = ({**t.plain.state_dict(), **t.ema.state_dict(prefix="ema.")} for t in pair)
    assert ours.keys() == theirs.keys() and all(torch.equal(ours[name], theirs[name]) for name in ours)


def test_a_criterion_that_is_replaced_is_used() -> None:
    """timm's task reads it at each call, so that a script may change it on the way."""
    x, y = batches(1)[0]
    task = MaskSubTask(build().train(), nn.CrossEntropyLoss(), seed=SEED)
    task.criterion = LabelSmoothingCrossEntropy(0.9)
    task(x, y)["loss"].backward()
    expected = gradients_of_core(x, y, LabelSmoothingCrossEntropy(0.9))
    for name, gradient in gradients(task.trainable_module if NEW else task.model).items():
        torch.testing.assert_close(gradient, expected[name], atol=1e-6, rtol=1e-5, msg=name)


def test_what_is_logged() -> None:
    """timm's loop divides the loss in place while accumulating: logged losses must stay as they were."""
    ((x, y),) = batches(1)
    result = task_of(weight=0.0).train()(x, y)
    before = result["loss_main"].clone()
    result["loss"] /= 4
    assert result.keys() == {"loss", "output", "loss_main"} and torch.equal(result["loss_main"], before)
    alone = task_of(weight=1.0, target="labels").train()(x, y)
    assert alone.keys() == {"loss", "output", "loss_sub"} and alone["output"].shape == (8, 5)
    torch.testing.assert_close(F.cross_entropy(alone["output"], y), alone["loss_sub"])
    task = task_of().train()
    task.weight = 0.25  # as a schedule does
    result = task(x, y)
    torch.testing.assert_close(result["loss"], 0.75 * result["loss_main"] + 0.25 * result["loss_sub"])
    torch.testing.assert_close(F.cross_entropy(result["output"], y), result["loss_main"])


def test_both_losses_are_in_the_log(caplog: pytest.LogCaptureFixture) -> None:
    """The script of timm logs the sum alone; a sub branch that diverges would go unseen."""
    data = batches(4)
    task = task_of(verbose=True, log_interval=2).train()
    with caplog.at_level(logging.INFO, logger="masksub"):
        results = [task(x, y) for x, y in data]
    assert [record.message for record in caplog.records] == [
        f"MaskSub: update {number}: loss_main {result['loss_main']:.4g}, loss_sub {result['loss_sub']:.4g}"
        for number, result in enumerate(results)
        if number % 2 == 0
    ]


@pytest.mark.parametrize("how", ["task.eval", "model.eval", "no_grad", "inference_mode"])
def test_evaluation_is_never_masked(how: str) -> None:
    ((x, y),) = batches(1)
    task, plain = task_of().train(), build().eval()
    if "." in how:
        (task if how == "task.eval" else inner(task)).eval()
    with getattr(torch, how)() if "." not in how else nullcontext():
        result = task(x, y)
    assert result.keys() == {"loss", "output"} and torch.equal(result["output"], plain(x))
    assert task.updates == 0


def test_a_frozen_trunk_in_eval_mode_is_training() -> None:
    ((x, y),) = batches(1)
    task = task_of().train()
    inner(task).eval()
    inner(task).get_submodule("head").train()
    assert "loss_sub" in task(x, y) and task.updates == 1


def test_checkpoints_hold_the_plain_model(tmp_path: Path) -> None:
    """Else what was trained can't be used without masksub."""
    training = Training(task_of(), tmp_path)
    training.epoch(batches(2))
    training.saver.save_checkpoint(0, metric=1.0)
    for use_ema, expected in ((False, training.plain), (True, training.ema.module)):
        plain = build()
        load_checkpoint(plain, str(tmp_path / "last.pth.tar"), use_ema=use_ema, weights_only=True)
        same_weights(plain, expected, tolerance=0)


def test_resuming_goes_on_exactly(tmp_path: Path) -> None:
    """Same masks, EMA and momentum as without the break; else a resumed run is another run."""
    data = batches(12)
    make = functools.partial(Training, folder=tmp_path, momentum=0.9, clip=1.0)
    unbroken = make(task_of())
    unbroken.epoch(data[:6], 2)
    unbroken.saver.save_checkpoint(0, metric=1.0)
    unbroken.epoch(data[6:], 2)
    resumed = make(task_of())
    resumed.resume(tmp_path / "last.pth.tar")
    resumed.updates = 3  # as timm's script: epoch x updates of an epoch
    if not NEW:
        resumed.task.updates = 3  # this timm saves no state of a task
    assert resumed.task.updates == 3
    resumed.epoch(data[6:], 2)
    same_weights(resumed.plain, unbroken.plain, tolerance=0)
    same_weights(resumed.ema.module, unbroken.ema.module, tolerance=0)


def test_a_checkpoint_of_another_task_starts_at_update_0(caplog: pytest.LogCaptureFixture) -> None:
    task = task_of()
    task.updates = 7
    with caplog.at_level(logging.WARNING):
        task.load_task_state(None)
    assert task.updates == 0 and "masks are drawn as from update 0 on" in caplog.text
    assert task.get_task_state(ema=True) == {}


class Counter:
    """A compiler that runs the graph as it is and counts how often it is asked."""

    def __init__(self) -> None:
        self.graphs = 0

    def __call__(self, graph: Any, inputs: Any) -> Any:
        self.graphs += 1
        return graph.forward


@pytest.fixture
def _one_process(tmp_path: Path) -> Iterator[None]:
    os.environ.setdefault("GLOO_SOCKET_IFNAME", "lo")
    dist.init_process_group("gloo", init_method=f"file://{tmp_path}/store", rank=0, world_size=1)
    torch._dynamo.reset()
    yield
    torch._dynamo.reset()
    dist.destroy_process_group()


@pytest.mark.usefixtures("_one_process")
def test_compiled_as_timm_does_it() -> None:
    """Else compiled training masks nothing, masks evaluation, or compiles again at each step."""
    counter, data = Counter(), batches(5)
    task = task_of()
    training = Training(task)
    if NEW:  # timm's script compiles before DistributedDataParallel; before 1.0.27 all of the task, after it
        task.compile(backend=counter)
    task.prepare_distributed()
    call = task if NEW else torch.compile(task, backend=counter)
    training.epoch(data[:1], call=call)
    after_first = counter.graphs
    training.epoch(data[1:], call=call)
    assert 2 <= counter.graphs == after_first
    same_weights(training.plain, trained(data, updates=5), tolerance=1e-5)
    training.plain.eval()
    with torch.no_grad():
        torch.testing.assert_close(call(*data[0])["output"], training.plain(data[0][0]))


def test_half_precision_and_gradient_checkpointing() -> None:
    """Against the core's joint mode: where both branches share one backward, bfloat16 rounds their sum once."""
    ((x, y),) = batches(1)
    task = task_of().train()
    inner(task).set_grad_checkpointing(True)
    with torch.autocast("cpu", torch.bfloat16):
        result = task(x, y)
    result["loss"].backward()
    with torch.autocast("cpu", torch.bfloat16):
        expected = gradients_of_core(x, y, mode="joint")
    torch.testing.assert_close(gradients(inner(task)), expected, atol=1e-6, rtol=1e-5)


def test_other_branches_and_their_rates() -> None:
    sub = masksub.MaskSub(0.5) + masksub.PathSub(0.5)
    ((x, y),) = batches(1)
    task = task_of(sub=sub).train()
    assert task.sub is sub
    task(x, y)["loss"].backward()
    torch.testing.assert_close(gradients(inner(task)), gradients_of_core(x, y, sub=sub), atol=1e-6, rtol=1e-5)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"criterion": JsdCrossEntropy(num_splits=3)}, "does not know the criterion"),
        ({"weight": 1.5}, "weight = 1.5"),
        ({"log_interval": -1}, "log_interval = -1"),
    ],
)
def test_mistakes_are_refused_at_once(options: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        task_of(**options)


def test_a_naflex_batch_is_refused() -> None:
    with pytest.raises(TypeError, match=r"NaFlex batch, a mapping with \['patches'\]"):
        task_of().train()({"patches": torch.zeros(1, 2, 3)}, torch.zeros(1))  # type: ignore[arg-type]


def test_multiple_labels() -> None:
    ((x, _),) = batches(1)
    y = (torch.rand(8, 5) > 0.5).float()
    if "criterion_kwargs" not in ClassificationTask.__init__.__code__.co_varnames:
        with pytest.raises(ImportError, match=r"pip install 'masksub\[timm\]' 'timm>=1.0.31'"):
            from masksub.integrations.timm import MultiLabelMaskSubTask
        task: Any = task_of(criterion=BinaryCrossEntropy(smoothing=0.0)).train()  # what the message says instead
    else:
        from masksub.integrations.timm import MultiLabelMaskSubTask

        task = MultiLabelMaskSubTask(build(), criterion_kwargs={"smoothing": 0.0}, threshold=0.4, seed=SEED).train()
        assert task.create_evaluator().threshold == 0.4
        with pytest.raises(ValueError, match=r"target is torch.int64 of shape \(8,\)"):
            task(x, torch.zeros(8, dtype=torch.long))
    task(x, y)["loss"].backward()
    expected = gradients_of_core(x, y, F.binary_cross_entropy_with_logits)
    torch.testing.assert_close(gradients(inner(task)), expected, atol=1e-6, rtol=1e-5)


def test_without_tasks_of_timm_the_message_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "timm.task", None)
    monkeypatch.delitem(sys.modules, "masksub.integrations.timm")
    with pytest.raises(ImportError, match=r"pip install 'masksub\[timm\]' 'timm>=1.0.23'"):
        importlib.import_module("masksub.integrations.timm")


def worker(rank: int, folder: str) -> None:
    torch.set_num_threads(1)
    os.environ.setdefault("GLOO_SOCKET_IFNAME", "lo")
    dist.init_process_group("gloo", init_method=f"file://{folder}/store", rank=rank, world_size=2)
    reductions = 0

    def counted(state, bucket):  # type: ignore[no-untyped-def]  # DDP checks annotations by identity
        nonlocal reductions
        reductions += 1
        return dist.all_reduce(bucket.buffer().div_(2), async_op=True).get_future().then(lambda f: f.value()[0])

    results: dict[str, Any] = {}
    for accumulation in (1, 4):
        training = Training(task := task_of())
        task.prepare_distributed(bucket_cap_mb=100)
        inner(task).register_comm_hook(None, counted)
        reductions, counts = 0, []
        data = share(batches(20), rank, 2)
        for part in range(0, len(data), accumulation):
            training.epoch(data[part : part + accumulation], accumulation)
            counts.append(reductions)
        results[str(accumulation)] = (training.plain.state_dict(), counts)
    torch.save(results, f"{folder}/{rank}.pt")
    dist.destroy_process_group()


def test_two_processes(tmp_path: Path) -> None:
    """Weights of one process with both shares, masks of each rank its own, and one reduction an update."""
    mp.spawn(worker, (str(tmp_path),), nprocs=2)
    found = [torch.load(tmp_path / f"{rank}.pt") for rank in range(2)]
    for accumulation in (1, 4):
        updates = 20 // accumulation
        expected = trained(batches(20), updates=updates, accumulation=accumulation, processes=2)
        for rank in range(2):
            weights, counts = found[rank][str(accumulation)]
            plain = build()
            plain.load_state_dict(weights)
            same_weights(plain, expected, tolerance=1e-5)
            assert counts == list(range(1, updates + 1))


def test_the_task_can_be_copied() -> None:
    """Scripts deepcopy what they train, for example to average weights."""
    task = task_of().train()
    other = copy.deepcopy(task)
    ((x, y),) = batches(1)
    torch.testing.assert_close(task(x, y)["loss"], other(x, y)["loss"])
    other(x, y)["loss"].backward()
    assert not gradients(inner(task))


def test_all_of_timm_is_passed_on() -> None:
    """Positional or by name, as ClassificationTask takes them."""
    task = MaskSubTask(build(), nn.CrossEntropyLoss(), device=torch.device("cpu"), dtype=torch.float64, verbose=False)
    assert isinstance(task, ClassificationTask) and task.dtype == torch.float64
    keys: Iterable[str] = ClassificationTask(build(), nn.CrossEntropyLoss(), verbose=False).state_dict()
    assert list(task.state_dict()) == list(keys)
