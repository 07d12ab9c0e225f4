"""PyCUDA's driver module over the fake driver: what the backends use of it, with its signatures."""
