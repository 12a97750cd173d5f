"""lm-evaluation-harness over bundles: its model `adaptc`, tasks that download nothing, and their figures in a table."""
