"""SimCLR: tell an image's other view from all other images of the batch.

Chen et al., "A Simple Framework for Contrastive Learning of Visual Representations", ICML 2020,
equation 1; heads and settings of the CIFAR runs: solo-learn, solo/methods/simclr.py.
"""
