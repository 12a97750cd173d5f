"""From a pretrained model to an FX graph, by `torch.export`."""
