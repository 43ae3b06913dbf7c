"""The self-supervised methods, one file each, and what a method is (`interface`)."""
