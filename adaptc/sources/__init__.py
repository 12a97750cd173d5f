"""What model.yaml names outside itself, found and read: pretrained models, and text to measure on."""
