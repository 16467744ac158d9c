"""Measure the optimisation gap of a search that trp-search has finished."""

from study import main

main()
