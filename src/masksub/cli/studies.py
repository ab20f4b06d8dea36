"""Commands that compare runs: compare, sweep, report, analyze."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from .options import JsonOption, OverridesArgument, QuietOption, RunArgument, app, numbers, print_result

__all__: list[str] = []


@app.command()
def compare(
    recipe: Annotated[str, typer.Argument(help="A YAML file or a packaged recipe's name.")],
    overrides: OverridesArgument = None,
    arms: Annotated[
        str | None,
        typer.Option(help="Ways of training, with commas, or all; plain, plain-equal, masksub, direct-mask."),
    ] = None,
    seeds: Annotated[int, typer.Option(min=1, help="Paired seeds, counted up from the recipe's.")] = 5,
    jobs: Annotated[int | None, typer.Option(min=1, help="Processes at a time; one a GPU, or up to 4.")] = None,
    folder: Annotated[Path | None, typer.Option("--out", help="Folder of the runs; runs/RECIPE-compare.")] = None,
    statistics: Annotated[str, typer.Option(help="Interval: t or bootstrap.")] = "t",
    mixed_versions: Annotated[
        bool, typer.Option("--mixed-versions", help="Use runs of other versions, too; otherwise named and left out.")
    ] = False,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Plan, FLOPs and time; writes nothing.")] = False,
    retry_failed: Annotated[
        bool, typer.Option("--retry-failed", help="Train diverged runs again, as after an update.")
    ] = False,
    quiet: QuietOption = False,
    as_json: JsonOption = False,
) -> None:
    """Train arms with the same seeds and say what MaskSub gains, what it costs, and how sure that is.

    Started again, it goes on with what is missing; started twice on one folder, the commands share the work.

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


@app.command()
def sweep(
    recipe: Annotated[str, typer.Argument(help="A YAML file or a packaged recipe's name.")],
    overrides: OverridesArgument = None,
    ratio: Annotated[str | None, typer.Option(help="Mask ratios: 0.25,0.5,0.75.")] = None,
    weight: Annotated[str | None, typer.Option(help="Weights of the sub branch: 0.25,0.5,0.75.")] = None,
    stages: Annotated[
        list[str] | None, typer.Option(help="A ratio that rises: 0:0.25,0.5:0.5; may be repeated.")
    ] = None,
    space: Annotated[
        list[str] | None, typer.Option(help="Any other key: optim.lr=log:1e-4:1e-2 or KEY=A,B; may be repeated.")
    ] = None,
    seeds: Annotated[int, typer.Option(min=1, help="Seeds of each setting, counted up from the recipe's.")] = 3,
    sampler: Annotated[str, typer.Option(help="grid, tpe or random.")] = "grid",
    pruner: Annotated[str, typer.Option(help="none, median or hyperband.")] = "none",
    trials: Annotated[int | None, typer.Option(min=1, help="Settings that tpe or random draw.")] = None,
    storage: Annotated[str | None, typer.Option(help="postgresql://...; a file in the folder if not given.")] = None,
    study: Annotated[str | None, typer.Option(help="Name in the storage; the folder's if not given.")] = None,
    jobs: Annotated[int | None, typer.Option(min=1, help="Processes at a time; one a GPU, or up to 4.")] = None,
    folder: Annotated[Path | None, typer.Option("--out", help="Folder of the runs; runs/RECIPE-sweep.")] = None,
    statistics: Annotated[str, typer.Option(help="Interval: t or bootstrap.")] = "t",
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Plan, FLOPs and time; writes nothing.")] = False,
    staged: Annotated[
        bool, typer.Option("--staged", help="Raise the ratio step by step while accuracy holds.")
    ] = False,
    tolerance: Annotated[float, typer.Option(min=0, help="With --staged: points that may be lost.")] = 0.5,
    quiet: QuietOption = False,
    as_json: JsonOption = False,
) -> None:
    """Try mask ratios and weights, or any recipe keys, and say which to use.

    Started again, it goes on; started on several machines with one --storage, they share the work.

    Example: masksub sweep recipe.yaml --ratio 0.25,0.5,0.75 --weight 0.25,0.5,0.75
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
            reporter=reporter,
        )
    print_result(result, as_json, text)


@app.command()
def report(
    paths: Annotated[list[Path], typer.Argument(help="Run folders, or folders of them.")],
    language: Annotated[str, typer.Option("--lang", help="en or ja.")] = "en",
    format: Annotated[str, typer.Option(help="html, md (for a pull request) or json.")] = "html",
    output: Annotated[Path | None, typer.Option("-o", "--output", help="report.html; md and json are printed.")] = None,
    statistics: Annotated[str, typer.Option(help="Interval: t or bootstrap.")] = "t",
    mixed_versions: Annotated[
        bool, typer.Option("--mixed-versions", help="Use runs of other versions, too; otherwise named and left out.")
    ] = False,
    quiet: QuietOption = False,
) -> None:
    """One page to decide from: gain, cost, certainty, what to set. It opens without a network.

    Example: masksub report runs/vit_micro-compare runs/vit_micro-sweep -o report.html
    """
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
    typer.echo(written)


@app.command()
def analyze(
    run: RunArgument,
    images: Annotated[int, typer.Option(min=1, help="Validation and training images to use.")] = 512,
    ratios: Annotated[str | None, typer.Option(help="Mask ratios, with commas; 0,0.1,...,0.9.")] = None,
    checkpoint: Annotated[int | None, typer.Option(min=1, help="Of this update; the last one if not given.")] = None,
    unit: Annotated[int | None, typer.Option(min=1, help="Side in pixels of what is masked as one; the run's.")] = None,
    seed: Annotated[int, typer.Option(min=0, help="Of the images and masks.")] = 0,
    batch_size: Annotated[int, typer.Option(min=1, help="Most images of one forward.")] = 128,
    folder: Annotated[Path | None, typer.Option("--out", help="Where JSON and picture go; RUN/analysis.")] = None,
    quiet: QuietOption = False,
    as_json: JsonOption = False,
) -> None:
    """Why a run is stable: gradients of both branches, agreement, accuracy under masks, sharpness of the loss.

    Example: masksub analyze runs/vit_micro-masksub-s0
    """
    from masksub.app.analysis.analyze import RATIOS, text, write_analysis
    from masksub.app.analysis.analyze import analyze as run_analysis
    from masksub.app.progress import Reporter

    reporter = Reporter(quiet=quiet or as_json)
    result = run_analysis(
        run,
        images=images,
        ratios=RATIOS if ratios is None else numbers("--ratios", ratios),
        seed=seed,
        batch_size=batch_size,
        checkpoint=checkpoint,
        unit=unit,
        reporter=reporter,
    )
    written = write_analysis(result, folder)
    print_result(result, as_json, f"{text(result)}\n" + "\n".join(map(str, written)))
