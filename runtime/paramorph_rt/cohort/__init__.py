"""Many pairs: which, registered here or on a cluster, what came of each, and a summary of all."""
