"""Measure on a few images what each layer reads, where the answer is, and how much damage to each layer costs it."""
