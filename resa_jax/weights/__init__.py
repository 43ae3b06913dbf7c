"""Weights in and out: our own exports and checkpoints, and PyTorch's layouts."""
