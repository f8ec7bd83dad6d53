"""What a training would cost: FLOPs, memory, steps and days, from the model on the meta device."""
