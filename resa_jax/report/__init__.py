"""What a run looks like: one HTML page, figures, tables."""
