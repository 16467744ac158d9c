"""Try what hostile files, devices and bad days do to the commands, and count what held."""

from count import main

main()
