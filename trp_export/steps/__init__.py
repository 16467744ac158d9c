"""The steps of an export, one module each, in the order in which `trp_export.pipeline` calls them.

Each step is a public function from values to values; scripts and the search call them directly.
"""
