"""What is measured: log-probabilities of a model, rates over records, and their intervals."""
