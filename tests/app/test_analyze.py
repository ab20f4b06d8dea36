"""Analysis of a run. If these fail, its figures of gradients, agreement or sharpness are wrong, or a run is harmed."""

from __future__ import annotations

import copy
import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from masksub import MaskSub, TwoBranchStep
from masksub.app.analysis import analyze as module
from masksub.app.analysis.analyze import analyze, text, write_analysis
from masksub.app.analysis.branch_gradients import BranchLosses, compare_gradients, evaluating, gradient, spread
from masksub.app.analysis.masked_accuracy import divergence, masked_accuracy
from masksub.app.analysis.sharpness import moved, sharpness
from masksub.app.errors import InputError
from masksub.app.predict import evaluate_run
from masksub.app.progress import Reporter
from masksub.app.recipe import load_recipe
from masksub.app.train import train
from masksub.core.methods import METHODS
from tests.models import resnet, vit

SMALL = (
    "data.train_images=64", "data.val_images=40", "train.epochs=2", "train.batch_size=16", "train.log_every=2",
    "model.kwargs.embed_dim=24", "model.kwargs.depth=2", "model.kwargs.num_heads=2", "optim.warmup_epochs=0.5",
    "train.tensorboard=false", "train.device=cpu",
)  # fmt: skip
RATIOS = (0.0, 0.5, 0.9)


def trained(path: Path, *overrides: str) -> Path:
    train(load_recipe("digits/vit_micro", (*SMALL, *overrides)), path, reporter=Reporter(quiet=True))
    return path


def analyzed(path: Path, **settings: Any) -> dict[str, Any]:
    return analyze(path, **{"ratios": RATIOS, "reporter": Reporter(quiet=True), **settings})


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run with a moving average of the weights; not to be changed."""
    return trained(tmp_path_factory.mktemp("analyze") / "run", "train.ema_decay=0.9")


@pytest.fixture(scope="module")
def result(run: Path) -> dict[str, Any]:
    return analyzed(run)


def contents(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


class Wide(nn.Module):
    """Linear in its weights, with a dropout and a batch norm that must not be seen."""

    def __init__(self) -> None:
        super().__init__()
        self.norm = nn.BatchNorm2d(1)
        self.drop = nn.Dropout(0.5)
        self.head = nn.Linear(16, 3, bias=False)
        self.idle = nn.Parameter(torch.ones(2))

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.drop(self.norm(x).flatten(1)))  # type: ignore[no-any-return]


def batches(count: int = 3, classes: int = 3, side: int = 4, channels: int = 1) -> list[tuple[Tensor, Tensor]]:
    draws = torch.Generator().manual_seed(0)
    return [
        (torch.randn(6, channels, side, side, generator=draws), torch.randint(classes, (6,), generator=draws))
        for _ in range(count)
    ]


def test_gradients_by_hand_on_a_linear_model() -> None:
    """For logits W v the gradient of the cross-entropy is mean((p - target) v'), with v the (masked) input."""
    model, pairs = Wide().eval(), batches()
    model.norm.requires_grad_(False)
    losses = BranchLosses(model, nn.CrossEntropyLoss(), pairs, seed=0)
    branch, inputs = MaskSub(0.5, unit=2), []
    subs = {"relaxed": losses.sub(branch, "relaxed"), "labels": losses.sub(branch, "labels")}
    hook = model.norm.register_forward_hook(lambda _, args, out: inputs.append(out.flatten(1).detach()))
    found = compare_gradients(losses.main, subs, 0.25, len(pairs), losses.parameters)
    hook.remove()
    expected: dict[str, list[list[float]]] = {"relaxed": [], "labels": []}
    for number, (_, y) in enumerate(pairs):
        whole, *masked = inputs[3 * number : 3 * number + 3]
        assert (masked[0] == 0).sum() == 6 * 8 and torch.equal(*masked), (
            "both targets with the same masks, half blanked"
        )
        labels, p = F.one_hot(y, 3).float(), (whole @ model.head.weight.T).softmax(1).detach()
        main = (p - labels).T @ whole / 6
        for name, target in (("relaxed", p), ("labels", labels)):
            sub = ((masked[0] @ model.head.weight.T).softmax(1).detach() - target).T @ masked[0] / 6
            cosine = float((main * sub).sum() / main.norm() / sub.norm())
            update = 0.75 * main + 0.25 * sub
            expected[name].append([float(sub.norm()), cosine, float((0.25 * sub * update).sum() / update.norm() ** 2)])
    for name, rows in expected.items():
        got = [found[name][key]["each"] for key in ("norm", "cosine_with_main", "share_of_update")]
        assert torch.allclose(torch.tensor(got).T, torch.tensor(rows), atol=1e-5), name
    assert spread([1.0, 2.0, 6.0]) == {"mean": 3, "std": 7**0.5, "low": 1, "high": 6, "each": [1, 2, 6]}


def test_cosine_between_batches_is_the_mean_over_pairs() -> None:
    model, pairs = Wide().eval(), batches()
    losses = BranchLosses(model, nn.CrossEntropyLoss(), pairs, seed=0)
    vectors = [gradient(losses.main(number), losses.parameters) for number in range(3)]
    cosines = [float(F.cosine_similarity(vectors[a], vectors[b], dim=0)) for a, b in ((0, 1), (0, 2), (1, 2))]
    found = compare_gradients(losses.main, {}, 0.0, 3, losses.parameters)["main"]
    assert found["cosine_between_batches"] == pytest.approx(sum(cosines) / 3, abs=1e-5)
    alone = compare_gradients(losses.main, {}, 0.0, 1, losses.parameters)["main"]
    assert alone["cosine_between_batches"] is None and alone["norm"]["std"] is None


@pytest.mark.parametrize("name", ["masksub", "direct-mask", "true-label-sub", "dropsub", "pathsub", "cosub"])
def test_the_update_is_that_of_the_training_step(name: str) -> None:
    """Else the analysis is about another method than the one that was trained."""
    method = METHODS[name]
    model = vit(drop_path_rate=0.0).eval()
    ratio, weight = method.settings(0.5, 0.3)
    branch = method.branch(ratio, p=0.4)
    losses = BranchLosses(model, nn.CrossEntropyLoss(), batches(1, 5, 16, 3), seed=1)
    if branch.mutual:
        main, sub = losses.mutual(branch)
    else:
        main, sub = losses.main, losses.sub(branch, "labels" if method.target == "labels" else "relaxed")
    ours = (1 - weight) * gradient(main(0), losses.parameters) + weight * gradient(sub(0), losses.parameters)
    step = TwoBranchStep(model, nn.CrossEntropyLoss(), sub=branch, weight=weight, **method.step_arguments())
    with losses._seeded(branch, 0) as draws:
        step(*losses.batches[0], generator=draws)
    theirs = torch.cat(
        [torch.zeros_like(p).flatten() if p.grad is None else p.grad.flatten() for p in model.parameters()]
    )
    assert torch.allclose(ours, theirs, atol=1e-6) and theirs.norm() > 0


def test_self_distillation_without_noise_has_no_gradient() -> None:
    """Its minimum is where it stands: what rounding leaves must not be given a direction."""
    losses = BranchLosses(vit().eval(), nn.CrossEntropyLoss(), batches(2, 5, 16, 3), seed=0)
    subs = {"sub": losses.sub(MaskSub(0.0), "relaxed")}
    found = compare_gradients(losses.main, subs, 0.5, 2, losses.parameters)["sub"]
    assert found["norm"]["high"] == 0 and found["cosine_with_main"] is None
    assert sharpness(subs["sub"], 2, losses.parameters)["curvature"] is None


@pytest.mark.parametrize("branch", ["main", "relaxed", "labels"])
def test_curvature_against_the_hessian(branch: str) -> None:
    """The finite difference against the second derivative by autograd, with the relaxed target held."""
    torch.manual_seed(3)
    model = nn.Sequential(nn.Flatten(), nn.Linear(16, 12), nn.Tanh(), nn.Linear(12, 3)).eval()
    losses = BranchLosses(model, nn.CrossEntropyLoss(), batches(), seed=0)
    loss = losses.main if branch == "main" else losses.sub(MaskSub(0.5, unit=2), branch)  # type: ignore[arg-type]
    total = sum(loss(number) for number in range(3)) / 3
    parts = torch.autograd.grad(total, losses.parameters, create_graph=True)
    g = torch.cat([part.flatten() for part in parts])
    product = torch.autograd.grad(g.dot(g.detach()), losses.parameters)
    g = g.detach()
    expected = float(torch.cat([part.flatten() for part in product]).dot(g) / g.dot(g))
    before = copy.deepcopy(model.state_dict())
    found = sharpness(loss, 3, losses.parameters)
    assert found["curvature"] == pytest.approx(expected, rel=0.02)
    assert found["gradient_norm"] == pytest.approx(float(g.norm()), rel=1e-5)
    middle = len(found["losses"]) // 2
    assert found["distances"][middle] == 0 and found["losses"][middle] == pytest.approx(float(total.detach()), rel=1e-5)
    distance = (found["distances"][middle + 1]) * found["weights_norm"]
    down = -distance * found["gradient_norm"] + distance**2 / 2 * expected  # Taylor, along w - t g / |g|
    assert found["losses"][middle + 1] - found["losses"][middle] == pytest.approx(down, rel=0.05)
    assert all(torch.equal(value, before[key]) for key, value in model.state_dict().items()), "bit for bit"


def test_moved_weights_come_back_after_an_error() -> None:
    weights = [torch.randn(3, 2), torch.randn(4)]
    before = [w.clone() for w in weights]
    direction = torch.randn(10)
    with pytest.raises(RuntimeError, match="inside"), moved(weights, direction, 0.1):
        assert torch.allclose(torch.cat([(w - b).flatten() for w, b in zip(weights, before)]), 0.1 * direction)
        raise RuntimeError("inside")
    assert all(torch.equal(w, b) for w, b in zip(weights, before))


def test_modes_and_buffers_are_left_alone() -> None:
    """A batch norm that was frozen in eval mode must not be training afterwards, and none may see masked images."""
    model = resnet()
    model.bn1.eval()
    modes = {name: each.training for name, each in model.named_modules()}
    before = copy.deepcopy(model.state_dict())
    pairs = batches(2, 5, 32, 3)
    with evaluating(model):
        assert not any(each.training for each in model.modules())
        losses = BranchLosses(model, nn.CrossEntropyLoss(), pairs, seed=0)
        subs = {"labels": losses.sub(MaskSub(0.5, unit=8), "labels")}
        compare_gradients(losses.main, subs, 0.5, 2, losses.parameters)
        sharpness(subs["labels"], 2, losses.parameters)
        points = masked_accuracy(model, pairs, (0.0, 0.5), unit=8, kind="softmax", seed=0)
    assert points[0]["agreement_percent"]["mean"] == 100 and points[1]["kl"]["mean"] > 0
    assert {name: each.training for name, each in model.named_modules()} == modes
    assert all(torch.equal(value, before[key]) for key, value in model.state_dict().items())
    assert all(p.grad is None for p in model.parameters())


def test_divergence_by_its_definition() -> None:
    main, sub = torch.randn(7, 4), torch.randn(7, 4)
    p, q = main.double().softmax(1), sub.double().softmax(1)
    assert divergence(main, sub, "softmax") == pytest.approx(float((p * (p / q).log()).sum(1).mean()))
    p, q = main.double().sigmoid(), sub.double().sigmoid()
    both = p * (p / q).log() + (1 - p) * ((1 - p) / (1 - q)).log()
    assert divergence(main, sub, "sigmoid") == pytest.approx(float(both.mean()))
    assert divergence(main, main, "softmax") == divergence(main, main, "sigmoid") == 0


def test_ratio_0_is_masksub_eval(run: Path, result: dict[str, Any]) -> None:
    """Also that the moving average is what is evaluated, since this run has one."""
    evaluated, point = evaluate_run(run), result["evaluation"]["points"][0]
    assert result["evaluation"]["weights"] == "ema.safetensors"
    assert point["top1_percent"]["each"] == [evaluated["top1"]] and point["loss"] == evaluated["loss"]
    assert point["calibration_error_percent"] == evaluated["calibration_error"]
    assert point["agreement_percent"]["mean"] == 100 and point["kl"]["mean"] == 0


def test_a_result_can_be_traced_and_repeated(run: Path, result: dict[str, Any]) -> None:
    assert result["run"] == str(run) and result["method"] == "masksub" and result["run_seed"] == 0
    assert result["checkpoint"] == {
        "path": str(run / "checkpoints" / "update-00000008"), "update": 8, "epoch": 2.0, "status": "complete",
    }  # fmt: skip
    assert [point["ratio"] for point in result["evaluation"]["points"]] == list(RATIOS)
    assert [each["ratio"] for each in result["gradients"]["at_ratio"]] == [0.5, 0.9]
    own = result["gradients"]["run"]
    assert (own["ratio"], own["weight"]) == (0.5, 0.5)
    assert own["sub"] == result["gradients"]["at_ratio"][0]["relaxed"], "the run's own branch is the same thing here"
    assert own["main"] == result["gradients"]["main"]
    assert result["gradients"]["images"] == 64 and result["gradients"]["images_per_batch"] == 16
    assert any("512 validation" in note and "40" in note for note in result["notes"])
    assert any("512 training" in note and "64" in note for note in result["notes"])
    assert analyzed(run) == result, "the same seed"
    other = analyzed(run, seed=1)
    assert other["evaluation"]["points"][1] != result["evaluation"]["points"][1]
    assert other["evaluation"]["points"][0] == result["evaluation"]["points"][0]


def test_files_beside_the_run_and_nothing_else(run: Path, result: dict[str, Any], tmp_path: Path) -> None:
    mine = tmp_path / "run"
    shutil.copytree(run, mine)
    before = contents(mine)
    figures, picture = write_analysis({**result, "run": str(mine)})
    assert (figures, picture) == (mine / "analysis/update-000008.json", mine / "analysis/update-000008.png")
    after = contents(mine)
    assert after.keys() - before.keys() == {"analysis/update-000008.json", "analysis/update-000008.png"}
    assert {name: after[name] for name in before} == before
    assert json.loads(figures.read_text()) == {**result, "run": str(mine)}
    assert picture.read_bytes()[:4] == b"\x89PNG" and len(picture.read_bytes()) > 20_000
    elsewhere = write_analysis(result, tmp_path / "other" / "place")
    assert all(path.is_file() and path.parent == tmp_path / "other" / "place" for path in elsewhere)


def test_text_has_the_figures(result: dict[str, Any]) -> None:
    told = text(result)
    point = result["evaluation"]["points"][1]
    assert f"{point['top1_percent']['mean']:.2f}" in told and f"{point['kl']['mean']:.3f}" in told
    assert f"{result['gradients']['main']['norm']['mean']:.3g}" in told
    assert f"{result['sharpness']['labels']['curvature']:.4g}" in told
    assert "40 of 40 validation images" in told and "all of them are used" in told


def test_a_run_in_training_and_an_earlier_checkpoint(run: Path, tmp_path: Path) -> None:
    mine = tmp_path / "run"
    shutil.copytree(run, mine)
    (mine / "summary.json").unlink()
    found = analyzed(mine, checkpoint=4, ratios=(0.5,), images=16)
    assert found["checkpoint"]["status"] == "incomplete" and found["checkpoint"]["epoch"] == 1
    assert found["checkpoint"]["path"].endswith("update-00000004")
    assert found["evaluation"]["images"] == 16 and found["gradients"]["images_per_batch"] == 4
    assert [p["ratio"] for p in found["evaluation"]["points"]] == [0, 0.5], "0 is always there"
    (mine / "checkpoints/update-00000008/model.safetensors").write_bytes(b"cut")
    assert analyzed(mine, ratios=(), images=16)["checkpoint"]["update"] == 4, "the last whole one"


def test_a_checkpoint_that_training_removes_meanwhile(run: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Training keeps the last few: the one that was found may be gone when it is read."""
    from masksub.app.analysis import inputs as analyze_inputs
    from masksub.app.checkpoint import Checkpoint

    real, gone = analyze_inputs.latest, [Checkpoint(run / "checkpoints/update-00000002", 2)]
    monkeypatch.setattr(analyze_inputs, "latest", lambda *a: gone.pop() if gone else real(*a))
    assert analyzed(run, ratios=(), images=16)["checkpoint"]["update"] == 8 and not gone


@pytest.mark.parametrize("method", ["plain", "cosub", "self-distill"])
def test_other_methods(method: str, tmp_path: Path) -> None:
    """Each with mixup and BCE: soft labels, and another relaxed target."""
    path = trained(
        tmp_path / "run", f"method={method}", "augment.mixup=0.5", "loss.name=bce", "train.epochs=1", "sub.p=0.3"
    )
    found = analyzed(path, ratios=(0, 0.5))
    own = found["gradients"]["run"]
    assert own["weight"] == (0 if method == "plain" else 0.5) and (own["sub"] is None) == (method == "plain")
    assert found["sharpness"]["ratio"] == 0.5 and found["gradients"]["at_ratio"][0]["relaxed"]["norm"]["low"] > 0
    text(found)
    write_analysis(found)


def test_a_convnet_is_masked_in_pixels(tmp_path: Path) -> None:
    path = tmp_path / "run"
    base = load_recipe("digits/vit_micro", (*SMALL, "method=plain", "train.epochs=1"))
    recipe = base.model_copy(update={"model": base.model.model_copy(update={"name": "test_resnet", "kwargs": {}})})
    train(recipe, path, reporter=Reporter(quiet=True))
    with pytest.raises(InputError, match=r"test_resnet at 8 px .* masks nothing.*unit: side in pixels"):
        analyzed(path)
    found = analyzed(path, unit=2)
    assert found["evaluation"]["points"][2]["kl"]["mean"] > 0 and found["settings"]["unit"] == 2


def test_wrong_input(run: Path, tmp_path: Path) -> None:
    before = contents(run)
    with pytest.raises(InputError, match=r"ratios: 1.0 .*\n.*ratios: -0.1 .*\nimages = 0.*\nbatch_size = 0") as error:
        analyzed(run, ratios=(0.5, 1.0, -0.1), images=0, batch_size=0)
    assert "0 <= ratio < 1" in str(error.value)
    with pytest.raises(InputError, match=r"ratios: nan"):
        analyzed(run, ratios=(float("nan"),))
    with pytest.raises(InputError, match="no such run folder"):
        analyzed(tmp_path / "nothing")
    with pytest.raises(InputError, match="not a run folder"):
        analyzed(tmp_path)
    with pytest.raises(InputError, match=r"checkpoint = 5: .* there are: 4, 8"):
        analyzed(run, checkpoint=5)
    mine = tmp_path / "run"
    shutil.copytree(run, mine)
    (mine / "checkpoints/update-00000004/model.safetensors").write_bytes(b"cut")
    with pytest.raises(InputError, match=r"checkpoint = 4: .*can't be used: .*cut short"):
        analyzed(mine, checkpoint=4)
    shutil.rmtree(mine / "checkpoints")
    with pytest.raises(InputError, match="has no checkpoint to use: none has been written"):
        analyzed(mine)
    (mine / "classes.json").write_text(json.dumps([str(n) for n in range(9)] + ["x"]))
    shutil.copytree(run / "checkpoints", mine / "checkpoints")
    with pytest.raises(InputError, match="other classes"):
        analyzed(mine)
    assert contents(run) == before


def test_numbers_that_are_not_finite_become_none() -> None:
    """JSON has no such numbers, and a page that reads the file would fail."""
    assert module._finite({"a": [float("nan"), 1.5, (float("inf"), 2)], "b": "x"}) == {
        "a": [None, 1.5, [None, 2]],
        "b": "x",
    }
