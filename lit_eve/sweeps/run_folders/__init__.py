"""Runs side by side, also those that no sweep made: settings, metrics, cost, curves."""
