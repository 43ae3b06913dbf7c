"""Evaluation of frozen features: nearest neighbours, linear probes, clustering."""
