"""The numbers that the paper reports."""

# Table 1: linear and 5-NN accuracy on CIFAR-10, CIFAR-100 and ImageNet-100.
TABLE_1 = {
    "simclr": (90.74, 85.13, 65.78, 53.19, 77.64, 65.78),
    "byol": (92.58, 87.40, 70.46, 56.46, 80.32, 68.94),
    "swav": (89.17, 84.18, 64.88, 53.32, 74.28, 63.84),
    "simsiam": (90.51, 86.82, 66.04, 55.79, 78.72, 67.92),
    "mocov3": (93.10, 89.47, 68.83, 58.23, 80.36, 72.76),
    "wmse": (91.55, 89.69, 66.10, 56.69, 76.23, 67.72),
    "dino": (89.52, 86.13, 66.76, 56.24, 74.92, 64.30),
    "barlow_twins": (92.10, 88.09, 70.90, 59.40, 80.16, 72.14),
    "vicreg": (92.07, 87.38, 68.54, 56.32, 79.40, 71.94),
    "cw_rgp": (92.03, 89.67, 67.78, 58.24, 76.96, 68.46),
    "intl": (92.60, 90.03, 70.88, 61.90, 81.68, 73.46),
    "resa": (93.53, 93.02, 72.21, 66.83, 82.24, 74.56),
}
# Table 2: linear accuracy on ImageNet of a ResNet-50 after 100, 200 and 800 epochs, by batch size.
TABLE_2 = {
    "SimCLR, batch 256": (57.5, 62.0, 66.5),
    "SimCLR, batch 4096": (66.5, 68.3, 70.4),
    "SwAV, batch 256": (65.5, 67.7, None),
    "SwAV, batch 4096": (66.5, 69.1, 71.8),
    "MoCo v3, batch 1024": (67.4, 71.0, 72.4),
    "MoCo v3, batch 4096": (68.9, None, 73.8),
    "BYOL, batch 4096": (66.5, 70.6, 74.3),
    "Barlow Twins, batch 2048": (67.7, 70.2, 73.2),
    "VICReg, batch 2048": (68.6, 70.8, 73.1),
    "SimSiam, batch 256": (68.1, 70.0, 71.3),
    "SimSiam, batch 1024": (68.0, 69.9, 71.1),
    "MEC, batch 256": (70.1, None, None),
    "MEC, batch 1024": (70.6, 71.9, 74.0),
    "INTL, batch 256": (69.5, 71.1, 73.1),
    "INTL, batch 1024": (69.7, 71.2, 73.3),
}
TABLE_2_RESA = {256: (71.9, 73.4, None), 1024: (71.3, 73.8, 75.2)}
# Table 3: linear and 20-NN accuracy on ImageNet of a ViT-S/16.
TABLE_3 = {
    "byol": (71.4, 66.6),
    "swav": (68.5, 60.5),
    "mocov3": (72.5, 67.7),
    "dino": (72.5, 67.9),
    "resa": (72.7, 68.3),
}
# Table 4: GB on each of 8 A100 and hours an epoch, ResNet-50 and ViT-S/16.
TABLE_4 = {
    "swav": (13.7, 0.19, 14.8, 0.17),
    "mocov3": (14.6, 0.19, 15.5, 0.22),
    "dino": (15.5, 0.20, 16.4, 0.21),
    "resa": (14.6, 0.16, 15.6, 0.12),
}
# Table 5: AP50, AP and AP75 of boxes and of masks on COCO.
TABLE_5 = {
    "Scratch": (44.0, 26.4, 27.8, 46.9, 29.3, 30.8),
    "Supervised": (58.2, 38.2, 41.2, 54.7, 33.3, 35.2),
    "SimCLR": (57.7, 37.9, 40.9, 54.6, 33.3, 35.3),
    "MoCo v2": (58.8, 39.2, 42.5, 55.5, 34.3, 36.6),
    "BYOL": (57.8, 37.9, 40.9, 54.3, 33.2, 35.0),
    "SwAV": (57.6, 37.6, 40.3, 54.2, 33.1, 35.1),
    "SimSiam": (59.3, 39.2, 42.1, 56.0, 34.4, 36.7),
    "Barlow Twins": (59.0, 39.2, 42.5, 56.0, 34.3, 36.5),
    "MEC": (59.8, 39.8, 43.2, 56.3, 34.7, 36.8),
    "INTL": (60.9, 40.7, 43.7, 57.3, 35.4, 37.6),
    "ReSA": (61.1, 41.0, 44.3, 57.7, 35.7, 38.4),
}
# Table 6: 5-, 10- and 20-NN on ImageNet, CUB, Pets, Food and Flowers; * with multi-crop.
TABLE_6 = {
    "MoCo v3": (
        *(67.9, 68.9, 68.9),
        *(46.8, 48.8, 50.4),
        *(85.4, 86.5, 86.5),
        *(56.3, 58.6, 59.7),
        *(83.4, 81.6, 80.9),
    ),
    "VICReg": (
        *(64.3, 65.2, 65.6),
        *(33.4, 35.4, 36.3),
        *(81.5, 82.0, 82.3),
        *(56.9, 59.6, 61.0),
        *(83.4, 83.2, 82.6),
    ),
    "INTL": (
        *(63.6, 64.8, 65.1),
        *(26.7, 28.0, 29.4),
        *(78.4, 79.5, 79.7),
        *(55.6, 58.1, 59.2),
        *(78.8, 77.6, 77.2),
    ),
    "SwAV*": (
        *(64.3, 65.5, 65.7),
        *(26.2, 27.3, 28.4),
        *(77.2, 77.3, 77.1),
        *(54.7, 57.4, 58.7),
        *(79.3, 79.9, 78.4),
    ),
    "DINO*": (
        *(66.4, 67.4, 67.6),
        *(33.8, 35.5, 36.8),
        *(81.1, 81.6, 80.9),
        *(58.2, 60.8, 61.8),
        *(84.8, 84.1, 83.7),
    ),
    "ReSA": (
        *(69.2, 69.9, 69.9),
        *(56.5, 58.5, 59.9),
        *(85.8, 87.2, 87.5),
        *(58.3, 60.4, 61.3),
        *(84.4, 83.6, 83.6),
    ),
}
# Table 7: linear and 5-NN accuracy on CIFAR-100 with its 20 superclasses.
TABLE_7 = {
    "simclr": (72.5, 67.2),
    "swav": (70.0, 66.3),
    "mocov3": (76.4, 68.6),
    "dino": (72.9, 70.2),
    "vicreg": (74.3, 69.9),
    "resa": (79.8, 78.8),
}
# Table 8: recipe, optimiser, batch size, base learning rate, weight decay, epochs of warm-up.
TABLE_8 = {
    "cifar10_resnet18": ("sgd", 256, 0.3, 1e-4, 2),
    "cifar100_resnet18": ("sgd", 256, 0.3, 1e-4, 2),
    "imagenet100_resnet18": ("sgd", 128, 0.5, 2.5e-5, 2),
    "imagenet_resnet50": ("sgd", 256, 0.5, 1e-5, 2),
    "imagenet_resnet50:bs1024": ("sgd", 1024, 0.5, 1e-5, 10),
    "imagenet_vits": ("adamw", 1024, 5e-4, 0.1, 40),
}
# Table 9: learning rates of the linear classifiers, by architecture and batch size of pre-training.
TABLE_9 = {("resnet18", 128): 5.0, ("resnet50", 256): 10.0, ("vit_s16", 1024): 0.03}
# Table 10: top-1 with 1 % and 10 % of the labels, then top-5.
TABLE_10 = {
    "SimCLR": (48.3, 65.6, 75.5, 87.8),
    "BYOL": (53.2, 68.8, 78.4, 89.0),
    "SwAV*": (53.9, 70.2, 78.5, 89.9),
    "Barlow Twins": (55.0, 69.7, 79.2, 89.3),
    "VICReg": (54.8, 69.5, 79.4, 89.5),
    "INTL": (55.0, 69.4, 80.8, 89.8),
    "ReSA": (56.4, 70.4, 81.0, 90.1),
}
# Table 11: linear accuracy by (momentum network, predictor), and by batch size and temperature.
TABLE_11 = {(True, True): 71.9, (True, False): 70.8, (False, True): 69.7, (False, False): 68.7}
TABLE_11_TEMPERATURE = {
    256: {0.2: 71.2, 0.3: 71.4, 0.4: 71.9, 0.5: 71.7},
    1024: {0.2: 70.9, 0.3: 71.1, 0.4: 71.3, 0.5: 71.2},
}
# Table 12: linear and 5-NN on CIFAR-10 and CIFAR-100, with one view weakly augmented or neither.
TABLE_12 = {
    ("swav", False): (89.17, 84.18, 64.88, 53.32),
    ("swav", True): (88.79, 84.01, 64.21, 53.07),
    ("vicreg", False): (92.07, 87.38, 68.54, 56.32),
    ("vicreg", True): (91.35, 86.75, 67.27, 55.79),
    ("mocov3", False): (93.10, 89.06, 68.83, 58.09),
    ("mocov3", True): (93.05, 89.09, 68.72, 58.02),
}
