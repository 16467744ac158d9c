"""The commands of the package. They turn options into values, call the library once, and print the result."""
