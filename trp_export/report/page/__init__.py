"""The report as one self-contained HTML page; a module for each of its sections."""
