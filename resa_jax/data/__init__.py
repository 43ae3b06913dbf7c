"""Images: where they come from, how they reach the device, and what is done to them there.

check     finds a user's mistakes in the name of a source, quickly
sources   `open_source`: digits, folders, lists, npz files, TFDS, Hugging Face
images    where a source's images lie: in memory, in files, in TFDS records
decode    one file to upright RGB
pipeline  batches as a pure function of (seed, step)
augment   views on the device, with `resample` and `color`
"""
