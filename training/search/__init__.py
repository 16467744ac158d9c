"""Search the LR-space of a network by gradient: `trp-search`. Source: Yu & Bouganis, SVD-NAS, WACV 2023."""
