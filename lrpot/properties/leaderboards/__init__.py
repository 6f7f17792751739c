"""Predictions as the files that public leaderboards take."""
