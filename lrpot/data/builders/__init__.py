"""Recipes that compute data sets from scratch, one module for each."""
