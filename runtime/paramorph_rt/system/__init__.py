"""The operating system: files, threads, signals, optional packages."""
