"""Engines that can drive a model."""
