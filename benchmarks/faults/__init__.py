"""A campaign of faults against real runs and files: what is lost, hangs, or is silently wrong."""
