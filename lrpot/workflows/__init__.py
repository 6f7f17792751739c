"""Calculations on one crystal with any ASE calculator: relaxation, equation of state, elastic constants, phonons."""
