"""Decompositions of kernels: the schemes, their cost, and how factors are computed. Imports numpy alone."""
