"""Weights in files: folders, layouts and shards that are read and written; a skeleton that is filled from them."""
