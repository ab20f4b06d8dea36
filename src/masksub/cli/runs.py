"""Commands about one model or one run: demo, train, eval, predict, inspect."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from .completion import one_of
from .evaluation import told, told_mean
from .options import (
    JsonOption,
    OverridesArgument,
    QuietOption,
    RecipeOrRunArgument,
    RunArgument,
    RunsArgument,
    app,
    print_result,
)

if TYPE_CHECKING:
    from masksub.app.settings import Recipe

__all__: list[str] = []


@app.command()
def demo(
    folder: Annotated[
        Path, typer.Option("--out", "-o", metavar="FOLDER", help="Where the runs and the picture go.")
    ] = Path("demo"),
    seeds: Annotated[int, typer.Option(min=1, max=20, metavar="N", help="Paired seeds of each arm.")] = 3,
    quiet: QuietOption = False,
    as_json: JsonOption = False,
) -> None:
    """Four ways of training on embedded digits, in a few minutes.

    It needs no GPU and no network, and says what MaskSub gained there and what it cost.

    Example: masksub demo
    """
    from masksub.app.demo import run_demo
    from masksub.app.progress import Reporter

    text = run_demo(folder, seeds=seeds, reporter=Reporter(quiet=quiet or as_json))
    print_result(json.loads((folder / "comparison.json").read_text(encoding="utf-8")), as_json, text)


@app.command()
def train(
    recipe: RecipeOrRunArgument,
    overrides: OverridesArgument = None,
    run: Annotated[
        Path | None,
        typer.Option("--out", "-o", metavar="FOLDER", help="The run folder; runs/RECIPE-METHOD-sSEED if not given."),
    ] = None,
    resume: Annotated[bool, typer.Option("--resume", help="Go on from the last checkpoint.")] = False,
    approximate: Annotated[
        bool, typer.Option("--approximate", help="With --resume: also with other processes, precision or paths.")
    ] = False,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Start anew; the old folder is set aside.")] = False,
    quiet: QuietOption = False,
    as_json: JsonOption = False,
) -> None:
    """Train one model by a recipe.

    Example: masksub train digits/vit_micro optim.lr=1e-3 sub.ratio=0.6
    """
    from masksub.app.run_check import check_new_run

    if run is not None:  # before what takes seconds
        check_new_run(run, resume=resume, overwrite=overwrite)
    from masksub.app.devices import refuse_copies
    from masksub.app.progress import Reporter
    from masksub.app.train import train as run_training

    refuse_copies()
    settings, folder = _recipe_and_folder(recipe, overrides or [], run, resume=resume)
    reporter = Reporter(quiet=quiet or as_json)
    summary = run_training(
        settings, folder, resume=resume, approximate=approximate, overwrite=overwrite, reporter=reporter
    )
    if reporter.silent:  # one process speaks for all
        return
    final = summary["final"]
    print_result(
        summary,
        as_json,
        f"{folder}: top-1 {final['top1']:.2f} %, loss {final['loss']:.4f}, calibration error "
        f"{final['calibration_error']:.2f} % on {final['images']} images; {summary['images_per_second']:.0f} images/s, "
        f"{summary['data_wait_share']:.1%} of the time waiting for data",
    )


@app.command("eval")
def evaluate(
    runs: RunsArgument,
    data: Annotated[
        Path | None,
        typer.Option(metavar="PATH", help="Folder or archive of class folders; the run's own if not given."),
    ] = None,
    weights: Annotated[
        Path | None, typer.Option(metavar="FILE", help="Weights in place of the last checkpoint's.")
    ] = None,
    batch_size: Annotated[int, typer.Option(min=1, metavar="N", help="Images of one forward.")] = 128,
    quiet: QuietOption = False,
    as_json: JsonOption = False,
) -> None:
    """Accuracy, loss and calibration error of a trained model.

    Nothing is masked. Of several runs, as the seeds of an arm, also mean +- standard deviation.

    Example: masksub eval runs/vit_micro-masksub-s0
    """
    from masksub.app.errors import InputError
    from masksub.app.run_check import check_runs

    check_runs(*runs)
    if weights is not None and len(runs) > 1:
        raise InputError(f"--weights {weights}: belongs to one run, and {len(runs)} are given")
    from masksub.app.predict import evaluate_run

    results = [evaluate_run(run, data=data, weights=weights, batch_size=batch_size) for run in runs]
    if len(runs) == 1:
        print_result(results[0], as_json, told(results[0]))
        return
    lines = [f"{run}: {told(result)}" for run, result in zip(runs, results, strict=True)]
    named = [{"run": str(run), **result} for run, result in zip(runs, results, strict=True)]
    print_result(named, as_json, "\n".join([*lines, *told_mean(results)]))


@app.command()
def predict(
    run: RunArgument,
    images: Annotated[list[Path], typer.Argument(metavar="IMAGE", help="Image files.")],
    top: Annotated[int, typer.Option(min=1, metavar="N", help="How many labels for each image.")] = 3,
    quiet: QuietOption = False,
    as_json: JsonOption = False,
) -> None:
    """Labels of images with their probabilities.

    Example: masksub predict runs/vit_tiny-masksub-s0 cat.jpg dog.png
    """
    from masksub.app.run_check import check_runs

    check_runs(run, files=tuple(images))
    from masksub.app.predict import predict_images

    results = predict_images(run, images, top=top)
    lines = [
        f"{r['image']}: " + ", ".join(f"{label['label']} {label['probability']:.3f}" for label in r["labels"])
        for r in results
    ]
    print_result(results, as_json, "\n".join(lines))


@app.command()
def inspect(
    model: Annotated[
        str, typer.Argument(metavar="MODEL", help="A timm model, torchvision:NAME, hf:ARCHITECTURE or hf:FOLDER.")
    ],
    image_size: Annotated[int | None, typer.Option(min=1, metavar="PX", help="Side of an image; the model's.")] = None,
    ratio: Annotated[float, typer.Option(metavar="SHARE", help="Share of units that is masked.")] = 0.5,
    variant: Annotated[
        str,
        typer.Option(
            metavar="NAME",
            help="masksub, dropsub, pathsub or cosub; joined by + for several.",
            autocompletion=one_of("masksub", "dropsub", "pathsub", "cosub"),
        ),
    ] = "masksub",
    p: Annotated[float, typer.Option(metavar="RATE", help="Rate of dropsub, pathsub and cosub.")] = 0.1,
    unit: Annotated[int | None, typer.Option(metavar="PX", help="Side of what is masked as one.")] = None,
    batch_size: Annotated[int, typer.Option(min=2, metavar="N", help="Inputs of a measured step.")] = 8,
    measure: Annotated[bool, typer.Option(help="Measure time and memory on this machine.")] = True,
    quiet: QuietOption = False,
    as_json: JsonOption = False,
) -> None:
    """How a model will be masked, and what a two-branch step costs.

    The weights are random and nothing is downloaded.

    Example: masksub inspect vit_small_patch16_224 --variant masksub+pathsub
    """
    from masksub.app.inspect import inspect_named

    found = inspect_named(
        model,
        variant=variant,
        ratio=ratio,
        p=p,
        unit=unit,
        image_size=image_size,
        batch_size=batch_size,
        measure=measure,
    )
    print_result(found.as_dict(), as_json, str(found))


def _recipe_and_folder(source: str, overrides: list[str], run: Path | None, *, resume: bool) -> tuple[Recipe, Path]:
    """The recipe and the run folder; a run folder in place of a recipe stands for both."""
    from masksub.app.errors import InputError
    from masksub.app.recipe import load_recipe
    from masksub.app.runs import RunFolder

    if Path(source).is_dir():
        if not resume:
            raise InputError(f"{source} is a folder: give a recipe, or --resume to go on with a run")
        folder = RunFolder.existing(source)
        return load_recipe(folder.path / "recipe.yaml", overrides), run or folder.path
    settings = load_recipe(source, overrides)
    return settings, run or Path("runs") / f"{Path(source).stem}-{settings.method}-s{settings.seed}"
