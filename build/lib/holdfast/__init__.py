"""holdfast: safety alignment that survives noise, quantization and pruning."""
