"""What leaves the house: a bundle that an app can trust, made, described and checked."""
