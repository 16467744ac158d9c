"""What was done and how sure it is: as a value, as JSON, in the terminal, as a page."""
