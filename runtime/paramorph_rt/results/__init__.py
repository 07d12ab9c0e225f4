"""What a registration leaves behind: files, BIDS names, schemas, provenance."""
