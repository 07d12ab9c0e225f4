"""Image, label and landmark files: the only place that reads and writes them."""
