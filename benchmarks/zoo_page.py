"""``docs/models.md`` from the results of the zoo."""

from __future__ import annotations

from collections import Counter
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
PAGE = ROOT / "docs" / "models.md"
RESULTS = ROOT / "benchmarks" / "results" / "zoo.json"

HEAD = """# Every model

For your own model: `masksub inspect NAME`, or `masksub.inspect(model, example)`. A class that is not here is supported
by [one call of `masksub.register`](your-own-model.md).

| how | what happens in the sub branch | a step costs |
|---|---|---|
| drop | tokens of masked units are removed; those that stay keep their positions | about 1.5 x at ratio 0.5 |
| fill | cells of the embedding in masked squares of 32 x 32 px take a constant, or a mask token | 2 x |
| replace | masked tokens of a text take the mask token's id | 2 x |
| pixels | squares of 32 x 32 px of the input take one value | 2 x |

"Step" is the operations of a two-branch step over those of a plain one, from shapes, at ratio 0.5 and this small input:
what lies before the place of dropping (stems, patch embeddings) weighs more here than in a large model. "Paths" are the
residual branches that PathSub drops, and how many of them it runs on a part of the batch only. "Contract" is
`tests/contract.py`: ratio 0 is bit-equal, weights and modules are untouched, masked units have no influence, split and
joint mode give the same gradient, and the other branches leave the model as it was.
Its last two checks (a model that was masked is freed; a ratio that starts at 0 beside PathSub) are younger than most
rows here; they are run on the small cases of the tests.

Texts: tokens are chosen among those that are neither special nor padding, each row keeps the same share of its own
length, and those that stay keep their positions, so that the sub branch is really shorter. Protected are the first and
last token of each sentence, and every special id that the model's configuration names; for others call
`masksub.set_special_tokens(model, tokenizer.all_special_ids, mask=tokenizer.mask_token_id)`.

This page is made from [`benchmarks/results/zoo.json`](../benchmarks/results/zoo.json) by
`python -m benchmarks.zoo --render`, the results by `python -m benchmarks.zoo`.

Auxiliary heads (GoogLeNet, Inception v3) get no loss from a two-branch step, and so no gradient: build the model with
`aux_logits=False` under DistributedDataParallel.
"""


def render(results: dict[str, Any]) -> str:
    """The page."""
    rows, versions = results["rows"], results["versions"]
    parts = [HEAD, "Measured with " + ", ".join(f"{k} {v}" for k, v in versions.items()) + ".\n"]
    for prefix, title, what in (
        ("timm", "timm", "rows, one a module and a second one for two of them,"),
        ("torchvision", "torchvision", "classifiers"),
        ("hf", "transformers", "families and variants"),
    ):
        mine = {name.partition(":")[2]: row for name, row in rows.items() if name.startswith(f"{prefix}:")}
        parts.append(f"## {title}\n\n{_summary(mine, what)}\n\n{_table(mine, prefix)}")
    return "\n".join(parts)


def _summary(rows: dict[str, Any], what: str) -> str:
    good = sum(not _trouble(row) for row in rows.values())
    ways = Counter(row.get("how", "not built") for row in rows.values())
    told = ", ".join(f"{count} {how}" for how, count in ways.most_common())
    return f"{good} of {len(rows)} {what} pass the contract; {told}."


def _trouble(row: dict[str, Any]) -> str:
    if "problem" in row:
        return str(row["problem"])
    return "; ".join(f"{name.replace('_', ' ')}: {text}" for name, text in row["broken"].items())


def _table(rows: dict[str, Any], prefix: str) -> str:
    head = {"timm": "module | smallest model", "torchvision": "model | class", "hf": "model | class"}[prefix]
    lines = [
        f"| {head} | input | how | units + prefix | step | paths | contract | why |",
        "|---|---|---|---|---|---|---|---|---|",
    ]
    for name, row in sorted(rows.items()):
        if "problem" in row:
            lines.append(f"| {name} | | | | | | | {_cell(row['problem'])} | |")
            continue
        size = " x ".join(map(str, row["input"]))
        units = f"{row['units']} + {row['prefix']}"
        step = "" if row["flop_ratio"] is None else f"{row['flop_ratio']:.2f}"
        paths = f"{row['drop_paths']}, {row['drop_paths_on_part']}" if row["drop_paths"] else ""
        trouble = _cell(_trouble(row)) or "ok"
        cells = (name, row["model"], size, row["how"], units, step, paths, trouble, _cell(row["why"]))
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines) + "\n"


def _cell(text: str) -> str:
    return text.replace("|", "\\|").replace("\n", " ")
