"""Commands that compare runs: compare, sweep, report, analyze."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from .completion import complete_runs, one_of, several_of
from .options import (
    DryRunOption,
    JobsOption,
    JsonOption,
    OverridesArgument,
    QuietOption,
    RecipeArgument,
    RetryOption,
    RunArgument,
    StatisticsOption,
    VersionsOption,
    app,
    numbers,
    print_result,
    renamed,
    stop_if_none_complete,
)

__all__: list[str] = []

ARMS = ("plain", "plain-equal", "masksub", "direct-mask", "true-label-sub", "self-distill", "dropsub", "pathsub")
"""Those of ``masksub.app.experiment.arms``, which imports torch."""


@app.command()
def compare(
    recipe: RecipeArgument,
    overrides: OverridesArgument = None,
    arms: Annotated[
        str | None,
        typer.Option(
            metavar="A,B,..",
            help="Ways of training, or all; plain,plain-equal,masksub,direct-mask if not given.",
            autocompletion=several_of("all", *ARMS),
        ),
    ] = None,
    seeds: Annotated[int, typer.Option(min=1, metavar="N", help="Paired seeds, counted up from the recipe's.")] = 5,
    jobs: JobsOption = None,
    folder: Annotated[
        Path | None, typer.Option("--out", "-o", metavar="FOLDER", help="Folder of the runs; runs/RECIPE-compare.")
    ] = None,
    statistics: StatisticsOption = "t",
    mixed_versions: VersionsOption = False,
    dry_run: DryRunOption = False,
    retry_failed: RetryOption = False,
    quiet: QuietOption = False,
    as_json: JsonOption = False,
) -> None:
    """What MaskSub gains on a recipe, what it costs, how sure that is.

    Trains arms with the same seeds. Started again, it goes on with what is missing; started twice on one folder, the
    commands share the work.

    Example: masksub compare recipe.yaml --seeds 5 --dry-run
    """
    from masksub.app.experiment.compare import run_comparison
    from masksub.app.progress import Reporter
    from masksub.app.recipe import load_recipe

    settings = load_recipe(recipe, overrides or [])
    reporter = Reporter(quiet=quiet or as_json)
    result, text = run_comparison(
        settings,
        folder or Path("runs") / f"{Path(recipe).stem}-compare",
        arms=arms,
        seeds=seeds,
        jobs=jobs,
        statistics=statistics,
        dry_run=dry_run,
        mixed_versions=mixed_versions,
        retry_failed=retry_failed,
        reporter=reporter,
    )
    print_result(result, as_json, text)
    if not dry_run:
        stop_if_none_complete([run["status"] == "complete" for arm in result["arms"] for run in arm["runs"]], "runs")


@app.command()
def sweep(
    recipe: RecipeArgument,
    overrides: OverridesArgument = None,
    ratio: Annotated[str | None, typer.Option(metavar="A,B,..", help="Mask ratios.")] = None,
    weight: Annotated[str | None, typer.Option(metavar="A,B,..", help="Weights of the sub branch.")] = None,
    stages: Annotated[
        list[str] | None, typer.Option(metavar="T:A,..", help="A ratio that rises, 0:0.25,0.5:0.5; may be repeated.")
    ] = None,
    space: Annotated[
        list[str] | None,
        typer.Option(metavar="KEY=A,B", help="Any other key, or optim.lr=log:1e-4:1e-2; may be repeated."),
    ] = None,
    seeds: Annotated[int, typer.Option(min=1, metavar="N", help="Of each setting, counted up from the recipe's.")] = 3,
    sampler: Annotated[
        str, typer.Option(metavar="NAME", help="grid, tpe or random.", autocompletion=one_of("grid", "tpe", "random"))
    ] = "grid",
    pruner: Annotated[
        str,
        typer.Option(
            metavar="NAME", help="none, median or hyperband.", autocompletion=one_of("none", "median", "hyperband")
        ),
    ] = "none",
    trials: Annotated[int | None, typer.Option(min=1, metavar="N", help="Settings that tpe or random draw.")] = None,
    storage: Annotated[
        str | None, typer.Option(metavar="URL", help="postgresql://...; a file in the folder if not given.")
    ] = None,
    study: Annotated[
        str | None, typer.Option(metavar="NAME", help="In the storage; the folder's name if not given.")
    ] = None,
    jobs: JobsOption = None,
    folder: Annotated[
        Path | None, typer.Option("--out", "-o", metavar="FOLDER", help="Folder of the runs; runs/RECIPE-sweep.")
    ] = None,
    statistics: StatisticsOption = "t",
    dry_run: DryRunOption = False,
    retry_failed: RetryOption = False,
    staged: Annotated[bool, typer.Option("--staged", help="Raise the ratio while accuracy holds.")] = False,
    tolerance: Annotated[float, typer.Option(min=0, metavar="X", help="With --staged: points that may be lost.")] = 0.5,
    quiet: QuietOption = False,
    as_json: JsonOption = False,
) -> None:
    """Try mask ratios and weights, or any keys; say which to use.

    Started again, it goes on; started on several machines with one --storage, they share the work.

    Example: masksub sweep recipe.yaml --ratio 0.25,0.5,0.75 --weight 0.5
    """
    from masksub.app.errors import InputError
    from masksub.app.progress import Reporter
    from masksub.app.recipe import load_recipe

    settings = load_recipe(recipe, overrides or [])
    reporter = Reporter(quiet=quiet or as_json)
    name = Path(recipe).stem
    if staged:
        wrong = {
            "--weight": weight,
            "--stages": stages,
            "--space": space,
            "--trials": trials,
            "--storage": storage,
            "--study": study,
            "--sampler": sampler != "grid",
            "--pruner": pruner != "none",
            "--dry-run": dry_run,
        }
        if given := [option for option, value in wrong.items() if value]:
            raise InputError(f"--staged raises --ratio alone; it does not go with {', '.join(given)}")
        from masksub.app.sweep.staged import RATIOS, run_staged

        result, text = run_staged(
            settings,
            folder or Path("runs") / f"{name}-staged",
            ratios=RATIOS if ratio is None else numbers("--ratio", ratio),
            seeds=seeds,
            tolerance=tolerance,
            jobs=jobs,
            statistics=statistics,
            retry_failed=retry_failed,
            reporter=reporter,
        )
    else:
        from masksub.app.sweep.run import run_sweep
        from masksub.app.sweep.space import space_items

        result, text = run_sweep(
            settings,
            folder or Path("runs") / f"{name}-sweep",
            space=space_items(ratio=ratio, weight=weight, stages=stages or [], space=space or []),
            seeds=seeds,
            sampler=sampler,
            pruner=pruner,
            trials=trials,
            storage=storage,
            study=study,
            jobs=jobs,
            statistics=statistics,
            dry_run=dry_run,
            retry_failed=retry_failed,
            reporter=reporter,
        )
    print_result(result, as_json, text)
    if staged:
        stop_if_none_complete([bool(step["top1"]) for step in result["steps"]], "steps")
    elif not dry_run:
        runs = [[run["status"] for run in trial.get("runs", ())] for trial in result["study"]["trials"]]
        stop_if_none_complete(["complete" in each for each in runs], "settings")


@app.command()
def report(
    paths: Annotated[
        list[Path],
        typer.Argument(metavar="FOLDER", help="Run folders, or folders of them.", autocompletion=complete_runs),
    ],
    language: Annotated[
        str, typer.Option("--lang", metavar="NAME", help="en or ja.", autocompletion=one_of("en", "ja"))
    ] = "en",
    format: Annotated[
        str | None,
        typer.Option(
            metavar="NAME",
            help="html, md (for a pull request) or json; html if not given.",
            autocompletion=one_of("html", "md", "json"),
        ),
    ] = None,
    output: Annotated[
        Path | None, typer.Option("--out", "-o", metavar="FILE", help="report.html; md and json are printed.")
    ] = None,
    output_before: Annotated[Path | None, typer.Option("--output", hidden=True)] = None,
    statistics: StatisticsOption = "t",
    mixed_versions: VersionsOption = False,
    quiet: QuietOption = False,
    as_json: JsonOption = False,
) -> None:
    """One page to decide from: gain, cost, certainty, what to set.

    It opens without a network. --json is short for --format json.

    Example: masksub report runs/vit_micro-compare runs/vit_micro-sweep
    """
    from masksub.app.errors import InputError

    output = renamed("--output", output_before, "--out", output)
    if as_json and format not in (None, "json"):
        raise InputError(f"--json does not go with --format {format}: give one of them")
    format = "json" if as_json else format or "html"

    from masksub.app.evidence.gather import gather
    from masksub.app.progress import Reporter
    from masksub.app.report import find_analyses, write_report

    if output is None and format == "html":
        output = Path("report.html")
    evidence = gather(paths, statistics=statistics, mixed_versions=mixed_versions)
    written = write_report(evidence, language=language, format=format, output=output, analysis=find_analyses(evidence))
    reporter = Reporter(quiet=quiet)
    for problem in evidence.problems:
        reporter.warn(f"{problem.path}: {problem.message}")
    print_result(None, False, str(written))


@app.command()
def analyze(
    run: RunArgument,
    images: Annotated[int, typer.Option(min=1, metavar="N", help="Validation and training images to use.")] = 512,
    ratio: Annotated[str | None, typer.Option(metavar="A,B,..", help="Mask ratios; 0,0.1,...,0.9.")] = None,
    ratio_before: Annotated[str | None, typer.Option("--ratios", hidden=True)] = None,
    checkpoint: Annotated[
        int | None, typer.Option(min=1, metavar="N", help="Of this update; the last one if not given.")
    ] = None,
    unit: Annotated[
        int | None, typer.Option(min=1, metavar="PX", help="Side of what is masked as one; the run's.")
    ] = None,
    seed: Annotated[int, typer.Option(min=0, metavar="N", help="Of the images and masks.")] = 0,
    batch_size: Annotated[int, typer.Option(min=1, metavar="N", help="Most images of one forward.")] = 128,
    folder: Annotated[
        Path | None, typer.Option("--out", "-o", metavar="FOLDER", help="Where JSON and picture go; RUN/analysis.")
    ] = None,
    quiet: QuietOption = False,
    as_json: JsonOption = False,
) -> None:
    """Why a run is stable: gradients, agreement, masks, sharpness.

    Gradients of both branches, how far they agree, accuracy under masks, sharpness of the loss: a JSON file and a
    picture.

    Example: masksub analyze runs/vit_micro-masksub-s0
    """
    from masksub.app.analysis.analyze import RATIOS, text, write_analysis
    from masksub.app.analysis.analyze import analyze as run_analysis
    from masksub.app.progress import Reporter

    ratios = renamed("--ratios", ratio_before, "--ratio", ratio)
    reporter = Reporter(quiet=quiet or as_json)
    result = run_analysis(
        run,
        images=images,
        ratios=RATIOS if ratios is None else numbers("--ratio", ratios),
        seed=seed,
        batch_size=batch_size,
        checkpoint=checkpoint,
        unit=unit,
        reporter=reporter,
    )
    written = write_analysis(result, folder)
    print_result(result, as_json, f"{text(result)}\n" + "\n".join(map(str, written)))
