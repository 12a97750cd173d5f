"""Definitions of tasks that download nothing, in the form of lm-evaluation-harness."""
