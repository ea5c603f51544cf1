"""What the passes have in common that rewrite linear layers."""

from abc import abstractmethod
from collections.abc import Collection, Sequence

import onnx_ir as ir
from onnx_ir.passes.common import RemoveUnusedNodesPass

from ...runtime.errors import RedipruneError
from .linear_layers import LinearLayer, linear_layers


class UnsuitableGraphError(RedipruneError, ir.passes.PreconditionError):
    """A graph that a pass cannot rewrite; the message says why, and what to do instead."""


class LinearLayerPass(ir.passes.InPlacePass):
    """Rewrites linear layers of a stage's graph and leaves everything else as it is.

    requires: every layer that is named is in the graph.
    ensures: none of the layers that were rewritten multiplies with a float matrix any more.

    Weights are read from disk one at a time: for their scales during the pass, and once more when the model is saved,
    where each new weight is computed as it is written. So no more than one of them is in memory.
    """

    def __init__(self, layer_names: Collection[str] | None = None):
        """Choose the layers.

        Args:
            layer_names: `LinearLayer.name` of those to rewrite; None is all of them.
        """
        self.layer_names = layer_names

    def requires(self, model: ir.Model) -> None:
        """Check that every named layer exists.

        Raises:
            UnsuitableGraphError: a layer that was named is not there.
        """
        missing = sorted(set(self.layer_names or ()) - {layer.name for layer in linear_layers(model)})
        if missing:
            raise UnsuitableGraphError(f"the graph has no linear layer '{missing[0]}'")

    def call(self, model: ir.Model) -> ir.passes.PassResult:
        """Rewrite the layers and remove what only they used."""
        layers = self.layers(model)
        if layers:
            self.rewrite(model, layers)
            RemoveUnusedNodesPass()(model)
        return ir.passes.PassResult(model, modified=bool(layers))

    def ensures(self, model: ir.Model) -> None:
        """See the class.

        Raises:
            PostconditionError: a layer was left out, a fault of the pass.
        """
        if left := self.layers(model):
            raise ir.passes.PostconditionError(f"{type(self).__name__} left layer '{left[0].name}' as it was")

    def layers(self, model: ir.Model) -> list[LinearLayer]:
        """The layers to rewrite, in the order of the graph."""
        return [
            layer
            for layer in linear_layers(model)
            if (self.layer_names is None or layer.name in self.layer_names) and self.applies_to(layer)
        ]

    def applies_to(self, layer: LinearLayer) -> bool:
        """Whether the layer can be represented at all; others stay as they are."""
        return True

    @abstractmethod
    def rewrite(self, model: ir.Model, layers: Sequence[LinearLayer]) -> None:
        """Replace the layers' products; called once, with at least one layer."""
