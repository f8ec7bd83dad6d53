"""The web demo: models answer many people at once, word by word, and show where they looked."""
