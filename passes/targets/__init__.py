"""What an engine needs of a graph: legal operators, and partitions that it can run."""
