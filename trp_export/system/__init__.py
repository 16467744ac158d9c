"""The machine: files, folders, JSON, signals, processes, threads, privacy. Imports only `trp_export.errors`."""
