"""The labelled images of a run: where they come from, their split, and the batches made of them."""
