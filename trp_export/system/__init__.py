"""What every part may use of the machine: files, signals, threads, privacy. It imports only `trp_export.errors`."""
