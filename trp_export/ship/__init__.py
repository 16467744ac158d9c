"""Bundles: write one, and check one without trusting it. The pipeline and the commands use this package."""
