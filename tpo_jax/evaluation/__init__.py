"""Scores, confidence intervals and reports."""
