"""HTTP in, verdict out. `service.inspector` is the file to read first."""
