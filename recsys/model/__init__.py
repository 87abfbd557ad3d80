"""The Keras siamese tower: layers, losses, negatives, batches, and the training loop."""
