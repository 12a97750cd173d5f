"""Models that run on subsets of their modalities: inputs, subsets, strategies, the modality scheduler."""
