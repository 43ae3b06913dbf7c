"""The self-supervised methods, one file each."""
