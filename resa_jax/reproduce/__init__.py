"""The tables and figures of the ReSA paper, each by one command: `python -m resa_jax.reproduce`.

An item (`tables`, `figures`) is a description: the cells of a table, each a run, a measure and the
paper's number, or the runs that a picture shows. `runs` turns a run of the paper into one at the
scale asked for and into commands, `results` reads what those leave behind.
"""
