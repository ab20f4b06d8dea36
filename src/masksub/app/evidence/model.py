"""What run folders say together: the data model that the table, the sweep's choice and the report share.

``gather`` makes it from run folders; nothing in it comes from anywhere else. Top-1 and differences of it are in percent
and percentage points, FLOPs and seconds of training are totals of one run, an epoch is one pass over the images.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass, field
from typing import Any, Literal

__all__ = ["Arm", "Curve", "Evidence", "Interval", "Paired", "Problem", "Run", "Stability", "Sweep", "SweepPoint"]


@dataclass(frozen=True)
class Interval:
    """A mean with its confidence interval; low and high are None where there are too few values for one."""

    mean: float
    low: float | None
    high: float | None
    level: float = 0.95


@dataclass(frozen=True)
class Paired:
    """Difference of an arm to a reference arm, paired over the seeds that both completed.

    Attributes:
        reference: key of the reference arm.
        seeds: the seeds that are paired.
        differences: arm minus reference for each of them, in percentage points of top-1.
        interval: of their mean.
        p: two-sided p-value; None for fewer than two seeds.
        method: how interval and p were made, for people ("paired t").
    """

    reference: str
    seeds: tuple[int, ...]
    differences: tuple[float, ...]
    interval: Interval
    p: float | None
    method: str

    @property
    def claims(self) -> bool:
        """Whether anything may be said about noise at all: three seeds are the least."""
        return len(self.seeds) >= 3

    @property
    def verdict(self) -> Literal["better", "worse", "none", "unknown"]:
        """Never more than the figures: too few seeds are "unknown", an interval with 0 in it is "none".

        So is a p-value above 1 - level. With the t-test both say the same; a bootstrap interval of few seeds is too
        narrow, and its permutation test knows.
        """
        low, high = self.interval.low, self.interval.high
        if not self.claims or low is None or high is None:
            return "unknown"
        if low <= 0 <= high or self.disputed:
            return "none"
        return "better" if low > 0 else "worse"

    @property
    def disputed(self) -> bool:
        """Whether the interval excludes 0 although the p-value claims no difference."""
        low, high = self.interval.low, self.interval.high
        if self.p is None or low is None or high is None or low <= 0 <= high:
            return False
        return self.p > 1 - self.interval.level + 1e-9


@dataclass(frozen=True)
class Run:
    """One run folder.

    Attributes:
        path: the folder, as it was given.
        seed: of the run.
        status: "complete", "failed" (it diverged; reason says how) or "incomplete".
        top1: final top-1 in percent, None unless complete.
        reason: why it failed.
        best_top1: the highest of all evaluations, for information only; never compared.
        skipped_images, skipped_validation_images: could not be read and were left out (``data.on_error=skip``); 0
            unless complete.
    """

    path: str
    seed: int
    status: Literal["complete", "failed", "incomplete"]
    top1: float | None = None
    reason: str | None = None
    best_top1: float | None = None
    skipped_images: int = 0
    skipped_validation_images: int = 0


@dataclass(frozen=True)
class Curve:
    """A quantity over training, mean and range over an arm's complete seeds. All lists have one length."""

    epoch: list[float]
    flops: list[float]
    mean: list[float]
    low: list[float]
    high: list[float]


@dataclass(frozen=True)
class Stability:
    """How calmly an arm trained, over its complete and failed runs.

    Attributes:
        loss_variance: mean over seeds of the variance of the main branch's loss from step to step, within a line of
            metrics, in the second half of training; None if the runs did not record it.
        gradient_norm_mean: mean of the recorded norms.
        gradient_norm_max: the largest recorded norm.
        spikes: number of spikes in all runs together (see ``stability.spikes``).
        failed: seeds that diverged.
    """

    loss_variance: float | None
    gradient_norm_mean: float | None
    gradient_norm_max: float | None
    spikes: int
    failed: tuple[int, ...]


@dataclass(frozen=True)
class Arm:
    """All runs of one recipe but for the seed.

    Attributes:
        key: "plain", "plain-equal", "masksub", "direct-mask", ...: a key of ``arms.ARMS``; where two groups would have
            the same, the later ones carry what they differ in: "masksub sub.ratio=0.75".
        method: the recipe's method.
        changes: recipe keys in which it differs from the plain arm (from the first arm where there is none): dotted
            key -> (value there, value here).
        runs: every run that was found, failed and incomplete ones too, by seed.
        top1: mean of the complete runs' final top-1, with its t-interval; None if none is complete.
        spread: standard deviation over the complete seeds, None for fewer than two.
        epochs, images, flops, seconds, images_per_second, peak_memory_bytes: means over the complete runs; seconds are
            those of training alone, without evaluation. None if none is complete.
        energy_joules: mean, only if every complete run could read it.
        energy_of: what was measured ("GPU 0, NVML"), None without.
        versus: reference key -> paired difference, for the references "plain" and "plain-equal" that are there.
        flops_to_plain: training FLOPs at which the mean curve first reaches the plain arm's mean final top-1; None if
            it never does, or there is no plain arm.
        stability: see there.
        curves: name -> curve: "top1" and "loss" of the evaluations; "loss_main", "loss_sub", "agreement" (top-1
            agreement of the branches on training batches, in percent), "gradient_norm", of the training lines. Only
            those that the runs recorded.
    """

    key: str
    method: str
    changes: dict[str, tuple[Any, Any]]
    runs: tuple[Run, ...]
    top1: Interval | None
    spread: float | None
    epochs: float | None
    images: float | None
    flops: float | None
    seconds: float | None
    images_per_second: float | None
    peak_memory_bytes: float | None
    energy_joules: float | None
    energy_of: str | None
    versus: dict[str, Paired]
    flops_to_plain: float | None
    stability: Stability
    curves: dict[str, Curve] = field(default_factory=dict)

    @property
    def complete(self) -> tuple[Run, ...]:
        """The runs that are complete."""
        return tuple(run for run in self.runs if run.status == "complete")

    @property
    def failed(self) -> tuple[Run, ...]:
        """The runs that diverged."""
        return tuple(run for run in self.runs if run.status == "failed")


@dataclass(frozen=True)
class SweepPoint:
    """One setting of a sweep.

    Attributes:
        settings: dotted recipe key -> value, one for each key that is swept.
        runs: as in ``Arm``.
        top1: mean with interval over the complete seeds; None if none is complete.
        versus_plain: paired difference to the plain arm, where there is one with the same seeds.
        flops: of one run, None if none is complete.
    """

    settings: dict[str, Any]
    runs: tuple[Run, ...]
    top1: Interval | None
    versus_plain: Paired | None
    flops: float | None


@dataclass(frozen=True)
class Sweep:
    """Settings of one method against each other.

    Attributes:
        keys: the dotted recipe keys that vary, "sub.ratio" and "sub.weight" first.
        points: every setting.
        recommended: index of the setting to use: the highest mean top-1 among those with the most complete seeds; of
            settings that are not told apart from it (paired interval contains 0) and not further below it than its
            standard error, the cheapest in FLOPs, then the one nearest to the paper's 0.5 and 0.5. None if no setting
            is complete.
        best: index of the highest mean.
        sensitivity: dotted key -> largest loss of mean top-1, in points, one step away from the recommended setting
            along that key; only for numeric keys with a neighbour.
        pareto: indices of the settings that no other beats in both top-1 and FLOPs, by rising FLOPs.
    """

    keys: tuple[str, ...]
    points: tuple[SweepPoint, ...]
    recommended: int | None
    best: int | None
    sensitivity: dict[str, float]
    pareto: tuple[int, ...]


@dataclass(frozen=True)
class Problem:
    """Something that was found but not used, or used with care.

    Attributes:
        path: folder or file.
        kind: "empty", "foreign", "unreadable", "incomplete", "failed", "double" (of a run that counts) or "version".
        message: what is wrong with it, in English, for the terminal and the JSON.
        values: what the message names, for other languages.
    """

    path: str
    kind: Literal["empty", "foreign", "unreadable", "incomplete", "failed", "double", "version"]
    message: str
    values: dict[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Evidence:
    """Everything that was found.

    Attributes:
        paths: what was asked for.
        arms: in the order of ``arms.ARMS``, others after them. The settings of a sweep are not repeated here, but for
            the one that stands for its method.
        sweep: None if no key was swept.
        problems: what was left out, and why.
        environments: distinct environments: versions, platform, processor, cores, threads, gpu, and ``runs``: how many.
        recipe: the first arm's resolved recipe, seed left out: data, model, training.
        classes: names of the classes.
    """

    paths: tuple[str, ...]
    arms: tuple[Arm, ...]
    sweep: Sweep | None
    problems: tuple[Problem, ...]
    environments: tuple[dict[str, Any], ...]
    recipe: dict[str, Any]
    classes: tuple[str, ...]

    def arm(self, key: str) -> Arm | None:
        """The arm of that key, None if it is not there."""
        return next((arm for arm in self.arms if arm.key == key), None)

    def as_dict(self) -> dict[str, Any]:
        """For JSON."""
        return asdict(self)
