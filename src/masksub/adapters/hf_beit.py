"""Hugging Face's BEiT and Data2Vec-Vision: a relative position bias for each pair of tokens, gathered here."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from torch import Tensor, nn

from masksub.core.adapter import Grid
from masksub.core.call import Call
from masksub.core.dropping import Choice, TokenDrop
from masksub.core.intercept import Interception, after
from masksub.core.parts import conv_grid, loaded, nested_part

_FAMILIES = {
    "transformers.models.beit.modeling_beit": "Beit",
    "transformers.models.data2vec.modeling_data2vec_vision": "Data2VecVision",
}
"""How the classes of a module begin."""


def _classes(*endings: str) -> tuple[type, ...]:
    """Those classes of all families, as far as they are loaded."""
    return tuple(
        kind
        for module, start in _FAMILIES.items()
        for kind in loaded(module, [f"{start}{ending}" for ending in endings])
    )


class HfBeit(TokenDrop):
    """Tokens dropped from the result of the embeddings; each bias loses the rows and columns of the others.

    A block makes its bias anew, so with gradient checkpointing backward runs inside the branch, as ``TwoBranchStep``
    does it in split mode.
    """

    name = "transformers BEiT"
    inside_blocks = True
    where = "the result of the embeddings; relative position biases gathered with the same indices"

    def _embeddings(self, model: nn.Module) -> tuple[str, Any] | None:
        """Path and module of the embeddings."""
        closed = loaded("transformers.modeling_utils", ["PreTrainedModel"])
        return nested_part(model, _classes("ForImageClassification", "Model"), _classes("Embeddings"), closed)

    def _known(self, model: nn.Module) -> tuple[str, Any]:
        found = self._embeddings(model)
        assert found is not None, "matches() was asked first"
        return found

    def matches(self, model: nn.Module) -> bool:
        """True for classifiers and encoders, and for a user's own module around one; nothing is imported for it."""
        return self._embeddings(model) is not None

    def prefix(self, model: Any) -> int:
        """The class token."""
        return 1

    def grid(self, model: Any, call: Call, unit: int | None) -> Grid:
        """One cell a patch; ``unit`` is a multiple of the patch size in pixels."""
        return conv_grid(call.x, self._known(model)[1].patch_embeddings.projection, unit)

    def interceptions(self, model: Any, choice: Choice) -> Sequence[Interception]:
        """The result of the embeddings, and of each bias: one a block, or one for all, or both, or none."""

        def drop(result: Any) -> Any:
            # Depending on the release the embeddings also return the number of patches in height and width.
            return (choice.drop(result[0]), *result[1:]) if isinstance(result, tuple) else choice.drop(result)

        def gather(original: Callable[..., Tensor]) -> Callable[..., Tensor]:
            def bias(window_size: Any, interpolate_pos_encoding: bool = False, dim_size: int | None = None) -> Tensor:
                # The model resizes the bias to the number of tokens it sees, here too few: pairs go by the whole grid.
                size = dim_size if choice.indices is None else choice.prefix + choice.units
                return choice.pairs(original(window_size, interpolate_pos_encoding, dim_size=size))

            return bias

        kinds = _classes("RelativePositionBias")
        biases = [path for path, module in model.named_modules() if isinstance(module, kinds)]
        return (
            after(self._known(model)[0], drop),
            *(Interception(path, "forward", gather) for path in biases),
        )
