"""Units of lrpot: A, eV, e, fs. A wave vector includes 2 pi and is in 1/A."""

COULOMB_CONSTANT = 14.399645468667815
"""e / (4 pi eps_0) in eV A / e^2, CODATA 2022."""

GPA = 160.2176634
"""1 eV/A^3 in GPa, CODATA 2022."""

PLANCK = 4.135667696923859e-3
"""Planck's constant in eV/THz; exact in SI."""

WAVE_NUMBER = 33.35640951981521
"""The wave number of 1 THz in 1/cm; exact in SI."""
