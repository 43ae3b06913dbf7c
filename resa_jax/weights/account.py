"""Fitting tensors into networks, with an account of what became of each."""

from collections import Counter
from collections.abc import Iterable, Mapping

import numpy as np

from resa_jax.errors import UserError
from resa_jax.image_size import size_in_words
from resa_jax.models.spec import EncoderSpec
from resa_jax.weights.infer import find_table, nearest_arch
from resa_jax.weights.names import Slot
from resa_jax.weights.sorting import Checkpoint, count, some


class Account:
    """What became of every tensor of a checkpoint, from which networks are loaded one by one."""

    def __init__(self, checkpoint: Checkpoint, spec: EncoderSpec, arch: str | None):
        self.checkpoint = checkpoint
        self.spec = spec
        self.read: list[str] = []
        self.loaded: list[str] = []
        self.transposed = 0
        self.counters = 0
        self.left_out: list[str] = []
        self.notes: list[str] = []
        if checkpoint.file.spec is None:
            self.notes.append(
                f"images: {size_in_words(spec.image_size)}, normalised by mean {spec.mean} and "
                f"std {spec.std} (assumed: PyTorch files do not say)"
            )
        if arch in ("vit_s16", "vit_s16_mocov3"):
            tables = set(map(find_table, checkpoint.networks.values())) - {None}
            if tables and arch not in tables:
                self.notes.append(
                    f"the position table is that of {tables.pop()}, which has another number of "
                    f"heads; read as {arch}, as asked"
                )

    def load(self, network: str, slots: Mapping[str, Slot]) -> tuple[dict, dict]:
        """The parameters and batch statistics of one network of the checkpoint.

        Raises:
          UserError: unless the network has one finite tensor of the right shape for every slot, and
            besides these only a classifier and counters of batches.
        """
        tensors = {}
        for name, value in self.checkpoint.networks[network].items():
            if name.endswith("num_batches_tracked"):
                self.counters += 1
            elif network in ("encoder", "ema encoder", "") and name.startswith(("fc.", "head.")):
                self.left_out.append(self._full_name(network, name))
            else:
                tensors[name] = value
        self._check(network, tensors, slots)
        trees: dict[str, dict] = {"params": {}, "batch_stats": {}}
        for name, slot in slots.items():
            node = trees[slot.collection]
            for key in slot.path[:-1]:
                node = node.setdefault(key, {})
            node[slot.path[-1]] = np.ascontiguousarray(slot.from_torch(tensors[name]))
            self.transposed += slot.path[-1] == "kernel"
        held = self.checkpoint.prefixes.get(network, "the file")
        self.read.append(network)
        self.loaded.append(f"{count(slots, 'tensor')} of {held} as the {network or 'encoder'}")
        return trees["params"], trees["batch_stats"]

    def lines(self) -> list[str]:
        """What was loaded, converted and left out, and remarks."""
        left_out = self.left_out + [
            f"{self.checkpoint.prefixes[name]} ({count(tensors, 'tensor')})"
            for name, tensors in self.checkpoint.networks.items()
            if name not in self.read
        ]
        if self.counters:
            left_out.append(f"{self.counters} x num_batches_tracked")
        left_out += summary(self.checkpoint.beside)
        left_out += self.checkpoint.file.others
        converted = [f"{count(range(self.transposed), 'kernel')} transposed"]
        if self.checkpoint.file.widened:
            converted.append(
                f"{self.checkpoint.file.widened} tensors from half precision to float32"
            )
        return [
            f"architecture: {self.spec.name}",
            *(f"loaded: {line}" for line in self.loaded),
            f"converted: {', '.join(converted)}",
            f"left out: {', '.join(left_out) or 'nothing'}",
            *self.notes,
        ]

    def _full_name(self, network, name):
        return self.checkpoint.prefixes.get(network, "*").removesuffix("*") + name

    def _check(self, network, tensors, slots):
        path, arch = self.checkpoint.file.path, self.spec.name
        missing = [name for name in slots if name not in tensors]
        unexpected = [name for name in tensors if name not in slots]
        misshapen = [
            f"{name} is {tensors[name].shape} instead of {slot.shape}"
            for name, slot in slots.items()
            if name in tensors and tensors[name].shape != slot.shape
        ]
        problems = [
            f"{count(names, 'tensor')} {what} ({some(names)})"
            for what, names in (
                ("missing", missing),
                ("unexpected", unexpected),
                ("of another shape", misshapen),
            )
            if names
        ]
        held = self.checkpoint.prefixes.get(network)
        where = f"{held} in {path}" if held else f"{path}"
        if problems:
            nearest = nearest_arch(tensors) if "encoder" in (network or "encoder") else None
            other = nearest is not None and nearest != arch
            hint = f" The nearest architecture is {nearest}." if other else ""
            raise UserError(f"{where} does not fit {arch}: {'; '.join(problems)}.{hint}")
        broken = [
            name
            for name in slots
            if not (
                np.issubdtype(tensors[name].dtype, np.floating) and np.isfinite(tensors[name]).all()
            )
        ]
        if broken:
            raise UserError(
                f"{where} holds values that are no finite numbers, in {some(broken)}; "
                "such weights are not converted."
            )


def summary(names: Iterable[str]) -> list[str]:
    """Names that are left out, those of one module together."""
    modules = Counter(name.partition(".")[0] for name in names)
    return [name if n == 1 else f"{name}.* ({n} tensors)" for name, n in modules.items()]
