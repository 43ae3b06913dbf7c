"""The names of the encoders. Imports nothing heavy, so that a recipe can be checked early."""

ENCODERS = (
    *("resnet18_cifar", "resnet18_small", "resnet18", "resnet34", "resnet50", "resnet101"),
    *("vit_ti16", "vit_s16", "vit_b16", "vit_l16", "vit_h14"),
    *("vitc_s16", "vitc_b16", "vit_s16_mocov3"),
    *("deit3_s16", "deit3_b16", "deit3_l16"),
    *("dinov2_s14", "dinov2_b14", "dinov2_l14", "dinov2_g14"),
    *("dinov2_s14_reg4", "dinov2_b14_reg4", "dinov2_l14_reg4", "dinov2_g14_reg4"),
    *("dinov3_s16", "dinov3_s16plus", "dinov3_b16", "dinov3_l16", "dinov3_h16plus"),
)
