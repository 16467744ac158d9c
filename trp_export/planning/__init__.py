"""Decide which layer gets which decomposition at which rank: values and pure functions. Imports numpy alone."""
