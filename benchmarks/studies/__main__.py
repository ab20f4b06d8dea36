"""Collect the runs of a study into one file beside its recipe, and make docs/results.md from these files.

python -m benchmarks.studies digits studies/digits      # FOLDER/compare and, if it is there, FOLDER/sweep
python -m benchmarks.studies --render
"""

from __future__ import annotations

import argparse
import datetime
import json
import re
from pathlib import Path
from typing import Any

import pydantic

from masksub.app.evidence.gather import gather
from masksub.app.evidence.model import Evidence
from masksub.app.report import write_report
from masksub.app.runs import RunFolder

HERE = Path(__file__).resolve().parent
PAGE = HERE.parents[1] / "docs" / "results.md"
ORDER = ("digits", "cifar10_patch8")
"""Studies in the order of the page; each has NAME.yaml (recipe, commands), NAME.md (a note) and NAME.json."""

HEAD = """# Results

Made by `python -m benchmarks.studies --render` from the files in `benchmarks/studies`: for each study the recipe and
its commands, the result as JSON, and a note. Every figure is a mean over run folders, which are listed under it.
Nothing is left out because of what it shows. Figures of the paper are not on this page.
"""


def collect(name: str, folder: Path) -> Path:
    """Write NAME.json from the run folders of a study."""
    parts = {part: gather([folder / part]) for part in ("compare", "sweep") if (folder / part).is_dir()}
    result: dict[str, Any] = {
        "study": name,
        "collected": datetime.date.today().isoformat(),
        "hours": {part: round(_seconds(evidence) / 3600, 2) for part, evidence in parts.items()},
        **{part: _rounded(evidence.as_dict()) for part, evidence in parts.items()},
    }
    path = HERE / f"{name}.json"
    path.write_text(json.dumps(result, ensure_ascii=False, separators=(",", ":")) + "\n", encoding="utf-8")
    return path


def _seconds(evidence: Evidence) -> float:
    """Time of all its runs together, training and evaluation."""
    points = evidence.sweep.points if evidence.sweep else ()
    paths = {run.path for each in (*evidence.arms, *points) for run in each.runs}
    return sum((RunFolder(path).summary() or {"seconds": 0.0})["seconds"] for path in paths)


def _rounded(value: Any) -> Any:
    """Six digits are enough, and readable."""
    if isinstance(value, float):
        return float(f"{value:.6g}")
    if isinstance(value, dict):
        return {key: _rounded(each) for key, each in value.items()}
    return [_rounded(each) for each in value] if isinstance(value, (list, tuple)) else value


def render() -> str:
    """The page, from the committed files alone."""
    return "\n".join([HEAD, *(_study(name) for name in ORDER if (HERE / f"{name}.json").exists())]).rstrip() + "\n"


def _study(name: str) -> str:
    result = json.loads((HERE / f"{name}.json").read_text(encoding="utf-8"))
    header = re.match(r"(?:#.*\n)+", (HERE / f"{name}.yaml").read_text(encoding="utf-8"))
    assert header is not None
    lines = [line.removeprefix("#").removeprefix(" ") for line in header[0].splitlines()]
    commands = [found[1] for line in lines if (found := re.search(r"(masksub .*|python -m .*)$", line))]
    day = datetime.date.fromisoformat(result["collected"])
    parts = {part: read_evidence(result[part]) for part in ("compare", "sweep") if part in result}
    body = [f"## {lines[0].removeprefix('Study: ').rstrip('.')}", ""]
    body += ["<!-- not run: takes hours -->", "```bash", *commands, "```", ""]
    for part, evidence in parts.items():
        body.append(f"- {part}: {result['hours'][part]:.2f} hours of runs, one after the other; {_machine(evidence)}.")
    body += ["", (HERE / f"{name}.md").read_text(encoding="utf-8").strip(), ""]
    for part, evidence in parts.items():
        said = str(write_report(evidence, format="md", day=day))
        said = re.sub(r"\A# .*\n", f"# {name}: {part}\n", said)
        body.append(re.sub(r"(?m)^#", "###", said))
    return "\n".join(body)


def _machine(evidence: Evidence) -> str:
    first = evidence.environments[0]
    versions = first["versions"]
    where = first["gpu"] or f"{first['processor']}, {first['threads']} of {first['cores']} cores for each run"
    return f"{where}, torch {versions['torch']}, timm {versions['timm']}"


def read_evidence(values: dict[str, Any]) -> Evidence:
    """Evidence from its JSON."""
    return pydantic.TypeAdapter(Evidence).validate_json(json.dumps(values))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("study", nargs="?", choices=ORDER)
    parser.add_argument("folder", nargs="?", type=Path)
    parser.add_argument("--render", action="store_true", help="make docs/results.md")
    asked = parser.parse_args()
    if asked.study:
        if asked.folder is None or not (asked.folder / "compare").is_dir():
            parser.error(f"{asked.folder} has no folder compare with the runs of the study")
        print(collect(asked.study, asked.folder))
    if asked.render:
        PAGE.write_text(render(), encoding="utf-8")
        print(PAGE)


if __name__ == "__main__":
    main()
