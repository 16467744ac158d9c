"""Training for fewer channels: which channels are tied to one another, how filters are clustered, and C-SGD."""
