"""Channel groups of a network, and the exact removal of channels that are equal or always zero."""
