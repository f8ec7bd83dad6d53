"""What generation needs beyond transformers' own: images that follow their rows, and where an answer ends."""
