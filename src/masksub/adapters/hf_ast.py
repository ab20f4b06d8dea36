"""Hugging Face's audio spectrogram transformer (AST): patches of a spectrogram, which overlap.

Shape letters: B batch, T frames, F mel bins, L patches.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from masksub.core.adapter import Grid, Masker, WrongInputError
from masksub.core.call import Call
from masksub.core.dropping import Choice, TokenDrop, drop_after
from masksub.core.intercept import Interception
from masksub.core.parts import loaded, nested_part

_MODULE = "transformers.models.audio_spectrogram_transformer.modeling_audio_spectrogram_transformer"


class HfAst(TokenDrop):
    """Tokens dropped from the result of the embeddings; the grid has a row a band of frequencies, a column a time.

    Patches are 16 x 16, one every 10 bins and 10 frames in the published models. So that nothing of a masked patch is
    seen by its neighbours, what is nearer to its centre than to another patch's is set to ``fill``.
    """

    name = "transformers AST"
    where = "the result of the embeddings, after the position embedding"

    def _embeddings(self, model: nn.Module) -> tuple[str, Any] | None:
        """Path and module of the embeddings."""
        outer = loaded(_MODULE, ["ASTForAudioClassification", "ASTModel"])
        closed = loaded("transformers.modeling_utils", ["PreTrainedModel"])
        return nested_part(model, outer, loaded(_MODULE, ["ASTEmbeddings"]), closed)

    def _known(self, model: nn.Module) -> tuple[str, Any]:
        found = self._embeddings(model)
        assert found is not None, "matches() was asked first"
        return found

    def _projection(self, model: nn.Module) -> nn.Conv2d:
        """The convolution that cuts the patches, over (B, 1, F, T)."""
        projection = self._known(model)[1].patch_embeddings.projection
        assert isinstance(projection, nn.Conv2d)
        return projection

    def matches(self, model: nn.Module) -> bool:
        """True for the classifier and the encoder, and for a user's own module around one; nothing is imported."""
        return self._embeddings(model) is not None

    def prefix(self, model: Any) -> int:
        """The class and the distillation token."""
        return 2

    def overlapping(self, model: Any) -> bool:
        """False: what overlaps is blanked by ``masking``, for the input is no image."""
        return False

    def grid(self, model: Any, call: Call, unit: int | None) -> Grid:
        """One cell a patch; ``unit`` is in bins and frames, a multiple of the distance between patches."""
        x, projection = call.x, self._projection(model)
        if x.ndim != 3:
            raise WrongInputError(
                f"a spectrogram transformer needs spectrograms (B, T, F), not an input of shape {tuple(x.shape)}"
            )
        down, right = projection.stride
        if unit is not None and (unit % down or down != right):
            raise ValueError(
                f"unit = {unit}: this model has a patch every {down} bins and {right} frames; use a multiple of that "
                f"where they are equal, or None"
            )
        rows = (x.shape[2] - projection.kernel_size[0]) // down + 1
        cols = (x.shape[1] - projection.kernel_size[1]) // right + 1
        return Grid(rows, cols, block=1 if unit is None else unit // down)

    def interceptions(self, model: Any, choice: Choice) -> Sequence[Interception]:
        """The result of the embeddings goes through the choice."""
        return (drop_after(self._known(model)[0], choice),)

    @contextmanager
    def masking(self, model: Any, unit: int | None, fill: float | str) -> Iterator[Masker]:
        """As ``Adapter.masking``."""
        with super().masking(model, unit, fill) as masker:

            def mask(call: Call, keep: Tensor, count: int | None) -> Call:
                call = masker(call, keep, count)
                projection = self._projection(model)
                apart = all(s >= k for s, k in zip(projection.stride, projection.kernel_size, strict=True))
                if apart or count == keep.shape[1]:
                    return call
                grid = self.grid(model, call, None)
                rows = _nearest(
                    call.x.shape[2], grid.rows, projection.kernel_size[0], projection.stride[0], keep.device
                )
                cols = _nearest(
                    call.x.shape[1], grid.cols, projection.kernel_size[1], projection.stride[1], keep.device
                )
                visible = keep.view(-1, grid.rows, grid.cols)[:, rows][:, :, cols].transpose(1, 2)  # (B, T, F)
                blank = torch.as_tensor(fill, dtype=call.x.dtype, device=call.x.device)
                return call.with_x(torch.where(visible, call.x, blank))

            yield mask


def _nearest(length: int, patches: int, size: int, stride: int, device: torch.device) -> Tensor:
    """The patch whose centre is nearest, for each place along one side of a spectrogram: (length,)."""
    places = torch.arange(length, device=device) - (size - stride) // 2
    return places.div(stride, rounding_mode="floor").clamp(0, patches - 1)
