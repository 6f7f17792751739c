"""Fitting: the stages, the loss, checkpoints."""
