"""The report as one self-contained HTML page, with a module for each section."""
