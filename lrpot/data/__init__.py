"""Crystals from files and recipes: what goes into a model."""
