"""Encoders and what they are made of."""
