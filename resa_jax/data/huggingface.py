"""Data sets of Hugging Face's `datasets` as records of encoded images."""

import os
from typing import Any

import numpy as np

from resa_jax.errors import UserError


_LABELS = ("label", "labels", "fine_label", "class", "cls")


class Records:
    """Random access to the encoded images: `records[i]` is {"image": bytes}.

    Attributes:
      labels: int [n], None where there are none.
      class_names: by label; empty where the data set does not name them.
    """

    def __init__(self, place: str, split: str):
        """
        Args:
          place: a name on the hub, a folder that `load_dataset` reads (parquet files, an image
            folder, tar files of WebDataset), or one that `save_to_disk` wrote.
          split: as `load_dataset` has it.

        Raises:
          UserError: there is no such data set or split, or it has no images.
        """
        import datasets  # an extra

        datasets.disable_progress_bars()
        self.title = f"hf:{place}, split {split}"
        try:
            table = _load(datasets, place, split)
        except Exception as error:  # builders, the hub and Arrow raise almost anything
            reason = (str(error).strip().splitlines() or [type(error).__name__])[0]
            raise UserError(f"{self.title} cannot be opened: {reason}") from error
        images = [k for k, kind in table.features.items() if isinstance(kind, datasets.Image)]
        if not images:
            raise UserError(f"{self.title} has no column of images; it has {_kinds(table)}.")
        column = "image" if "image" in images else images[0]
        label = next((name for name in _LABELS if name in table.column_names), None)
        self.labels: np.ndarray | None = None
        self.class_names: tuple[str, ...] = ()
        if label is not None:
            self.labels = np.asarray(table[label])
            self.class_names = tuple(getattr(table.features[label], "names", None) or ())
            if self.labels.dtype.kind not in "iuU":
                raise UserError(
                    f"{self.title}: its column {label!r} must hold whole numbers or texts."
                )
            if self.labels.dtype.kind == "i" and (self.labels < 0).all():
                self.labels = None  # how a set says that its labels are not given away
        self._images = table.select_columns([column]).cast_column(
            column, datasets.Image(decode=False)
        )
        self._column = column

    def __len__(self) -> int:
        return len(self._images)

    def __getitem__(self, index: int) -> dict[str, bytes]:
        record = self._images[int(index)][self._column]
        if record["bytes"] is not None:
            return {"image": record["bytes"]}
        with open(record["path"], "rb") as file:
            return {"image": file.read()}


def _load(datasets: Any, place: str, split: str) -> Any:
    saved = os.path.join(place, "dataset_dict.json"), os.path.join(place, "dataset_info.json")
    if any(map(os.path.isfile, saved)):
        loaded = datasets.load_from_disk(place)
        return loaded[split] if isinstance(loaded, datasets.DatasetDict) else loaded
    return datasets.load_dataset(place, split=split)


def _kinds(table: Any) -> str:
    return ", ".join(f"{name} ({type(kind).__name__})" for name, kind in table.features.items())
