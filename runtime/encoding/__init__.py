"""Encoders: texts to vectors or labels, sounds to states; padding and batches are the runtime's business."""
