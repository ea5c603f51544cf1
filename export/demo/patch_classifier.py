"""The head that the tower is trained with: it names what each patch shows, and is thrown away afterwards."""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ...calibration.tasks.scenes import SIDE
from .model import WIDTH
from .packing import PATCH_CLASSES


class PatchClassifier(nn.Module):
    """The tower stage's head: features [N, P, C] → what each patch shows; thrown away afterwards."""

    def __init__(self) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(WIDTH)
        self.linear = nn.Linear(WIDTH, sum(PATCH_CLASSES.values()) + 2)

    def loss(self, features: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
        """The tower stage's loss.

        Args:
            features: [N, P, C] of the tower.
            labels: [N, 6, P], as `packing.patch_labels` makes them.

        Returns:
            The loss, and the share of object patches with all classes right.
        """
        out = self.linear(self.norm(features)).float()
        on_object = labels[:, 0] > 0  # [N, P]
        weight = on_object + 0.1 * ~on_object
        weight = weight / weight.sum()
        loss = out.new_zeros(())
        right = torch.ones_like(on_object)
        *parts, centre = out.split([*PATCH_CLASSES.values(), 2], dim=-1)
        for i, logits in enumerate(parts):
            each = F.cross_entropy(logits.flatten(0, 1), labels[:, i].flatten(), reduction="none")
            loss = loss + (each * weight.flatten()).sum()
            right &= logits.argmax(-1) == labels[:, i]
        off = (centre - labels[:, 4:].transpose(1, 2) / SIDE).abs().sum(-1)  # [N, P]
        loss = loss + 2 * (off * on_object * weight).sum()
        return loss, (right & on_object).sum() / on_object.sum()
