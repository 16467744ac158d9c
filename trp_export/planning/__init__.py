"""Which layer gets which decomposition at which rank, and why: values and pure functions, numpy alone."""
