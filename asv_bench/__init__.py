"""The instrument: cases, inputs, sampling, the asv suites and the sweep. Importing it touches no GPU."""
