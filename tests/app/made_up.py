"""Made-up evidence for tests of what is said about it: nobody trained these runs."""

from __future__ import annotations

import dataclasses
import math
import statistics
from typing import Any

import scipy.stats

from masksub.app.evidence.model import (
    Arm,
    Curve,
    Evidence,
    Interval,
    Paired,
    Problem,
    Run,
    Stability,
    Sweep,
    SweepPoint,
)

__all__ = ["HOSTILE", "SITUATIONS", "make_arm", "make_evidence", "make_sweep", "situation"]

HOSTILE = (
    "<img src=x onerror=alert(1)></script><script>alert(2)</script><a href='https://evil.example'>b</a>"
    "<b>|`x`| {{ 7*7 }} {0} $x^2$"
)
"""A name that tries to be markup in HTML, Plotly, Markdown, a script element and a template."""

NOISE = (0.0, 0.5, -0.4, 0.2, -0.3)
"""Of the plain arm's seeds, in points; what two arms differ in has a noise of its own."""
OWN_NOISE = {"plain": (0.0,) * 5, "plain-equal": (0.1, -0.2, 0.1, 0.15, -0.15), "masksub": (0.2, -0.1, -0.2, 0.1, 0.0)}
FLOPS = {"plain": 4.0e13, "plain-equal": 6.1e13, "masksub": 6.0e13, "direct-mask": 2.1e13, "dropsub": 8.0e13}
RECIPE: dict[str, Any] = {
    "data": {"name": "digits", "image_size": 8, "channels": 1},
    "model": {"name": "vit_tiny_patch16_224", "kwargs": {"patch_size": 2, "depth": 4}},
    "sub": {"ratio": 0.5, "weight": 0.5, "unit": None, "p": 0.1},
    "optim": {"name": "adamw", "lr": 0.002},
    "train": {"epochs": 40.0, "batch_size": 128},
}


def interval(values: list[float]) -> Interval:
    """A t-interval by SciPy; none for fewer than three values, or where all are equal."""
    mean = statistics.fmean(values)
    if len(values) < 3 or max(values) - min(values) < 1e-9:
        return Interval(mean, None, None)
    half = float(scipy.stats.t.ppf(0.975, len(values) - 1)) * statistics.stdev(values) / math.sqrt(len(values))
    return Interval(mean, mean - half, mean + half)


def paired(ours: dict[int, float], theirs: dict[int, float], reference: str) -> Paired | None:
    """Over the seeds of both."""
    seeds = tuple(sorted(ours.keys() & theirs.keys()))
    if not seeds:
        return None
    differences = [ours[seed] - theirs[seed] for seed in seeds]
    p = None
    if len(seeds) > 1 and max(differences) - min(differences) < 1e-9:
        at, equal = interval(differences), "all differences are equal: no interval, exact sign-flip test"
        same = abs(at.mean) < 1e-9
        at = Interval(0.0, 0.0, 0.0) if same else at
        return Paired(reference, seeds, tuple(differences), at, 1.0 if same else 2 / 2 ** len(seeds), equal)
    if len(seeds) > 1:
        p = float(scipy.stats.ttest_1samp(differences, 0).pvalue)
    return Paired(reference, seeds, tuple(differences), interval(differences), p, "paired t")


def curve(first: float, last: float, epochs: float, flops: float, width: float, points: int = 20) -> Curve:
    """From first to last, ever slower."""
    share = [(at + 1) / points for at in range(points)]
    mean = [last + (first - last) * math.exp(-5 * at) for at in share]
    return Curve(
        [epochs * at for at in share],
        [flops * at for at in share],
        mean,
        [value - width for value in mean],
        [value + width for value in mean],
    )


def make_arm(key: str, level: float, *, seeds: int = 5, failed: tuple[int, ...] = (), **more: Any) -> Arm:
    """An arm whose complete seeds lie around ``level`` percent; ``more`` replaces fields."""
    own = OWN_NOISE.get(key.split()[0], (0.1, 0.2, -0.1, -0.2, 0.0))
    runs = tuple(
        Run(f"runs/digits/{key}-s{seed}", seed, "failed", reason="loss of the main branch is not finite")
        if seed in failed
        else Run(f"runs/digits/{key}-s{seed}", seed, "complete", level + NOISE[seed] + own[seed])
        for seed in range(seeds)
    )
    values = [run.top1 for run in runs if run.top1 is not None]
    base = key.split()[0]
    flops, epochs = FLOPS.get(base, 4e13), 61.0 if base == "plain-equal" else 40.0
    curves = {
        "top1": curve(20.0, level, epochs, flops, 0.5),
        "loss": curve(2.3, 0.3 - level / 1000, epochs, flops, 0.02),
        "loss_main": curve(2.4, 0.05, epochs, flops, 0.01, 60),
        "gradient_norm": curve(0.5, 1.4, epochs, flops, 0.1, 60),
    }
    if base in ("masksub", "dropsub"):
        curves |= {
            "loss_sub": curve(2.5, 0.3, epochs, flops, 0.02, 60),
            "agreement": curve(15.0, 92.0, epochs, flops, 1.0, 60),
        }
    fields: dict[str, Any] = {
        "key": key,
        "method": "plain" if base == "plain-equal" else base,
        "changes": {"train.epochs": (40.0, epochs)} if base == "plain-equal" else {},
        "runs": runs,
        "top1": interval(values) if values else None,
        "spread": statistics.stdev(values) if len(values) > 1 else None,
        "epochs": epochs,
        "images": epochs * 1297,
        "flops": flops,
        "seconds": flops / 1e12,
        "images_per_second": 2500.0,
        "peak_memory_bytes": 6.2e8 + flops / 1e6,
        "energy_joules": None,
        "energy_of": None,
        "versus": {},
        "flops_to_plain": None,
        "stability": Stability(0.012, 1.1, 3.2, 0, failed),
        "curves": curves if values else {},
    }
    return Arm(**{**fields, **more})


def make_evidence(*arms: Arm, **more: Any) -> Evidence:
    """Evidence of these arms, paired with the references among them; ``more`` replaces fields."""
    found = {arm.key: {run.seed: run.top1 for run in arm.runs if run.top1 is not None} for arm in arms}
    with_pairs = []
    for arm in arms:
        pairs = {
            reference: pair
            for reference in ("plain", "plain-equal")
            if reference in found and reference != arm.key
            if (pair := paired(found[arm.key], found[reference], reference)) is not None
        }
        plain = next((each for each in arms if each.key == "plain" and each.top1), None)
        ahead = plain and arm.top1 and plain.top1 and arm.top1.mean >= plain.top1.mean
        reach = 0.6 * arm.flops if ahead and arm.flops else None
        with_pairs.append(dataclasses.replace(arm, versus=pairs, flops_to_plain=reach))
    fields: dict[str, Any] = {
        "paths": ("runs/digits",),
        "arms": tuple(with_pairs),
        "sweep": None,
        "problems": (),
        "environments": (
            {
                "runs": sum(len(arm.runs) for arm in arms),
                "versions": {"masksub": "0.4.0", "torch": "2.9.0"},
                "platform": "Linux-6.1-x86_64",
                "processor": "Example CPU",
                "cores": 8,
                "threads": 1,
                "gpu": None,
            },
        ),
        "recipe": RECIPE,
        "classes": tuple(str(number) for number in range(10)),
    }
    return Evidence(**{**fields, **more})


def make_sweep(seeds: int = 3, level: float = 95.0, *, best: tuple[float, float] = (0.5, 0.5)) -> Sweep:
    """Ratio by weight, three each, highest at ``best``; the first setting has a seed that diverged."""
    points = []
    for ratio in (0.25, 0.5, 0.75):
        for weight in (0.25, 0.5, 0.75):
            mean = level - 4 * abs(ratio - best[0]) - 3 * abs(weight - best[1])
            name = f"runs/sweep/r{ratio}-w{weight}"
            runs = tuple(Run(f"{name}-s{seed}", seed, "complete", mean + NOISE[seed]) for seed in range(seeds))
            if not points:
                runs = (*runs[:-1], Run(f"{name}-s{seeds - 1}", seeds - 1, "failed", reason="not finite"))
            values = {run.seed: run.top1 for run in runs if run.top1 is not None}
            plain = {seed: 92.0 + NOISE[seed] + 0.1 * seed for seed in range(seeds)}
            top1 = interval(list(values.values())) if values else None
            flops = 4e13 * (1 + 1.04 * (1 - ratio))
            settings = {"sub.ratio": ratio, "sub.weight": weight}
            points.append(SweepPoint(settings, runs, top1, paired(values, plain, "plain"), flops))
    chosen = next(at for at, p in enumerate(points) if tuple(p.settings.values()) == best)
    sensitivity = {"sub.ratio": 1.0, "sub.weight": 0.75}
    return Sweep(("sub.ratio", "sub.weight"), tuple(points), chosen, chosen, sensitivity, (7, chosen))


def situation(name: str) -> Evidence:
    """Made-up evidence by the name of what it shows, see SITUATIONS."""
    return SITUATIONS[name]()


def _diverged(ratio: float) -> SweepPoint:
    """A setting of which no run is complete."""
    return SweepPoint(
        {"sub.ratio": ratio}, (Run(f"runs/sweep/r{ratio}-s0", 0, "failed", reason="x"),), None, None, None
    )


def _four(masksub: float, equal: float = 92.6, **more: Any) -> tuple[Arm, ...]:
    plain = make_arm("plain", 92.0, **more)
    arms = (make_arm("plain-equal", equal, **more), make_arm("masksub", masksub, **more))
    return (plain, *arms, make_arm("direct-mask", 90.1, **more))


def _hostile() -> Evidence:
    base = make_evidence(*_four(94.5), sweep=make_sweep())
    arms = [dataclasses.replace(arm, changes={HOSTILE: (HOSTILE, [HOSTILE])}) for arm in base.arms]
    odd = make_arm(HOSTILE, 91.0, versus=base.arms[2].versus)
    odd = dataclasses.replace(
        odd, runs=tuple(dataclasses.replace(run, path=HOSTILE, reason=HOSTILE) for run in odd.runs[:1])
    )
    assert base.sweep is not None
    points = [
        dataclasses.replace(point, settings={"sub.ratio": point.settings["sub.ratio"], HOSTILE: f"{HOSTILE}{at % 3}"})
        for at, point in enumerate(base.sweep.points)
    ]
    sweep = dataclasses.replace(
        base.sweep, keys=("sub.ratio", HOSTILE), points=tuple(points), sensitivity={HOSTILE: 1.0}
    )
    recipe = {**RECIPE, "data": {"name": HOSTILE}, "model": {"name": HOSTILE, HOSTILE: HOSTILE}}
    problem = Problem(HOSTILE, "foreign", HOSTILE, {HOSTILE: HOSTILE})
    environment = {**base.environments[0], "processor": HOSTILE, HOSTILE: HOSTILE}
    return dataclasses.replace(
        base, arms=(*arms, odd), sweep=sweep, problems=(problem,), environments=(environment,), recipe=recipe,
        classes=(HOSTILE, "b"), paths=(HOSTILE,),
    )  # fmt: skip


def _alike(by: float) -> Evidence:
    """Every seed of MaskSub ends by the same above plain training."""
    noise, base = dict(enumerate(NOISE)), make_arm("masksub", 92.0 + by)
    runs = tuple(dataclasses.replace(run, top1=92.0 + by + noise[run.seed]) for run in base.runs)
    return make_evidence(make_arm("plain", 92.0), dataclasses.replace(base, runs=runs))


SITUATIONS = {
    "win": lambda: make_evidence(*_four(94.5), sweep=make_sweep()),
    "loss": lambda: make_evidence(*_four(89.0)),
    "noise": lambda: make_evidence(*_four(92.05, 92.0)),
    "win at epochs, loss at compute": lambda: make_evidence(*_four(93.0, 95.0)),
    "failed seed": lambda: make_evidence(
        *(make_arm("plain", 92.0), make_arm("plain-equal", 92.6), make_arm("masksub", 94.5, failed=(3,)))
    ),
    "all seeds failed": lambda: make_evidence(
        make_arm("plain", 92.0), make_arm("masksub", 94.5, failed=(0, 1, 2, 3, 4))
    ),
    "every run failed": lambda: make_evidence(
        *(make_arm(key, 90.0, seeds=2, failed=(0, 1)) for key in ("plain", "plain-equal", "masksub"))
    ),
    "every run failed in fp16": lambda: make_evidence(
        make_arm("masksub", 94.5, seeds=2, failed=(0, 1)),
        recipe={**RECIPE, "train": {**RECIPE["train"], "precision": "fp16"}},
        sweep=Sweep(("sub.ratio",), (_diverged(0.25), _diverged(0.5)), None, None, {}, ()),
    ),
    "no plain-equal": lambda: make_evidence(make_arm("plain", 92.0), make_arm("masksub", 94.5)),
    "no plain": lambda: make_evidence(make_arm("plain-equal", 92.6), make_arm("masksub", 94.5)),
    "masksub alone": lambda: make_evidence(make_arm("masksub", 94.5)),
    "no sub branch": lambda: make_evidence(make_arm("plain", 92.0)),
    "dropsub": lambda: make_evidence(make_arm("plain", 92.0), make_arm("plain-equal", 92.6), make_arm("dropsub", 94.0)),
    "two seeds": lambda: make_evidence(*_four(94.5, seeds=2), sweep=make_sweep(2)),
    "one seed": lambda: make_evidence(*_four(94.5, seeds=1)),
    "sweep at its edge": lambda: make_evidence(*_four(94.5), sweep=make_sweep(best=(0.75, 0.5))),
    "nothing": lambda: make_evidence(recipe={}, classes=(), environments=()),
    "all seeds differ alike": lambda: _alike(1.67),
    "all seeds are the same": lambda: _alike(0.0),
    "plain failed": lambda: make_evidence(
        make_arm("plain", 92.0, failed=(0, 1, 2, 3, 4)), make_arm("masksub", 94.5), sweep=make_sweep()
    ),
    "plain-equal failed": lambda: make_evidence(
        make_arm("plain", 92.0), make_arm("plain-equal", 92.6, failed=(0, 1, 2, 3, 4)), make_arm("masksub", 94.5)
    ),
    "only failed": lambda: make_evidence(make_arm("masksub", 94.5, failed=(0, 1, 2, 3, 4))),
    "only comparators": lambda: make_evidence(
        make_arm("plain", 92.0), make_arm("true-label-sub", 92.5), make_arm("self-distill", 92.4)
    ),
    "other epochs": lambda: make_evidence(make_arm("plain", 92.0, epochs=30.0), *_four(94.5)[1:], sweep=make_sweep()),
    "another learning rate": lambda: make_evidence(
        *_four(94.5)[:2],
        make_arm("masksub", 94.5, changes={"method": ("plain", "masksub"), "optim.lr": (0.002, 0.001)}),
        sweep=make_sweep(),
    ),
    "hostile": _hostile,
}
"""Name -> its evidence."""
