"""Command plan: what a training needs on machines that are not here."""

from __future__ import annotations

from typing import Annotated

import typer

from .completion import one_of
from .options import JsonOption, OverridesArgument, QuietOption, RecipeArgument, app, print_result

__all__: list[str] = []


@app.command()
def plan(
    recipe: RecipeArgument,
    overrides: OverridesArgument = None,
    gpus: Annotated[int, typer.Option(metavar="N", help="How many GPUs, in all nodes.")] = 8,
    device: Annotated[
        str,
        typer.Option(
            metavar="NAME",
            help="a100-40gb, a100-80gb, h100-80gb, h200-141gb.",
            autocompletion=one_of("a100-40gb", "a100-80gb", "h100-80gb", "h200-141gb"),
        ),
    ] = "h100-80gb",
    per_node: Annotated[int, typer.Option(metavar="N", help="GPUs of a node.")] = 8,
    images: Annotated[int | None, typer.Option(metavar="N", help="Training images; the data's.")] = None,
    classes: Annotated[int | None, typer.Option(metavar="N", help="Classes; the data's.")] = None,
    measured: Annotated[
        float | None, typer.Option(metavar="X", help="Images/s of this recipe on one GPU, as train says.")
    ] = None,
    measured_plain: Annotated[float | None, typer.Option(metavar="X", help="The same with method=plain.")] = None,
    measure: Annotated[bool, typer.Option("--measure", help="Measure it here; needs the data.")] = False,
    utilisation: Annotated[
        float, typer.Option(metavar="SHARE", help="Not measured: share of the peak reached, of any model.")
    ] = 0.4,
    network: Annotated[float, typer.Option(metavar="X", help="Gbit/s of a node to the others.")] = 400.0,
    assume: Annotated[
        list[str] | None,
        typer.Option(metavar="KEY=VALUE", help="Of memory, peak, nvlink, links, reserve, disk; may be repeated."),
    ] = None,
    quiet: QuietOption = False,
    as_json: JsonOption = False,
) -> None:
    """Memory, time and communication on 1 to 512 GPUs, on paper.

    No data, weights or GPU are needed.

    Example: masksub plan deit3/vit_base_400 --gpus 64 --device a100-80gb
    """
    from masksub.app.errors import InputError
    from masksub.app.plan import create_machine, make_plan, plan_text
    from masksub.app.recipe import load_recipe

    settings = load_recipe(recipe, overrides or [])
    machine = create_machine(
        device,
        settings.train.precision,
        per_node=per_node,
        utilisation=utilisation,
        network=network,
        assume=assume or [],
    )
    where = "given"
    if measure:
        if measured is not None or measured_plain is not None:
            raise InputError("--measure does not go with --measured or --measured-plain: give one of them")
        from masksub.app.plan.measured import measure_here

        measured, where = measure_here(settings)
    found = make_plan(
        settings,
        machine,
        gpus=gpus,
        images=images,
        classes=classes,
        measured=measured,
        measured_plain=measured_plain,
        measured_where=where,
    )
    print_result(found.as_dict(), as_json, plan_text(found))
