"""MaskSub in the Trainer of Hugging Face transformers: ``MaskSubTrainer``, and a mixin for a Trainer of one's own.

Works with transformers 4.56 or newer and accelerate 1.10 or newer (with an older one, Trainer 4.56 itself fails).

Each ``training_step`` is two of the Trainer's own, split as in ``masksub.core.step``: the first computes (1 - w) x the
loss that the Trainer always computed; the second repeats the same call of the model as the sub branch and computes
w x the soft loss against the first one's output. Whatever a Trainer does around a loss (precision, scaling,
accumulation, DistributedDataParallel) it does to both. Evaluation and prediction never come here.

Shape letters: B batch, C classes.
"""

from __future__ import annotations

import copy
import inspect
import re
import warnings
from collections.abc import Callable, Iterator, Mapping, MutableMapping
from contextlib import contextmanager, nullcontext
from typing import TYPE_CHECKING, Any, Literal, cast

from torch import Tensor, nn

import masksub.adapters  # noqa: F401  # registers the model families
from masksub.core.branches import Branch, MaskSub
from masksub.core.call import Call
from masksub.core.loss import TargetKind, relaxed_target, soft_loss
from masksub.core.schedule import Constant, Schedule
from masksub.core.seeds import MasksOfUpdates
from masksub.core.step import logits_of
from masksub.core.watching import calls_seen, is_divided
from masksub.core.wrappers import unwrap, without_gradient_sync

try:
    import accelerate
    import transformers
    from transformers import Trainer, TrainerCallback
except ImportError as error:
    raise ImportError(f"masksub's Trainer needs: pip install 'masksub[transformers]' ({error})") from error

for _library, _least in ((transformers, (4, 56)), (accelerate, (1, 10))):
    if tuple(int(part) for part in re.findall(r"\d+", _library.__version__)[:2]) < _least:
        raise ImportError(
            f"masksub's Trainer needs {_library.__name__} {_least[0]}.{_least[1]} or newer, and finds "
            f"{_library.__version__}: pip install -U 'masksub[transformers]'"
        )

__all__ = ["MaskSubMixin", "MaskSubTrainer"]

_KINDS: dict[Any, TargetKind] = {"single_label_classification": "softmax", "multi_label_classification": "sigmoid"}

if TYPE_CHECKING:
    _Trainer = Trainer
else:
    _Trainer = object  # the Trainer is the other base


class MaskSubMixin(_Trainer):
    """Makes a Trainer of one's own a two-branch one: ``class Mine(MaskSubMixin, MyTrainer)``, the mixin first.

    The other class keeps its ``compute_loss``, ``training_step``, optimizer and evaluation. Its ``compute_loss`` is
    asked for the main branch alone, once a batch, and must call the model once (calls without gradient don't count).
    Its ``training_step`` runs once for each branch.

    Two more losses are logged beside ``loss``, which is (1 - weight) * ``loss_main`` + weight * ``loss_sub``; averaged
    as it is, over the updates since the last line and over all processes. Masks depend on ``args.seed``,
    ``state.global_step`` and the process, so that a resumed training draws what an unbroken one would.

    Args:
        *args, **kwargs: those of the Trainer.
        sub: what the sub branch changes; ``MaskSub(0.5)`` if None. Its ratio may be changed between updates.
        weight: share of the sub branch in the loss, 0 <= weight < 1, or a schedule of it (``masksub.schedule``) over
            ``state.max_steps``; 0.5 in the paper. At 0 all is the Trainer's own, bit for bit. Kept as ``sub_weight``.
        target: what the sub branch learns of the main branch's output: its "softmax" or its "sigmoid". "auto", with a
            loss of transformers' own: by the model's ``config.problem_type`` or the labels.

    Raises:
        TypeError: a class whose bases stand in the wrong order, or with arguments of the same name.
        ValueError: a value out of range, or a setting of the Trainer that two backward passes a step don't fit, here
            or when training begins. At the first step: a regression, ``target="auto"`` with a loss that is not known, a
            ``training_step``, ``compute_loss`` or ``compute_loss_func`` that doesn't do what is said above, logits that
            are not (B, C), or a loss of soft labels that is divided by ``num_items_in_batch``.
    """

    def __init__(
        self,
        *args: Any,
        sub: Branch | None = None,
        weight: float | Schedule = 0.5,
        target: TargetKind | Literal["auto"] = "auto",
        **kwargs: Any,
    ) -> None:
        if target not in ("auto", "softmax", "sigmoid"):
            raise ValueError(f"target = {target!r}: one of 'auto', 'softmax', 'sigmoid'")
        if sub is not None and sub.mutual:
            raise ValueError(f"sub = {sub!r}: both its branches are drawn; the Trainer's main branch is not")
        self.sub = MaskSub(0.5) if sub is None else sub
        self.sub_weight = weight
        self._target = target
        self._training: Any = None
        self._is_divided: bool | None = None
        self._windows: dict[str, _Window] = {}
        super().__init__(*args, **kwargs)
        self.add_callback(_Checks(self))
        if self.runs_sub:
            _check_settings(self)

    def __init_subclass__(cls, **kwargs: Any) -> None:
        """Refuses a class in which the Trainer comes first, and would never ask the mixin; or never get an argument."""
        super().__init_subclass__(**kwargs)
        order = cls.__mro__
        if Trainer in order and order.index(Trainer) < order.index(MaskSubMixin):
            first = next(base.__name__ for base in cls.__bases__ if base is not MaskSubMixin)
            raise TypeError(f"MaskSubMixin must come first: class {cls.__name__}(MaskSubMixin, {first})")
        for base in order[order.index(MaskSubMixin) + 1 :]:
            names = inspect.signature(vars(base)["__init__"]).parameters if "__init__" in vars(base) else {}
            if taken := [name for name in ("sub", "weight", "target") if name in names]:
                raise TypeError(
                    f"{base.__name__}.__init__ has the argument {taken[0]!r}, and MaskSubMixin before it takes what is "
                    f"passed by this name. Rename it in {base.__name__}"
                )

    @property
    def sub_weight(self) -> float | Schedule:
        """Share of the sub branch in the loss, 0 <= weight < 1, or its schedule. May be changed between updates."""
        return self._sub_weight.value if isinstance(self._sub_weight, Constant) else self._sub_weight

    @sub_weight.setter
    def sub_weight(self, value: float | Schedule) -> None:
        schedule = value if callable(value) else Constant(value)
        low, high = schedule.bounds
        if not 0.0 <= low <= high < 1.0:
            raise ValueError(f"weight = {value!r}: the share of the sub branch must satisfy 0 <= weight < 1")
        self._sub_weight: Schedule = schedule

    @property
    def runs_sub(self) -> bool:
        """Whether the sub branch is run at some time: its weight is not always 0."""
        return self._sub_weight.bounds != (0, 0)

    def training_step(self, model: nn.Module, inputs: Any, num_items_in_batch: Any = None) -> Tensor:
        """Forward and backward of both branches on one micro-batch.

        Side effects: gradients are added, and reduced once under DistributedDataParallel; batch-norm statistics see
        both branches.

        Args:
            model, inputs, num_items_in_batch: as for the Trainer.

        Returns:
            The loss of both branches, detached.
        """
        if not self.runs_sub:
            loss = super().training_step(model, inputs, num_items_in_batch)
            if self._training is self.state:  # the weight was another one before: a line of the log is still to come
                self._windows["loss_main"].add(self.state.global_step, loss)
            return loss
        if self._training is not self.state:  # each training has a state of its own
            self._training, self._masks = self.state, MasksOfUpdates(self.args.seed)
            self._windows = {"loss_main": _Window(), "loss_sub": _Window()}
        update = self.state.global_step
        weight = self._sub_weight(min(1.0, update / max(1, self.state.max_steps)))

        main = _MainLoss(self, 1 - weight)
        with without_gradient_sync(model) if weight else nullcontext(), self._loss_from(main):
            loss_main = super().training_step(model, copy.copy(inputs), num_items_in_batch)
        if main.call is None:
            raise ValueError(f"{type(self).__name__}.training_step never called self.compute_loss")
        self._windows["loss_main"].add(update, loss_main / (1 - weight))
        if weight == 0:
            return loss_main

        def sub_loss(model: nn.Module, _: Any, return_outputs: bool = False, *__: Any, **___: Any) -> Any:
            outputs = model(*main.call.args, **main.call.kwargs)
            loss = weight * self._soft_loss(_logits(outputs, main.call), main)
            return (loss, outputs) if return_outputs else loss

        generator = self._masks(update, self.accelerator.process_index, self.args.device)
        # Backward inside the branch: with gradient checkpointing it runs blocks again.
        with self.sub.applied(model, generator=generator), self._loss_from(sub_loss):
            loss_sub = super().training_step(model, _updated(inputs, main.inputs), num_items_in_batch)
        self._windows["loss_sub"].add(update, loss_sub / weight)
        return loss_main + loss_sub

    def log(self, logs: dict[str, float], *args: Any, **kwargs: Any) -> None:
        """Log as the Trainer does; a line of training gets both losses too."""
        # Lines of the Trainer's own, which all processes write; none in a training whose weight was always 0.
        if self._training is self.state and {"loss", "learning_rate"} <= logs.keys():
            means = {name: window.mean() for name, window in self._windows.items()}
            logs = {
                **logs,
                **{name: self.accelerator.reduce(m, "mean").item() for name, m in means.items() if m is not None},
            }
        super().log(logs, *args, **kwargs)

    @contextmanager
    def _loss_from(self, compute: Callable[..., Any]) -> Iterator[None]:
        """While active, ``self.compute_loss`` is another function, whichever class defines the method."""
        before = {name: value for name, value in vars(self).items() if name == "compute_loss"}
        vars(self)["compute_loss"] = compute
        try:
            yield
        finally:
            del self.compute_loss
            vars(self).update(before)

    def _soft_loss(self, logits: Tensor, main: _MainLoss) -> Tensor:
        """The sub branch's loss, scaled as the Trainer takes the main loss to be.

        Args:
            logits: (B, C).
            main: the main branch; rows that its labels leave out (-100) are left out here too.
        """
        target = main.target
        number: Any = logits.shape[0] if main.kind == "softmax" else logits.numel()
        if main.kind == "softmax" and _class_numbers(main.labels):
            labelled: Any = main.labels != -100
            target, number = target * labelled[:, None], labelled.sum()
        total: Any = soft_loss(logits, target, main.kind, "sum")
        scaled = getattr(self, "loss_is_scaled_for_ga", None)
        if main.count is None and scaled:  # the Trainer then leaves it to compute_loss to divide by the parts
            number = number * self.current_gradient_accumulation_steps
        if main.count is None or scaled is False:
            return cast("Tensor", total / number)
        # DistributedDataParallel takes the mean over processes; the count is the sum over them.
        processes = self.accelerator.num_processes if self.args.average_tokens_across_devices else 1
        return cast("Tensor", total / main.count * processes)

    def _target_kind(self, labels: Tensor | None, classes: int) -> TargetKind:
        if self._target != "auto":
            return self._target
        own = self.compute_loss_func is not None or self._own_compute_loss
        model: Any = unwrap(cast("nn.Module", self.model))
        problem = getattr(getattr(model, "config", None), "problem_type", None)
        if not own and (problem == "regression" or (problem is None and classes == 1)):
            raise ValueError(
                f"{type(model).__name__} with {classes} output(s) and problem_type {problem!r} is a regression; "
                f"MaskSub needs classes"
            )
        # transformers' models set the problem_type themselves, by labels: it says nothing about another loss.
        if not own and problem in _KINDS:
            return _KINDS[problem]
        if own or not _class_numbers(labels):
            what = "the loss is your own" if own else f"labels are {getattr(labels, 'dtype', None)}, not class numbers"
            raise ValueError(
                f"target = 'auto': {what}. Pass target='softmax' for a cross-entropy, target='sigmoid' for a binary "
                f"cross-entropy"
            )
        return "softmax"

    def _find_out(self, compute: Callable[..., Any], model: nn.Module, inputs: Any, given: dict[str, Any]) -> None:
        """Find out once whether the loss is divided by ``num_items_in_batch``, as the Trainer believes of it.

        Many models accept any keyword and drop this one (transformers#47688), and so do losses of one's own. The
        Trainer then takes a loss that is too large by the number of micro-batches and processes.
        """
        count, parts = given.get("num_items_in_batch"), self.args.gradient_accumulation_steps
        if self._is_divided is not None or count is None or getattr(self, "loss_is_scaled_for_ga", None) is not None:
            return
        parts *= self.accelerator.num_processes if self.args.average_tokens_across_devices else 1
        if parts == 1 and self._target != "sigmoid" and _class_numbers(self._labels(inputs)):
            return  # the count is that of this batch's labels: divided or a mean, it is the same number

        def loss_with(times: int) -> Tensor:
            loss = compute(model, copy.copy(inputs), **{**given, "num_items_in_batch": times * count})
            return cast("Tensor", loss[0] if given.get("return_outputs") else loss)

        model = getattr(model, "_orig_mod", model)  # compiling for these calls isn't worth it
        self._is_divided = is_divided(model, loss_with, lambda losses: self.accelerator.reduce(losses, "sum"))
        if self._is_divided is False and parts > 1:
            self._take_means(parts)

    def _labels(self, inputs: Any) -> Any:
        """Among the inputs; None if there are none."""
        names = (*(self.label_names or ()), "labels")  # a model that takes no labels has no label_names
        return next((inputs[name] for name in names if name in inputs), None)

    @property
    def _own_compute_loss(self) -> bool:
        return type(self).compute_loss is not Trainer.compute_loss

    def _take_means(self, parts: int) -> None:
        relied = (
            f"num_items_in_batch, as the Trainer relies on: with {parts} micro-batches an update, counted over all "
        )
        relied += f"processes, it would be up to {parts} times too large"
        if self.compute_loss_func is not None:
            raise ValueError(
                f"the loss of compute_loss_func is not divided by {relied}. Return the sum over the batch divided by "
                f"num_items_in_batch"
            )
        self.model_accepts_loss_kwargs = False
        if self.is_local_process_zero():
            of_model = f"{type(unwrap(cast('nn.Module', self.model))).__name__} (transformers#47688)"
            whose = f"{type(self).__name__}.compute_loss" if self._own_compute_loss else of_model
            warnings.warn(
                f"the loss of {whose} is not divided by {relied}. masksub sets model_accepts_loss_kwargs = False: the "
                f"Trainer then takes the mean over micro-batches",
                stacklevel=4,
            )


class MaskSubTrainer(MaskSubMixin, Trainer):
    """The Trainer with a sub branch: ``MaskSubTrainer(model=..., args=..., sub=MaskSub(0.5), weight=0.5)``.

    May be subclassed as the Trainer is. Arguments, what is logged and what is raised: ``MaskSubMixin``.
    """


class _MainLoss:
    """Stands in for ``compute_loss`` in the main branch: its result times a share; keeps what the sub branch needs.

    Attributes:
        call: of the model; None before it.
        inputs: of ``compute_loss``, on the device.
        count: labels in the whole update if the loss is a sum divided by it, None if it is a mean over B.
        labels, kind, target: what is learned; ``target`` is (B, C).
    """

    call: Any = None
    inputs: Any
    count: Any
    labels: Tensor | None
    kind: TargetKind
    target: Tensor

    def __init__(self, trainer: MaskSubMixin, share: float) -> None:
        self._trainer, self._compute, self._share = trainer, trainer.compute_loss, share

    def __call__(self, model: nn.Module, inputs: Any, *args: Any, **given: Any) -> Any:
        trainer = self._trainer
        given.update(zip(("return_outputs", "num_items_in_batch"), args))
        if self.call is not None:
            raise ValueError(
                f"{type(trainer).__name__}.training_step called compute_loss twice; the sub branch follows one call. "
                f"Derive the class from MaskSubTrainer: each super().training_step then has both branches"
            )
        self.inputs = copy.copy(inputs)  # compute_loss may take the labels out
        trainer._find_out(self._compute, model, inputs, given)
        self.count = None if trainer._is_divided is False else given.get("num_items_in_batch")

        with calls_seen(model) as calls:
            result: Any = self._compute(model, inputs, **given)
        if len(calls) != 1:
            raise ValueError(f"compute_loss called the model {len(calls)} times; the sub branch repeats one call")
        self.call = Call(*calls[0][:2])
        logits = _logits(calls[0][2], self.call)
        if logits.ndim != 2:
            raise ValueError(f"logits have shape {tuple(logits.shape)}; MaskSub needs a classifier's: (batch, classes)")
        self.labels = trainer._labels(self.inputs)
        self.kind = trainer._target_kind(self.labels, logits.shape[-1])
        if self.count is not None and self.kind == "softmax" and getattr(self.labels, "ndim", 1) > 1:
            raise ValueError(
                f"the loss is divided by num_items_in_batch = {int(self.count)}, which counts each number of the soft "
                f"labels: whether the loss makes good for it can't be known. Return the mean over the batch from a "
                f"compute_loss of your own"
            )
        self.target = relaxed_target(logits, self.kind)
        if not given.get("return_outputs"):
            return self._share * result
        loss, outputs = result
        return self._share * loss, outputs


class _Checks(TrainerCallback):  # type: ignore[misc,unused-ignore]
    """Refuses what would train something else than asked for, before training and after its first update."""

    def __init__(self, trainer: MaskSubMixin) -> None:
        self._trainer, self._expected = trainer, False

    def on_train_begin(self, *_: Any, **__: Any) -> None:
        if self._trainer.runs_sub:
            _check_settings(self._trainer)

    def on_step_begin(self, *_: Any, **__: Any) -> None:
        self._expected = self._trainer.runs_sub  # another callback may change it before the step's end

    def on_step_end(self, *_: Any, **__: Any) -> None:
        trainer = self._trainer
        if self._expected and trainer.runs_sub and trainer._training is not trainer.state:
            raise ValueError(
                f"{type(trainer).__name__}.training_step never called super().training_step: no sub branch"
            )


class _Window:
    """Mean of a loss over the updates since the last line of the log."""

    def __init__(self) -> None:
        self._total: Tensor | None = None
        self._updates: set[int] = set()

    def add(self, update: int, loss: Tensor) -> None:
        """The share of one micro-batch in the loss of an update."""
        self._total = loss if self._total is None else self._total + loss
        self._updates.add(update)

    def mean(self) -> Tensor | None:
        """The mean so far, None if there is nothing; the next window begins."""
        mean = None if self._total is None else self._total / len(self._updates)
        self._total, self._updates = None, set()
        return mean


def _class_numbers(labels: Tensor | None) -> bool:
    """Whether labels are (B,) numbers of classes."""
    return isinstance(labels, Tensor) and labels.ndim == 1 and not labels.is_floating_point()


def _logits(outputs: Any, call: Call) -> Tensor:
    """Logits in what a model returned; in a tuple they come after the loss, which is there with labels."""
    if isinstance(outputs, tuple):
        outputs = outputs[0 if call.kwargs.get("labels") is None else 1]
    return logits_of(outputs, "the model")


def _updated(inputs: Any, prepared: Any) -> Any:
    """A copy of the inputs with what is on the device already, so that nothing is copied there again."""
    if not isinstance(inputs, MutableMapping) or not isinstance(prepared, Mapping):
        return prepared
    both = copy.copy(inputs)
    both.update(prepared)
    return both


def _check_settings(trainer: MaskSubMixin) -> None:
    """Refuse what two backward passes a step don't fit, and where the model can't be reached."""
    args, accelerator = trainer.args, trainer.accelerator
    plugin, optim = getattr(accelerator.state, "fsdp_plugin", None), str(args.optim)
    sizes = [
        getattr(getattr(accelerator, "parallelism_config", None), f"{kind}_size", 1) for kind in ("tp", "cp", "sp")
    ]
    reasons = {
        "nn.DataParallel (several GPUs in one process): start one process for each GPU with torchrun": args.n_gpu > 1,
        "DeepSpeed: use DistributedDataParallel": trainer.is_deepspeed_enabled,
        "FSDP1: use fsdp_version 2": plugin is not None and getattr(plugin, "fsdp_version", 1) != 2,
        "tensor, context or sequence parallelism": max(
            size or 1 for size in (*sizes, getattr(trainer.model, "tp_size", 1))
        )
        > 1,
        "SageMaker model parallelism": "sagemaker_model" in args.parallel_mode.value,
        "ddp_static_graph: it can't leave out a reduction": getattr(args, "ddp_static_graph", False),
        f"optim = {optim!r}: it updates the weights during backward": re.search("lomo|layerwise", optim.lower()),
    }
    if found := [reason for reason, given in reasons.items() if given]:
        raise ValueError(f"MaskSub in the Trainer doesn't work with {'; with '.join(found)}")
