"""A plan for people: tables of text, and every assumption below them."""

from __future__ import annotations

from masksub.app.experiment.estimate import duration

from .make import Plan
from .memory import Memory
from .shapes import can_recompute
from .steps import Update

__all__ = ["advice_lines", "assumption_lines", "memory_rows", "plan_text", "scaling_rows"]

GIB = 2**30


def plan_text(plan: Plan) -> str:
    """The whole plan for a terminal."""
    recipe, update = plan.recipe, plan.updates[plan.recipe.method]
    nodes = plan.machine.nodes(plan.gpus)
    per_epoch = plan.data.images // update.images
    lines = [
        f"{recipe.model.name}, {plan.shapes.parameters / 1e6:.1f} million weights, {recipe.method}, "
        f"{recipe.train.precision}; {plan.gpus} x {plan.machine.device} in {nodes} node(s); computed, not measured"
        + (" but for the speed of one device" if plan.rates.measured else ""),
        f"An update: {update.images:,} images = {update.gpus} GPU(s) x {update.batch} x {update.parts} part(s). "
        f"An epoch: {plan.data.images:,} images, {per_epoch:,} updates.",
        "",
        *_memory_lines(plan),
        "",
        *_update_lines(plan),
        "",
        *_table(scaling_rows(plan)),
        "",
        *assumption_lines(plan),
    ]
    return "\n".join(lines)


def memory_rows(plan: Plan) -> list[tuple[str, float]]:
    """Name and bytes of each part of a GPU's memory, without those that are 0."""
    memory, sharded = plan.memory, plan.recipe.train.shard == "full" and plan.gpus > 1
    share = f", 1/{plan.gpus} of them" if sharded else ""
    branch = "both branches" if not memory.sub else "the larger branch"
    if len(plan.shapes.held.kept) == 1 and not (plan.shapes.main and plan.shapes.sub):
        branch = "the one branch"
    rows = [
        (f"weights, fp32{share}", memory.weights),
        (f"gradients, fp32{' (whole between two backwards, and a share)' if sharded else ''}", memory.gradients),
        ("DDP's buckets: the gradients again", memory.buckets),
        (f"optimizer, {plan.recipe.optim.name}{share}", memory.optimizer),
        (f"moving average of the weights{share}", memory.average),
        ("gathered at one time: two blocks and what is in no block", memory.gathered),
        (f"weights in {plan.recipe.train.precision} for the forward", memory.copies),
        (f"activations of {branch} (main {_gib(memory.main)}, sub {_gib(memory.sub)})", memory.activations)
        if memory.sub
        else (f"activations of {branch}", memory.activations),
        ("gradients of activations, two of the widest", memory.working),
    ]
    return [row for row in rows if row[1]]


def _memory_lines(plan: Plan) -> list[str]:
    lines = [f"{'Memory of one GPU':66}{'GiB':>8}"]
    lines += [f"  {name:64}{_gib(size):>8}" for name, size in memory_rows(plan)]
    spare = plan.available - plan.memory.total
    verdict = f"fits, {_gib(spare)} GiB to spare" if plan.fits else f"does NOT fit, {_gib(-spare)} GiB too much"
    lines.append(
        f"  {'total':64}{_gib(plan.memory.total):>8}  of {_gib(plan.available)} ({plan.machine.memory:g} GB less "
        f"{plan.machine.reserve:.0%}): {verdict}"
    )
    if plan.recipe.method != "plain":
        lines.append(f"  {'total of the plain method':64}{_gib(plan.memories['plain'].total):>8}")
    return lines + advice_lines(plan)


def advice_lines(plan: Plan) -> list[str]:
    """What to change where the training does not fit."""
    if plan.fits:
        return []
    train, memory = plan.recipe.train, plan.memory
    fixed = memory.total - memory.activations - memory.working
    advice = []
    room = plan.available - fixed
    if room > 0:
        most = int(train.batch_size * room / (memory.activations + memory.working))
        parts = [
            p for p in range(2, train.batch_size + 1) if train.batch_size % p == 0 and train.batch_size // p <= most
        ]
        if parts:
            size, same = train.batch_size // parts[0], train.global_batch_size is not None
            more = "" if same else f" train.accumulate={train.accumulate * parts[0]}"
            advice.append(f"train.batch_size={size}{more} (the same update in {parts[0]} x as many parts)")
    if not train.recompute and can_recompute(plan.recipe, plan.data.classes):
        advice.append("train.recompute=true (up to a third more operations)")
    if plan.recipe.sub.mode == "joint":
        advice.append("sub.mode=split (activations of one branch at a time)")
    if train.shard == "none" and plan.gpus > 1:
        advice.append("train.shard=full (weights, gradients and optimizer over all GPUs)")
    return ["  Try " + "; or ".join(advice or ["a GPU with more memory, or more GPUs with train.shard=full"])]


def _update_lines(plan: Plan) -> list[str]:
    arms = list(plan.updates)
    checkpoint = plan.checkpoint / (plan.machine.disk * 1e9)

    def row(name: str, *values: str) -> str:
        return f"  {name:58}" + "".join(f"{value:>14}" for value in values)

    updates, totals = list(plan.updates.values()), list(plan.totals.values())
    shapes = plan.shapes
    flops = [shapes.plain if arm == "plain" else shapes.main + shapes.sub for arm in arms]
    nodes = plan.machine.nodes(plan.gpus)
    return [
        "Time" + row("", *arms)[4:],
        row("operations of an image, GFLOP", *(f"{each / 1e9:,.4g}" for each in flops)),
        row("computing of an update, s", *(f"{u.compute:.4g}" for u in updates)),
        row("communication of an update, s", *(f"{u.communication:.3g}" for u in updates)),
        row("  of it not hidden behind computing, s", *(f"{u.exposed:.3g}" for u in updates)),
        row("update, s", *(f"{u.seconds:.4g}" for u in updates)),
        row("sent by each GPU an update, GB", *(f"{u.sent / 1e9:.3g}" for u in updates)),
        row("images/s, all GPUs", *(f"{u.images_per_second:,.0f}" for u in updates)),
        row("  to decode by each node, images/s", *(f"{u.images_per_second / nodes:,.0f}" for u in updates)),
        row("of as many single GPUs", *(f"{u.efficiency:.1%}" for u in updates)),
        row("an epoch", *(duration(plan.data.images // u.images * u.seconds) for u in updates)),
        row(f"{plan.recipe.train.epochs:g} epochs", *(duration(t.hours * 3600) for t in totals)),
        row("GPU hours", *(f"{t.gpu_hours:,.0f}" for t in totals)),
        f"  A checkpoint: {plan.checkpoint / 1e9:.3g} GB, {checkpoint:.2g} s at {plan.machine.disk:g} GB/s"
        + (", beside training." if plan.recipe.train.checkpoint_in_background else ", while training waits."),
    ]


def scaling_rows(plan: Plan) -> list[tuple[str, ...]]:
    """Head and rows of the table over numbers of GPUs; communication is that of the recipe's method."""
    arms = list(plan.updates)
    head = ["GPUs", "nodes", "batch x parts", "GiB a GPU", "comm., s"]
    for arm in arms:
        head += [f"{arm}: s", "images/s", "of ideal", "hours"]
    rows = [tuple(head)]
    for memories, updates, totals in plan.table:
        first = updates[plan.recipe.method]
        row = [str(first.gpus), str(plan.machine.nodes(first.gpus)), f"{first.batch} x {first.parts}"]
        row += [_fit(plan, memories[plan.recipe.method]), f"{first.communication:.3g}"]
        for arm in arms:
            row += [*_scaling(updates[arm]), f"{totals[arm].hours:,.4g}"]
        rows.append(tuple(row))
    return rows


def _scaling(update: Update) -> list[str]:
    return [f"{update.seconds:.4g}", f"{update.images_per_second:,.0f}", f"{update.efficiency:.1%}"]


def _fit(plan: Plan, memory: Memory) -> str:
    return _gib(memory.total) + ("" if memory.total <= plan.available else " !")


def _table(rows: list[tuple[str, ...]]) -> list[str]:
    widths = [max(len(row[column]) for row in rows) for column in range(len(rows[0]))]
    return ["  ".join(cell.rjust(width) for cell, width in zip(row, widths, strict=True)) for row in rows]


def assumption_lines(plan: Plan) -> list[str]:
    """Everything that is assumed, and the option that changes it."""
    machine, recipe = plan.machine, plan.recipe
    lines = [
        "Assumed, with the option that changes it:",
        f"  data: {plan.data.images:,} images, {plan.data.classes:,} classes, {plan.data.source} (--images, --classes)",
        f"  {machine.device}: {machine.memory:g} GB, peak {machine.peak:g} TFLOP/s in {recipe.train.precision}, NVLink "
        f"{machine.nvlink:g} GB/s both ways; {machine.source}",
        "    (--device; --assume memory=, peak=, nvlink=)",
        f"  speed of one GPU: {plan.rates.source} (--utilisation, or --measured, --measured-plain, --measure)",
        *_slower(plan),
        f"  {machine.per_node} GPUs a node (--per-node), {machine.network:g} Gbit/s a node each way (--network), links "
        f"reach {machine.links:.0%} of that (--assume links=)",
        f"  {machine.reserve:.0%} of the memory for the context, workspaces and fragments (--assume reserve=); disk "
        f"{machine.disk:g} GB/s (--assume disk=)",
    ]
    if recipe.train.shard == "full":
        lines += [
            "  FSDP2: fp32 weights are gathered for each forward and each backward, block by block, and fp32",
            "    gradients reduced once an update; a pass takes the longer of computing and communication; no latency",
        ]
    else:
        lines.append(
            "  DDP: one ring all-reduce of fp32 gradients an update, beside the last backward; no latency of messages"
        )
    lines.append("  data keep up; the same speed at every batch size; no evaluation, start or failures in the hours")
    return lines


def _slower(plan: Plan) -> list[str]:
    """One share of the peak can't be right for every architecture."""
    if plan.rates.measured or plan.shapes.how == "drop":
        return []
    return [
        f"    {plan.recipe.model.name} drops no tokens; such models, convolutional and windowed ones, usually reach a",
        "    smaller share of the peak, and take more hours than told: measure one GPU (--measure, --measured)",
    ]


def _gib(size: float) -> str:
    value = size / GIB
    return f"{value:.2f}" if value < 100 else f"{value:.0f}"
