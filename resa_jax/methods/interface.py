"""What a method is: the seam between the train step, which knows no method, and the methods.

The step runs the networks over the views, moves the EMA network and applies the optimiser. A method
says which heads its networks have, what it keeps beside the networks, and how the outputs of both
make a loss. It is one frozen dataclass in a file of its own, `methods/NAME.py`; its fields are
`config.method.*`, and `config.method.name` names the file.
"""

import dataclasses
import importlib
from collections.abc import Mapping
from typing import Any, NamedTuple, cast

from flax import nnx
from jaxtyping import Array, Float, Int, Key
from ml_collections import ConfigDict

from resa_jax.models.resnet import ResNet
from resa_jax.models.vit import ViT


MOMENTUM_VIEWS = 2  # the EMA network sees the first two views, however many there are


class Outputs(NamedTuple):
    """What a network gave; the first three are tuples over the views that it saw.

    Attributes:
      encodings: of the encoder, [m, f].
      embeddings: of the projector, [m, d].
      predictions: of the predictor, [m, d]; the embeddings where there is no predictor.
      own: the method's own parameters, as `init` made them; the EMA network's are averaged too.
    """

    encodings: tuple[Float[Array, "m f"], ...]
    embeddings: tuple[Float[Array, "m d"], ...]
    predictions: tuple[Float[Array, "m d"], ...]
    own: dict[str, Any]


class Moment(NamedTuple):
    """Where in the run a step is.

    Attributes:
      step: steps done before this one.
      epoch: steps over steps per epoch; its whole part counts the epochs done.
      key: of the random numbers of this step, a function of the seed and the step alone.
    """

    step: Int[Array, ""]
    epoch: Float[Array, ""]
    key: Key[Array, ""]


class Heads(NamedTuple):
    """What follows the encoder.

    Attributes:
      projector: from encodings [n, f] to embeddings [n, d]. `projector.layers(x, train=...)` gives
        its hidden layers and the embedding by name; `projector.layer_names` has their order, as
        "p0", "p1", "embedding".
      predictor: from embeddings to predictions, of the online network alone; None for no predictor.
    """

    projector: nnx.Module
    predictor: nnx.Module | None = None


class Method:
    """What the step and the train state ask of a method, with what holds for most.

    Attributes:
      momentum_network: whether an EMA network, which sees the first two views, gives targets.
      ema_after_step: whether the EMA network takes in the parameters that the step has made, or
        those before the step.
      joint_projector: whether the projector sees all views at once, so that its BatchNorm has the
        statistics of all rows; otherwise it sees one view after the other, as the encoder does.
      constant_rate: children of the network ("predictor") whose learning rate stays at its peak.
    """

    momentum_network: bool = False
    ema_after_step: bool = False
    joint_projector: bool = False
    constant_rate: tuple[str, ...] = ()

    @property
    def own_start_epoch(self) -> int:
        """Before this epoch the method's own parameters stay as they are."""
        return 0

    def heads(self, encoder: ResNet | ViT, rngs: nnx.Rngs) -> Heads:
        """The heads for an encoder of `encoder.num_features`, in `encoder.dtype`."""
        raise NotImplementedError

    def init(self, key: Key[Array, ""], width: int) -> dict[str, Any]:
        """The method's own parameters, such as prototypes. width: of embeddings."""
        return {}

    def buffers(self, batch_size: int, width: int) -> dict[str, Any]:
        """What the method keeps from step to step, such as a queue."""
        return {}

    def __call__(
        self, online: Outputs, target: Outputs | None, buffers: dict[str, Any], moment: Moment
    ) -> tuple[Float[Array, ""], dict[str, Any], dict[str, Float[Array, ""]]]:
        """The loss of a global batch, the buffers for the next step, and metrics.

        target: of the EMA network, without gradient; None where there is none.
        """
        raise NotImplementedError


def create_method(fields: ConfigDict | Mapping[str, Any]) -> Method:
    """The method that `config.method` describes."""
    path = f"resa_jax.methods.{fields['name']}"
    module = importlib.import_module(path)
    own = [item for item in vars(module).values() if getattr(item, "__module__", "") == path]
    (kind,) = filter(dataclasses.is_dataclass, own)
    return cast(type, kind)(**{name: value for name, value in fields.items() if name != "name"})
