"""Ways to talk to a trained model."""
