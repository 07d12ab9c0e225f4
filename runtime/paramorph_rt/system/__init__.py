"""What the operating system is asked for: files, threads, signals, optional packages."""
