"""Scores, statistics and tables that compare models: what `nnunet-din leaderboard` does."""
