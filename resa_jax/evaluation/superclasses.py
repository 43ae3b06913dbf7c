"""CIFAR-100's 20 superclasses (Krizhevsky, 2009), for Table 7."""

import numpy as np
from jaxtyping import Int

from resa_jax.errors import UserError


SUPERCLASSES = {
    "aquatic_mammals": "beaver dolphin otter seal whale",
    "fish": "aquarium_fish flatfish ray shark trout",
    "flowers": "orchid poppy rose sunflower tulip",
    "food_containers": "bottle bowl can cup plate",
    "fruit_and_vegetables": "apple mushroom orange pear sweet_pepper",
    "household_electrical_devices": "clock keyboard lamp telephone television",
    "household_furniture": "bed chair couch table wardrobe",
    "insects": "bee beetle butterfly caterpillar cockroach",
    "large_carnivores": "bear leopard lion tiger wolf",
    "large_man-made_outdoor_things": "bridge castle house road skyscraper",
    "large_natural_outdoor_scenes": "cloud forest mountain plain sea",
    "large_omnivores_and_herbivores": "camel cattle chimpanzee elephant kangaroo",
    "medium_mammals": "fox porcupine possum raccoon skunk",
    "non-insect_invertebrates": "crab lobster snail spider worm",
    "people": "baby boy girl man woman",
    "reptiles": "crocodile dinosaur lizard snake turtle",
    "small_mammals": "hamster mouse rabbit shrew squirrel",
    "trees": "maple_tree oak_tree palm_tree pine_tree willow_tree",
    "vehicles_1": "bicycle bus motorcycle pickup_truck train",
    "vehicles_2": "lawn_mower rocket streetcar tank tractor",
}
SUPERCLASS_OF = {
    fine: number for number, names in enumerate(SUPERCLASSES.values()) for fine in names.split()
}
FINE_NAMES = tuple(sorted(SUPERCLASS_OF))


def coarse_labels(
    labels: Int[np.ndarray, " n"], class_names: tuple[str, ...]
) -> Int[np.ndarray, " n"]:
    """Superclass, 0 to 19 in alphabetical order, of each label.

    Args:
      labels: fine classes.
      class_names: CIFAR-100's fine names by label, or the labels' own numbers ("0" to "99"), which
        are taken as the fine names in alphabetical order, CIFAR-100's own.

    Raises:
      UserError: a class that CIFAR-100 does not have.
    """
    if class_names == tuple(str(n) for n in range(len(class_names))) and len(class_names) <= 100:
        class_names = FINE_NAMES[: len(class_names)]
    unknown = [class_names[n] for n in np.unique(labels) if class_names[n] not in SUPERCLASS_OF]
    if unknown:
        raise UserError(
            f"Protocol coarse groups CIFAR-100's 100 classes, and {unknown[0]!r} is none of them "
            f"({len(unknown)} unknown); use a source of CIFAR-100."
        )
    return np.array([SUPERCLASS_OF.get(name, -1) for name in class_names])[labels]
