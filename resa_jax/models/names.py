"""The names of the encoders. Imports nothing heavy, so that a recipe can be checked early."""

ENCODERS = (
    *("resnet18_cifar", "resnet18_small", "resnet18", "resnet34", "resnet50", "resnet101"),
    *("vit_ti16", "vit_s16", "vit_b16", "vit_l16", "vitc_s16", "vitc_b16", "vit_s16_mocov3"),
)
