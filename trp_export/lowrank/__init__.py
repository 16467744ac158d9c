"""Decompositions of kernels: what they are (schemes), what they cost, how the factors are found. numpy alone."""
