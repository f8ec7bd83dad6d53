"""What came out of an ablation: tidy tables, statistics, figures, a report, TensorBoard."""
